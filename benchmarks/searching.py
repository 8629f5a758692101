"""Searches from end to end: episodes per hour, and what of an episode is not evaluation."""

import resource
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

from torch import nn

from benchmarks.measuring import Row, load, row
from gnnrl_ray import load_data, search
from gnnrl_ray.data import Data
from gnnrl_ray.evaluation import Evaluator

EPISODES, WARM_UP = 14, 4


def rows(networks: Sequence[str], dataset: str) -> Iterator[Row]:
    """Search with ResNet-20 and -56 without fine-tuning; with ResNet-20 on actors, too."""
    data = load_data(dataset)
    for name in (n for n in networks if n in ("resnet20", "resnet56")):
        network = load(name, data)
        with _evaluations() as evaluating:
            episodes = _episodes(network, data)
        alone = 3600 * len(episodes) / sum(episodes)
        outside = 1 - sum(evaluating[-len(episodes) :]) / sum(episodes)
        yield row("episodes, no fine-tuning", name, [alone], "per hour")
        yield row("time outside evaluation", name, [100 * outside], "%")
        if name == "resnet20":
            for runners in (1, 2):
                episodes = _episodes(network, data, env_runners=runners)
                hourly = 3600 * len(episodes) / sum(episodes)
                yield row(f"episodes, no fine-tuning, {runners} actors", name, [hourly],
                          "per hour", alone=hourly / alone)  # fmt: skip
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    yield row("peak memory of this process", "all above", [peak], "MB")


def _episodes(network: nn.Module, data: Data, **settings: int) -> list[float]:
    """Return the seconds of each episode that is acted and learnt from after warm-up."""
    ends: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        search(
            network, data, episodes=EPISODES, finetune="none", device="cpu",
            agent={"warmup_episodes": WARM_UP}, out=f"{folder}/run",
            on_episode=lambda done, best: ends.append(time.perf_counter()), **settings,
        )  # fmt: skip
    # The first episode after warm-up waits for all updates that warm-up has left.
    after = ends[WARM_UP + 1 :]
    return [end - start for start, end in pairwise(after)]


@contextmanager
def _evaluations() -> Iterator[list[float]]:
    """Collect the seconds of every evaluation."""
    seconds: list[float] = []
    evaluate = Evaluator.__call__

    def timed(self, *arguments):
        start = time.perf_counter()
        result = evaluate(self, *arguments)
        seconds.append(time.perf_counter() - start)
        return result

    Evaluator.__call__ = timed
    try:
        yield seconds
    finally:
        Evaluator.__call__ = evaluate
