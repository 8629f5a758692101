"""Episodes on many env runners, asynchronous and synchronous, beside the ideal.

The environment sleeps 0.2 to 2 s at random, so that the machine's cores are no limit, and
what is seen is what the driver does and how it waits. An episode is one step and an update.
"""

import logging
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import psutil
import ray
from ray._private.internal_api import node_stats

from benchmarks.measuring import Row, load, row
from gnnrl_ray import Objective, Outcome, SearchSettings, load_data, trace
from gnnrl_ray.actors.dispatch import Finished
from gnnrl_ray.actors.sharing import SharedObjective
from gnnrl_ray.agent.ddpg import DDPG, Hooks
from gnnrl_ray.agent.method import Agent

RUNNERS = (1, 2, 4, 8, 16)
# Of every runner; at the end of a search, runners wait for the last episode, and rounds of
# synchronous ones are all alike.
EPISODES_EACH = {"asynchronous": 24, "synchronous": 8}
LEAST, MOST = 0.2, 2.0  # seconds


class Sleeping(Objective):
    """Sleeps instead of scoring."""

    def __call__(self, widths: np.ndarray) -> Outcome:
        """Return a made-up outcome, after a while."""
        seconds = np.random.default_rng().uniform(LEAST, MOST)
        time.sleep(seconds)
        return Outcome(tuple(int(w) for w in widths), 0, 0, 0.5, -0.5, seconds)


class Slept(Hooks):
    """Keeps how long episodes slept."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_episode(self, finished: Finished) -> None:
        """Take note of one."""
        self.seconds.append(finished.result.get_infos(-1)["outcome"].seconds)


def rows(networks: Sequence[str], dataset: str) -> Iterator[Row]:
    """Measure ResNet-20 on 1 to 16 env runners."""
    logging.getLogger("ray.rllib").setLevel(logging.ERROR)
    data = load_data(dataset)
    network = load("resnet20", data)
    objective = Sleeping(network, trace(network, data.input_shape), data, budget=0.5)
    ray.init("local", num_cpus=16, include_dashboard=False, logging_level="error",
             log_to_driver=False)  # fmt: skip
    settings = SearchSettings(
        max_steps=1, episode_timeout=0.0, max_retries=0,
        agent={"warmup_episodes": 8, "updates_per_step": 1},
    )  # fmt: skip
    for runners in RUNNERS:
        shared = SharedObjective(objective, remote=True)
        config = Agent.config(replace(settings, env_runners=runners), shared)
        algorithm = DDPG(config, hooks=Slept())
        try:
            _measure(algorithm, max(10, runners))  # what happens only once
            yield from _throughput("asynchronous", algorithm, runners)
            stored = _stored()
            algorithm._start_episodes = partial(_start_together, algorithm)
            yield from _throughput("synchronous", algorithm, runners)
            if runners == RUNNERS[-1]:
                yield from _memory(stored)
        finally:
            algorithm.stop()
    ray.shutdown()


def _start_together(algorithm: DDPG) -> None:
    """Start episodes only once all are over, as synchronous sampling does."""
    if not algorithm.dispatcher.under_way:
        DDPG._start_episodes(algorithm)


def _throughput(how: str, algorithm: DDPG, runners: int) -> Iterator[Row]:
    count = EPISODES_EACH[how] * runners
    seconds, slept, own = _measure(algorithm, count)
    what = f"{how} episodes that sleep, {runners} runners"
    ideal = count * slept / runners
    yield row(what, "resnet20", [count / seconds], "per s", ideal=ideal / seconds)
    yield row(f"driver's own time, {how}, {runners} runners", "resnet20",
              [1e3 * own / count], "ms an episode")  # fmt: skip


def _measure(algorithm: DDPG, count: int) -> tuple[float, float, float]:
    """Run so many episodes: wall seconds, mean seconds of sleep, CPU seconds of this."""
    slept = algorithm._hooks.seconds
    while algorithm.dispatcher.under_way:  # what another measurement has left
        algorithm.dispatcher.limit = algorithm.dispatcher.peek()
        algorithm.train()
    slept.clear()
    algorithm.dispatcher.limit = algorithm.dispatcher.peek() + count
    wall, cpu = time.perf_counter(), time.process_time()
    while len(slept) < count:
        algorithm.train()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return wall, float(np.mean(slept)), cpu


def _stored() -> float:
    """Return how many MB are in the object store."""
    node = ray._private.worker.global_worker.node
    stats = node_stats(node.node_ip_address, node.node_manager_port, False)
    return stats.store_stats.object_store_bytes_used / 2**20


def _memory(stored: float) -> Iterator[Row]:
    own = []
    for process in psutil.Process(os.getpid()).children(recursive=True):
        if "DDPGEnvRunner" in " ".join(process.cmdline()):
            own.append(process.memory_full_info().uss / 2**20)
    yield row("memory of its own of an env runner", "resnet20", own, "MB")
    yield row("object store", "resnet20", [stored], "MB")
    yield row("object store, 128 episodes later", "resnet20", [_stored()], "MB")
