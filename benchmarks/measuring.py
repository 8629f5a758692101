"""What every part of the benchmark needs: networks, clocks, rows, the machine's limit."""

import statistics
import time
from collections.abc import Callable
from typing import TypedDict

import torch
from torch import nn

from gnnrl_ray import Budget, ChannelGroups, Costs, load_network, trace
from gnnrl_ray.data import Data
from gnnrl_ray.zoo import build_network
from gnnrl_ray.zoo.weights import WeightsError


class Row(TypedDict):
    """A figure: mean and standard deviation of ``n`` runs, and what it is a multiple of."""

    what: str
    network: str
    value: float
    unit: str
    spread: float
    n: int
    ratios: dict[str, float]


def row(what: str, network: str, values: list[float], unit: str, **ratios: float) -> Row:
    """Return the row of ``values``."""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return {
        "what": what, "network": network, "value": statistics.mean(values), "unit": unit,
        "spread": spread, "n": len(values), "ratios": ratios,
    }  # fmt: skip


def seconds(*functions: Callable[[], object], n: int) -> list[list[float]]:
    """Return the seconds of ``functions``, run in turns ``n`` times after one warm-up."""
    for function in functions:
        function()
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(n):
        for spent, function in zip(times, functions, strict=True):
            start = time.perf_counter()
            function()
            spent.append(time.perf_counter() - start)
    return times


def mean(values: list[float]) -> float:
    """Return the mean."""
    return statistics.mean(values)


def load(name: str, data: Data) -> nn.Module:
    """Return the trained network, or one as it was born where there are no weights."""
    try:
        return load_network(name, data.name).eval()
    except WeightsError:
        torch.manual_seed(0)
        return build_network(name, data.classes, data.input_shape[-1]).eval()


def halved(network: nn.Module, data: Data) -> tuple[ChannelGroups, Costs, object]:
    """Return groups, costs, and widths that shrink together to half the MACs."""
    groups = trace(network, data.input_shape)
    budget = Budget(groups, {"flops": 0.5}, min_keep=0.0)
    return groups, budget.costs, budget.project(groups.widths, budget.min_widths)


def macs_per_second(dtype: torch.dtype, device: torch.device | str = "cpu") -> float:
    """Return what ``device`` does in large matrix products of ``dtype``."""
    side = 1024 if torch.device(device).type == "cpu" else 8192
    a = torch.randn(side, side).to(device, dtype)

    def multiply() -> None:
        for _ in range(20):
            product = a @ a
        product[0, 0].item()  # waits for a GPU

    (times,) = seconds(multiply, n=5)
    return 20 * side**3 / min(times)
