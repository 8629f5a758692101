"""Critics that choose: what they learn of, what they choose, and that it finds more."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from test_ddpg import build, module_of, run, same, weights_of  # noqa: F401

from gnnrl_ray import PruningEnv
from gnnrl_ray.agent.candidates import History
from gnnrl_ray.agent.ddpg import DDPGConfig
from gnnrl_ray.agent.kriging import promise
from gnnrl_ray.errors import InputError
from gnnrl_ray.scoring.outcome import Outcome

pytestmark = pytest.mark.usefixtures("ray_session")

SETTINGS = {"warmup_episodes": 8, "updates_per_step": 25, "actor_lr": 1e-3,
            "critic_lr": 3e-3, "critic_weight_decay": 0.02, "graph_dim": 16}  # fmt: skip


class Known:
    """An objective whose accuracy is a formula: some groups matter more than others."""

    def __init__(self, objective):
        self.groups, self.budget = objective.groups, objective.budget
        self.scores, self.sensitivities = objective.scores, objective.sensitivities
        self.weights = np.array([5, 1, 4, 0.5, 2, 1.0])

    def remember(self, outcomes):
        pass

    def __call__(self, widths):
        dropped = 1 - np.asarray(widths) / self.groups.widths
        accuracy = float(1 - self.weights @ dropped**2 / self.weights.sum())
        return Outcome(
            tuple(int(w) for w in widths), int(self.budget.costs.macs(widths)),
            int(self.budget.costs.params(widths)), accuracy=accuracy,
            reward=accuracy - 1, seconds=0.0, images=None,
        )  # fmt: skip


@pytest.fixture
def known(objective):
    return Known(objective)


def config(known, **changes):
    return (
        DDPGConfig()
        .environment(PruningEnv, env_config={"objective": lambda: known, "facts": True})
        .training(algorithm="wolpertinger", gamma=1.0, **SETTINGS | changes)
        .debugging(seed=changes.pop("seed", 0), log_level="ERROR")
    )


def rewards_of(algorithm, count):
    return [reward for _, _, reward in run(algorithm, count).values()]


def test_it_finds_more_than_dice_and_knows_why(build, known, rng):  # noqa: F811
    algorithm = build(config(known))
    seen = run(algorithm, 30)
    rewards = [reward for _, _, reward in seen.values()]
    widths = np.array([known.budget.reach(rng.random(6)) for _ in range(300)])
    truth = np.array([known(row).reward for row in widths])
    assert max(rewards) > np.quantile(truth, 0.98)
    assert np.mean(rewards[-10:]) > np.quantile(truth, 0.9)
    # What kriging expects ranks what it has not seen; of the best alone, mostly.
    done = np.array([action for _, action, _ in seen.values()])
    promised = promise(History(done, np.array(rewards)), 1 - widths / known.groups.widths)
    assert spearmanr(promised, truth).statistic > 0.5
    # What the actor has learnt from them is better than dropping as much of each group.
    ratios = algorithm.act(PruningEnv({"objective": lambda: known}).reset()[0])
    assert ratios.shape == (6,)
    assert (ratios >= 0).all()
    assert (ratios <= 1).all()
    even = known(known.budget.reach(np.full(6, 0.5))).accuracy
    assert known(known.budget.reach(ratios)).accuracy > even


def test_critics_rank_what_they_have_not_seen(build, known, rng):  # noqa: F811
    """By themselves they see dice first, and so what is bad, too."""
    algorithm = build(config(known, judges="critics"))
    rewards = rewards_of(algorithm, 30)
    widths = np.array([known.budget.reach(rng.random(6)) for _ in range(300)])
    truth = np.array([known(row).reward for row in widths])
    assert max(rewards) > np.quantile(truth, 0.98)
    assert np.mean(rewards[-10:]) > np.quantile(truth, 0.9)
    module, env = module_of(algorithm), PruningEnv({"objective": lambda: known})
    observation, _ = env.reset()
    plan = module.actor.encoder.encoder.plan(torch.as_tensor(observation)[None])
    kept = torch.tensor(widths / known.groups.widths, dtype=torch.float32)
    with torch.no_grad():
        values = module.critic(module.critic.encoder(plan), kept).mean(0)
    assert spearmanr(values, truth).statistic > 0.6


def test_a_checkpoint_goes_on_as_if_nothing_had_been(build, known, tmp_path):  # noqa: F811
    whole = rewards_of(build(config(known)), 11)
    first = build(config(known))
    rewards_of(first, 9)
    first.save_to_path(tmp_path / "checkpoint")
    second = build(config(known))
    second.restore_from_path(str(tmp_path / "checkpoint"))
    assert same(weights_of(first), weights_of(second))
    assert rewards_of(second, 11) == whole[9:]


def test_every_candidate_is_new_and_what_was_chosen(build, known):  # noqa: F811
    seen = run(build(config(known)), 14)
    widths = [
        tuple(np.rint(known.groups.widths * (1 - action)).astype(int).tolist())
        for _, action, _ in seen.values()
    ]
    assert known.budget.meets(np.array(widths)).all()
    assert len(set(widths)) == len(widths)
    rewards = [known(row).reward for row in widths]
    assert rewards == [reward for _, _, reward in seen.values()]


def test_critics_see_the_same_in_groups_that_are_alike(build, known):  # noqa: F811
    """One head for all: exchanging what is kept of twins exchanges nothing."""
    algorithm = build(config(known))
    run(algorithm, 10)
    critic = module_of(algorithm).critic
    critic.encoder.values[1] = critic.encoder.values[0]
    critic.encoder.touched[1] = critic.encoder.touched[0]
    critic.stages[1] = critic.stages[0]
    features = torch.as_tensor(PruningEnv({"objective": lambda: known}).reset()[0])[None]
    groups = critic.encoder(critic.encoder.encoder.plan(features))
    kept = torch.rand(5, 6)
    swapped = kept[:, [1, 0, 2, 3, 4, 5]]
    critic.pool[:, 1] = critic.pool[:, 0]
    with torch.no_grad():
        assert torch.allclose(critic(groups, kept), critic(groups, swapped), atol=1e-5)
        assert not torch.allclose(
            critic(groups, kept), critic(groups, kept[:, [2, 1, 0, 3, 4, 5]]), atol=1e-4
        )


def test_all_parts_learn(build, known):  # noqa: F811
    algorithm = build(config(known))
    before = {k: v.clone() for k, v in module_of(algorithm).state_dict().items()}
    run(algorithm, 10)
    for name, value in module_of(algorithm).state_dict().items():
        assert not torch.equal(before[name], value), name


def test_elsewhere_it_is_refused(build):  # noqa: F811
    from test_ddpg import Aim

    with pytest.raises(InputError, match="ddpg or sac"):
        build(DDPGConfig().environment(Aim).training(algorithm="wolpertinger"))
