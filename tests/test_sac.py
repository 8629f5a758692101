import numpy as np
import pytest
import torch
from ray.rllib.core.columns import Columns
from test_ddpg import (  # noqa: F401
    Graph,
    build,
    config,
    learner_of,
    module_of,
    run,
    same,
    weights_of,
)

from gnnrl_ray.agent.mgnn import GraphEncoder

pytestmark = pytest.mark.usefixtures("ray_session")

SAC = {"algorithm": "sac", "actor_lr": 3e-3, "critic_lr": 3e-3}


@pytest.mark.slow
def test_it_learns_to_act_on_what_it_sees(build):  # noqa: F811
    algorithm = build(config(warmup_episodes=20, updates_per_step=8, **SAC))
    rewards = [reward for _, _, reward in run(algorithm, 160).values()]
    assert np.mean(rewards[:20]) < -1
    assert np.mean(rewards[-20:]) < 0
    greedy = []
    rng = np.random.default_rng(3)
    for goal in rng.uniform(-1, 1, (50, 2)).astype(np.float32):
        target = np.array([goal[0] + goal[1], goal[0] - goal[1]]) * 0.9
        greedy.append(-np.square(algorithm.act(goal) - target).mean())
    assert np.mean(greedy) > -0.2


def test_its_encoders_are_the_mgnns_and_its_actions_in_range(build, groups):  # noqa: F811
    settings = config(Graph, graph_dim=16, **SAC).environment(
        Graph, env_config={"groups": groups}
    )
    algorithm = build(settings)
    seen = run(algorithm, 12)
    module = module_of(algorithm)
    for name in ("pi_encoder", "qf_encoder", "qf_twin_encoder"):
        assert isinstance(getattr(module, name).encoder, GraphEncoder)
    actions = np.array([action for _, action, _ in seen.values()])
    assert (actions >= 0).all()
    assert (actions <= 1).all()
    assert len(np.unique(actions)) > 12
    # Training's distribution is the one that actions are drawn from.
    observation = next(iter(seen.values()))[0]
    batch = {Columns.OBS: torch.as_tensor(observation)[None]}
    inputs = module.pi(module.pi_encoder(batch)["encoder_out"])
    drawn = module.get_train_action_dist_cls().from_logits(inputs.repeat(5000, 1)).sample()
    drawn = (drawn + 1) / 2
    module.episode = 10**6
    module.generator = np.random.default_rng(0)
    with torch.no_grad():
        ours = np.array(
            [module._forward_exploration(batch)[Columns.ACTIONS][0].numpy()
             for _ in range(2000)]
        )  # fmt: skip
    assert np.abs(drawn.detach().numpy().mean(0) - ours.mean(0)).max() < 0.03
    assert np.abs(drawn.detach().numpy().std(0) - ours.std(0)).max() < 0.03


def test_targets_follow_by_tau_after_each_step(build):  # noqa: F811
    algorithm = build(config(tau=0.5, **SAC))
    run(algorithm, 4)
    module = module_of(algorithm)
    before = [p.clone() for p in module.target_qf.parameters()]
    algorithm._update(1)
    for old, new, online in zip(
        before, module.target_qf.parameters(), module.qf.parameters(), strict=True
    ):
        assert torch.allclose(new, (old + online) / 2, atol=1e-7)


def test_checkpoints_hold_the_temperature(build, tmp_path):  # noqa: F811
    first, second = build(config(**SAC)), build(config(**SAC))
    run(first, 8)
    path = first.save_to_path(tmp_path)
    second.restore_from_path(path)
    temperature = [
        learner_of(a).curr_log_alpha["default_policy"].item() for a in (first, second)
    ]
    assert temperature[0] != 0
    assert temperature[0] == temperature[1]
    run(first, 12)
    run(second, 12)
    assert same(weights_of(first), weights_of(second))
