"""What the agent and the environment take, with an objective that costs nothing."""

import logging
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import ray
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from torch import nn

from benchmarks.measuring import Row, mean, row, seconds
from gnnrl_ray import Budget, Costs, HierarchicalGraph, Objective, Outcome, load_data, trace
from gnnrl_ray.actors.sharing import SharedObjective
from gnnrl_ray.agent.ddpg import DDPG, DDPGConfig
from gnnrl_ray.agent.env import PruningEnv
from gnnrl_ray.agent.replay import Replay
from gnnrl_ray.zoo import build_network

REPEATS, EPISODES, BATCH = 30, 100, 64
# Of the authors' released code, an update on 100 states in 10 passes took 19 and 89 CPU
# seconds on another day's machine of this kind; here are those of one state and pass.
AUTHORS = {"resnet20": 19 / 1000, "resnet56": 89 / 1000}
CANDIDATES = 10_000  # candidates whose costs are counted at once


class Free(Objective):
    """Scores candidates by their widths, in no time."""

    def __call__(self, widths: np.ndarray) -> Outcome:
        """Return a made-up outcome."""
        score = float(np.asarray(widths).sum() % 100) / 100
        return Outcome(tuple(int(w) for w in widths), 0, 0, score, score - 1, 0.0)


def rows(networks: Sequence[str], dataset: str) -> Iterator[Row]:
    """Measure each network's costs, environment and agent on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    ray.init("local", include_dashboard=False, logging_level="error", log_to_driver=False)
    logging.getLogger("ray.rllib").setLevel(logging.ERROR)
    for name in networks:
        yield from _network(name)
    ray.shutdown()
    torch.set_num_threads(threads)


def _network(name: str) -> Iterator[Row]:
    data, network = load_data(), build_network(name)
    groups = trace(network, data.input_shape)
    costs, generator = Costs(groups), np.random.default_rng(0)
    kept = generator.random((CANDIDATES, len(groups.widths))) * (
        groups.widths // groups.multiple_of
    )
    widths = np.maximum(kept.astype(int), 1) * groups.multiple_of
    (many,) = seconds(
        lambda: (costs.macs(widths), costs.params(widths), costs.activations(widths)),
        n=REPEATS,
    )
    yield row(f"costs of {CANDIDATES:,} candidates", name, [1e3 * s for s in many], "ms")
    budget = Budget(groups, {"flops": 0.5})
    (fits,) = seconds(lambda: budget.project(groups.widths, budget.min_widths), n=REPEATS)
    yield row("projection to the budget", name, [1e3 * s for s in fits], "ms")
    held = SharedObjective(Free(network, groups, data, budget=0.5), remote=False)
    env = PruningEnv({"objective": held})

    def step() -> None:
        env.reset()
        env.step(generator.random(len(groups.widths)))

    (steps,) = seconds(step, n=REPEATS)
    yield row("environment step", name, [1e3 * s for s in steps], "ms")
    algorithm = (
        DDPGConfig()
        .environment(PruningEnv, env_config={"objective": held})
        .training(updates_per_step=0, gamma=1.0)
        .debugging(seed=0, log_level="ERROR")
        .build_algo()
    )
    try:
        yield from _agent(name, algorithm, env)
    finally:
        algorithm.stop()


def _agent(name: str, algorithm: DDPG, env: PruningEnv) -> Iterator[Row]:
    (learner,) = algorithm.learner_group.foreach_learner(lambda learner: learner)
    module = learner.get().module[DEFAULT_MODULE_ID].unwrapped()
    observation = env.reset()[0]
    actions, episodes = seconds(
        lambda: algorithm.act(observation), algorithm.training_step, n=REPEATS
    )
    yield row("action", name, [1e3 * s for s in actions], "ms")
    yield row("episode without evaluation and updates", name,
              [1e3 * s for s in episodes], "ms")  # fmt: skip
    for size, length in ((100, 1), (2000, 1), (2000, 2)):
        algorithm._replay = _replay(env, size, length)
        updates, limits = seconds(
            lambda: algorithm._update(8), _bare(module), n=REPEATS // 3
        )
        each = [1e3 * s / 8 for s in updates]
        ratios = {"bare MLPs": mean(each) / (1e3 * mean(limits))}
        if name in AUTHORS:
            ratios["authors'"] = mean(each) / 1e3 / (AUTHORS[name] * BATCH)
        what = f"update, {size} steps in episodes of {length}"
        yield row(what, name, each, "ms", **ratios)


def _replay(env: PruningEnv, size: int, length: int) -> Replay:
    """Return ``size`` transitions of episodes that shrink all groups at random."""
    replay, generator = Replay(size, seed=0), np.random.default_rng(0)
    graph, dense = HierarchicalGraph(env.objective.groups), env.objective.groups.widths
    while len(replay) < size:
        widths, observations = dense, [graph.features(dense)]
        for _ in range(length):
            kept = generator.uniform(0.3, 1, len(dense))
            widths = env.objective.budget.round(widths * kept)
            observations.append(graph.features(widths))
        actions = generator.random((length, len(dense)), np.float32)
        replay.add([SingleAgentEpisode(
            observations=observations, actions=list(actions), rewards=[-0.5] * length,
            terminated=True, len_lookback_buffer=0,
        )])  # fmt: skip
    return replay


def _bare(module: nn.Module) -> Callable[[], None]:
    """Return a step of Adam on MLPs of the actor's and the critic's sizes, no graph."""
    mlps = [_fresh(module.actor.mlp), _fresh(module.critic.mlp)]
    inputs = [torch.randn(BATCH, mlp[0].in_features) for mlp in mlps]
    optimizer = torch.optim.Adam([p for mlp in mlps for p in mlp.parameters()], fused=True)

    def step() -> None:
        losses = [mlp(x).square().mean() for mlp, x in zip(mlps, inputs, strict=True)]
        optimizer.zero_grad()
        sum(losses).backward()
        optimizer.step()

    return step


def _fresh(mlp: nn.Sequential) -> nn.Sequential:
    layers = [
        nn.Linear(layer.in_features, layer.out_features)
        if isinstance(layer, nn.Linear)
        else nn.ReLU()
        for layer in mlp
    ]
    return nn.Sequential(*layers)
