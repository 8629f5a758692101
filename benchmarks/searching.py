"""Searches from end to end: episodes per hour, and what of an episode is the search's."""

import resource
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from benchmarks.measuring import Row, load, row
from gnnrl_ray import load_data, search
from gnnrl_ray.data import Data
from gnnrl_ray.scoring import objective
from gnnrl_ray.scoring.evaluation import Evaluator

EPISODES, WARM_UP = 14, 4
EPOCH_EPISODES, EPOCH_WARM_UP = 3, 0  # where each trains for an epoch


def rows(networks: Sequence[str], dataset: str) -> Iterator[Row]:
    """Search with ResNet-20 and -56 without fine-tuning.

    With ResNet-20 on actors, too, and with one epoch of fine-tuning.
    """
    data = load_data(dataset)
    for name in (n for n in networks if n in ("resnet20", "resnet56")):
        network = load(name, data)
        with _timed(Evaluator, "__call__") as work:
            ends = _episodes(network, data)
        alone = _hourly(ends)
        yield row("episodes, no fine-tuning", name, [alone], "per hour")
        yield row("time outside evaluation", name, [_percent_outside(ends, work)], "%")
        if name == "resnet20":
            for runners in (1, 2):
                hourly = _hourly(_episodes(network, data, env_runners=runners))
                yield row(f"episodes, no fine-tuning, {runners} actors", name, [hourly],
                          "per hour", alone=hourly / alone)  # fmt: skip
            with _timed(Evaluator, "__call__") as work, _timed(objective, "train") as more:
                ends = _episodes(network, data, EPOCH_EPISODES, EPOCH_WARM_UP,
                                 finetune="epoch")  # fmt: skip
            yield row("episodes, one epoch", name, [_hourly(ends)], "per hour")
            yield row("time outside evaluation and epoch", name,
                      [_percent_outside(ends, work + more)], "%")  # fmt: skip
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    yield row("peak memory of this process", "all above", [peak], "MB")


def _episodes(
    network: nn.Module, data: Data, count: int = EPISODES, warm_up: int = WARM_UP,
    finetune: str = "none", **settings: int,
) -> list[float]:  # fmt: skip
    """Return when the episodes ended that are acted and learnt from after warm-up.

    The first of these times is that of the episode before.
    """
    ends: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        search(
            network, data, episodes=count, finetune=finetune, device="cpu",
            agent={"warmup_episodes": warm_up}, out=f"{folder}/run",
            on_episode=lambda done, best: ends.append(time.perf_counter()),
            progress=False, **settings,
        )  # fmt: skip
    # The first episode after warm-up waits for all updates that warm-up has left.
    return ends[warm_up + 1 :]


def _hourly(ends: list[float]) -> float:
    return 3600 * (len(ends) - 1) / (ends[-1] - ends[0])


def _percent_outside(ends: list[float], work: list[tuple[float, float]]) -> float:
    """Return how much of the time of the episodes is not in ``work`` (starts, ends)."""
    inside = sum(e - s for s, e in work if s >= ends[0] and e <= ends[-1])
    return 100 * (1 - inside / (ends[-1] - ends[0]))


@contextmanager
def _timed(owner: object, name: str) -> Iterator[list[tuple[float, float]]]:
    """Collect start and end of every call of function ``name`` of ``owner``."""
    calls: list[tuple[float, float]] = []
    function = getattr(owner, name)

    def timed(*arguments, **named):
        start = time.perf_counter()
        result = function(*arguments, **named)
        calls.append((start, time.perf_counter()))
        return result

    setattr(owner, name, timed)
    try:
        yield calls
    finally:
        setattr(owner, name, function)
