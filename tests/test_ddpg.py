import gymnasium as gym
import numpy as np
import pytest
import ray
import torch
from ray import tune
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.tune.registry import get_trainable_cls
from scipy.stats import kstest, truncnorm

from gnnrl_ray import HierarchicalGraph
from gnnrl_ray.agent.ddpg import DDPG, DDPGConfig, Hooks
from gnnrl_ray.agent.env import GraphBox

pytestmark = pytest.mark.usefixtures("ray_session")


class Aim(gym.Env):
    """One step; the best action is the observation, seen through a fixed matrix."""

    def __init__(self, config=None):
        self.observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
        self.action_space = gym.spaces.Box(-2, 2, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.goal = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return self.goal, {}

    def step(self, action):
        target = np.array([self.goal[0] + self.goal[1], self.goal[0] - self.goal[1]]) * 0.9
        reward = -float(np.square(action - target).mean())
        return self.goal, reward, True, False, {}


class Graph(gym.Env):
    """Like ``Aim``, on the graph of a small network in one of two states."""

    def __init__(self, config):
        self.graph = HierarchicalGraph(config["groups"])
        self.observation_space = GraphBox(self.graph.shape, self.graph.levels)
        self.action_space = gym.spaces.Box(0, 1, (3,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.wide = bool(self.np_random.integers(2))
        widths = self.graph.groups.widths
        return self.graph.features(widths if self.wide else widths // 2), {}

    def step(self, action):
        target = 0.8 if self.wide else 0.2
        reward = -float(np.square(action - target).mean())
        return self.graph.features(self.graph.groups.widths), reward, True, False, {}


def config(env=Aim, **training):
    settings = {
        "warmup_episodes": 4,
        "updates_per_step": 2,
        "hidden": (32, 32),
    } | training
    return (
        DDPGConfig()
        .environment(env)
        .env_runners(num_cpus_per_env_runner=0.5)
        .training(**settings)
        .debugging(seed=1, log_level="ERROR")
    )


class Seen(Hooks):
    """Keeps what happens."""

    def __init__(self):
        self.seen = {}

    def on_episode(self, finished):
        episode = finished.result
        assert finished.number not in self.seen
        self.seen[finished.number] = (
            episode.get_observations(0), episode.get_actions(0), episode.get_return()
        )  # fmt: skip


def run(algorithm, episodes):
    """Run to ``episodes``; return {number: (observation, action, reward)}."""
    algorithm.seen.seen = seen = {}
    while algorithm.episodes_done < episodes:
        algorithm.train()
    return seen


def learner_of(algorithm):
    (learner,) = algorithm.learner_group.foreach_learner(lambda learner: learner)
    return learner.get()


def module_of(algorithm):
    return learner_of(algorithm).module[DEFAULT_MODULE_ID].unwrapped()


def weights_of(algorithm):
    return {k: v.clone() for k, v in module_of(algorithm).state_dict().items()}


def same(first, second):
    return all(torch.equal(first[k], second[k]) for k in first)


@pytest.fixture
def build():
    algorithms = []

    def build(settings):
        seen = Seen()
        algorithms.append(DDPG(settings, hooks=seen))
        algorithms[-1].seen = seen
        return algorithms[-1]

    yield build
    for algorithm in algorithms:
        algorithm.stop()


def test_defaults_are_the_papers():
    defaults = DDPGConfig()
    assert defaults.tau == 0.01
    assert defaults.warmup_episodes == 30
    assert defaults.train_batch_size_per_learner == 64
    assert defaults.replay_capacity == 2000


def by_hand(actor, critic, observations, actions=None):
    """Return values [B] of ``actions``, or of the actor's, one observation at a time."""
    values = []
    for i, observation in enumerate(observations):
        plan = actor.encoder.plan(observation[None])
        action = actor(plan) if actions is None else actions[i][None]
        values.append(critic(critic.encoder(plan), action))
    return torch.cat(values)


@pytest.mark.parametrize("env", [Aim, Graph])
def test_one_update_equals_two_backward_passes_by_hand(build, groups, env):
    algorithm = build(config(env).environment(env, env_config={"groups": groups}))
    run(algorithm, 6)
    module = module_of(algorithm)
    learner = learner_of(algorithm)
    batch = algorithm._replay.sample(8)
    batch[Columns.TERMINATEDS] = torch.tensor([True, False] * 4)
    batch[Columns.NEXT_OBS] = torch.rand_like(batch[Columns.OBS])
    settings = algorithm.config
    loss = learner.compute_loss_for_module(
        module_id=DEFAULT_MODULE_ID,
        config=settings,
        batch=batch,
        fwd_out=module._forward_train(batch),
    )
    parameters = [*module.actor.parameters(), *module.critic.parameters()]
    found = torch.autograd.grad(loss, parameters)

    observations = batch[Columns.OBS]
    following = by_hand(module.target_actor, module.target_critic, batch[Columns.NEXT_OBS])
    going_on = 1 - batch[Columns.TERMINATEDS].float()
    y = batch[Columns.REWARDS] + settings.gamma * going_on * following.detach()
    q = by_hand(module.actor, module.critic, observations, batch[Columns.ACTIONS])
    critic = torch.autograd.grad((y - q).square().mean(), list(module.critic.parameters()))
    value = by_hand(module.actor, module.critic, observations).mean()
    actor = torch.autograd.grad(-value, list(module.actor.parameters()))
    for a, b in zip(found, [*actor, *critic], strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_the_end_of_an_episode_has_no_value(build):
    algorithm = build(config())
    run(algorithm, 4)
    module = module_of(algorithm)
    batch = algorithm._replay.sample(8)
    batch[Columns.TERMINATEDS] = torch.tensor([True, False] * 4)
    batch[Columns.NEXT_OBS] = torch.rand_like(batch[Columns.OBS])
    values = module.forward_target(batch)
    assert (values[::2] == 0).all()
    expected = by_hand(module.target_actor, module.target_critic, batch[Columns.NEXT_OBS])
    assert torch.allclose(values[1::2], expected[1::2], atol=1e-6)


def test_a_gradient_that_is_not_finite_is_no_step(build):
    algorithm = build(config())
    run(algorithm, 6)
    before = weights_of(algorithm)
    sample = algorithm._replay.sample

    def spoilt(size):
        return sample(size) | {Columns.REWARDS: torch.full((size,), torch.inf)}

    algorithm._replay.sample = spoilt
    algorithm._update()
    assert same(before, weights_of(algorithm))
    algorithm._replay.sample = sample
    algorithm._update()
    assert not same(before, weights_of(algorithm))


def test_updates_at_once_are_updates_one_by_one(build):
    together, apart = build(config()), build(config())
    for algorithm in (together, apart):
        run(algorithm, 4)
    together._update(5)
    for _ in range(5):
        apart._update()
    assert same(weights_of(together), weights_of(apart))


def test_targets_follow_by_tau(build):
    algorithm = build(config(tau=0.25))
    run(algorithm, 4)
    module = module_of(algorithm)
    before = {k: v.clone() for k, v in module.target_critic.named_parameters()}
    algorithm._update()
    for key, parameter in module.critic.named_parameters():
        expected = 0.75 * before[key] + 0.25 * parameter
        assert torch.allclose(module.target_critic.get_parameter(key), expected, atol=1e-6)


def test_nothing_is_learnt_before_warm_up_is_over(build):
    algorithm = build(config(warmup_episodes=6))
    before = weights_of(algorithm)
    run(algorithm, 5)
    assert same(before, weights_of(algorithm))
    run(algorithm, 6)
    assert not same(before, weights_of(algorithm))


def test_exploration_follows_the_global_episode(build):
    algorithm = build(config(warmup_episodes=2, noise=0.4, noise_decay=0.5))
    module = module_of(algorithm)
    module.generator = np.random.default_rng(0)
    mean = np.full((20_000, 2), 1.0, np.float32)
    module.episode = 1
    assert kstest(module._explore(mean)[:, 0], "uniform", (-2, 4)).pvalue > 1e-3
    for episode, sigma in ((2, 1.6), (4, 0.4)):  # of a range that is four wide
        module.episode = episode
        drawn = module._explore(mean)[:, 0]
        expected = truncnorm((-2 - 1) / sigma, (2 - 1) / sigma, 1, sigma)
        assert kstest(drawn, expected.cdf).pvalue > 1e-3
        assert drawn.abs().max() <= 2


@pytest.mark.slow
def test_the_same_seed_gives_the_same_run_with_and_without_a_runner(build):
    first = run(build(config()), 8)
    second = run(build(config()), 8)
    remote = run(build(config().env_runners(num_env_runners=1)), 8)
    assert set(first) == set(remote) == set(range(8))
    for index in range(8):
        for a, b, c in zip(first[index], second[index], remote[index], strict=True):
            assert np.array_equal(a, b)
            assert np.array_equal(a, c)


def test_episodes_start_differently(build):
    starts = [obs for obs, _, _ in run(build(config()), 8).values()]
    assert len({start.tobytes() for start in starts}) == 8


@pytest.mark.cluster
def test_many_runners_share_one_schedule(build):
    alone = run(build(config(warmup_episodes=10)), 10)
    crowd = build(config(warmup_episodes=10).env_runners(num_env_runners=2))
    crowd.dispatcher.limit = 14  # or the slowest might be waited for for long
    many = run(crowd, 14)
    assert set(many) == set(range(14))
    # Nor do they fight over cores: each has as many threads as CPUs; half a one is one.
    threads = crowd.env_runner_group.foreach_env_runner(
        lambda runner: torch.get_num_threads(), local_env_runner=False
    )
    assert threads == [1, 1]
    for index in range(10):
        assert np.array_equal(alone[index][1], many[index][1])


def test_a_checkpoint_goes_on_as_if_nothing_had_happened(build, tmp_path):
    whole = build(config())
    straight = run(whole, 16)
    half = build(config())
    run(half, 9)
    path = half.save_to_path(tmp_path / "checkpoint")
    again = build(config())
    again.restore_from_path(path)
    assert again.episodes_done == 9
    resumed = run(again, 16)
    assert set(resumed) == set(range(9, 16))
    for index, (_, action, _) in resumed.items():
        assert np.array_equal(action, straight[index][1])
    assert same(weights_of(whole), weights_of(again))
    assert len(again._replay) == 16


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tau": 0.0}, "--agent tau 0.0 must be more than 0"),
        ({"tau": 2.0}, "--agent tau 2.0 must be at most 1"),
        ({"noise": "loud"}, "--agent noise 'loud' is not a number"),
        ({"hidden": [3, 0]}, "is not a list of widths"),
        ({"warmup_episodes": 1.5}, "--agent warmup_episodes 1.5 is not a whole number"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        config(**settings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c.env_runners(num_envs_per_env_runner=2),
            "scale with `num_env_runners`",
        ),
        (lambda c: c.learners(num_learners=2), "scale with `num_env_runners`"),
        (lambda c: c.multi_agent(policies={"a"}, policy_mapping_fn=str), "has one agent"),
        (lambda c: c.training(lr=1e-3), "set `actor_lr` and `critic_lr`"),
    ],
)
def test_what_it_does_not_do_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        change(config()).validate()


def test_the_greedy_action_is_the_actors(build, groups):
    for settings in (
        config(),
        config(Graph).environment(Graph, env_config={"groups": groups}),
    ):
        algorithm = build(settings)
        for episodes in (5, 7):  # what was learnt in between is acted on
            run(algorithm, episodes)
            module = module_of(algorithm)
            observation = algorithm._replay.sample(1)[Columns.OBS]
            plan = module.actor.encoder.plan(observation)
            with torch.no_grad():
                expected = module.actor(plan)[plan.which][0].numpy()
            found = algorithm.act(observation[0].numpy())
            assert np.allclose(found, expected, atol=1e-6)
            assert np.array_equal(found, algorithm.act(observation[0].numpy()))


@pytest.mark.slow
def test_tune_runs_it_by_name_on_any_box_task(tmp_path):
    """As RLlib's own: the default configuration, nothing but an environment added."""
    tuner = tune.Tuner(
        "GNN-RL-DDPG",
        param_space=DDPGConfig()
        .environment("MountainCarContinuous-v0", env_config={"max_episode_steps": 20})
        .training(gamma=tune.choice([0.9, 0.99])),
        run_config=tune.RunConfig(
            storage_path=str(tmp_path), stop={"training_iteration": 3}, verbose=0
        ),
    )
    results = tuner.fit()
    assert not results.errors
    assert len(results) == 1
    for result in results:
        assert result.metrics["training_iteration"] == 3
        assert result.metrics["env_runners"]["num_episodes_lifetime"] >= 3


@pytest.mark.slow
def test_tune_knows_its_name_in_every_ray_of_a_process():
    """A search shuts its Ray down, and a notebook may go on with the next."""
    assert get_trainable_cls("GNN-RL-DDPG") is DDPG
    ray.shutdown()
    ray.init(address="local", include_dashboard=False, logging_level="error")
    try:
        assert get_trainable_cls("GNN-RL-DDPG") is DDPG
    finally:
        ray.shutdown()  # the tests after this one need theirs


def test_the_algorithm_is_the_configs():
    assert DDPGConfig().algo_class is DDPG


def test_it_learns_to_act_on_what_it_sees(build):
    algorithm = build(
        config(warmup_episodes=20, updates_per_step=8, actor_lr=1e-3, noise_decay=0.97)
    )
    rewards = [reward for _, _, reward in run(algorithm, 160).values()]
    assert np.mean(rewards[:20]) < -1
    assert np.mean(rewards[-20:]) > -0.1


def test_it_learns_on_graphs_what_only_the_graph_tells(build, groups):
    settings = config(
        Graph, warmup_episodes=20, updates_per_step=8, actor_lr=1e-3, noise_decay=0.95,
        graph_dim=16,
    ).environment(Graph, env_config={"groups": groups})  # fmt: skip
    rewards = [reward for _, _, reward in run(build(settings), 120).values()]
    # One action for both states cannot do better than -0.09.
    assert np.mean(rewards[-20:]) > -0.03


@pytest.mark.slow
@pytest.mark.parametrize("runners", [0, 2])
@pytest.mark.parametrize("seed", range(3))
def test_pendulum(build, runners, seed):
    """Greedy return above -250 within 20,000 steps."""
    from tuned_examples import pendulum

    assert pendulum.run(runners, seed)["steps"] <= 20_000
