"""Times of networks and of their layers, for a table of latencies.

Axis letters: G prunable groups, L layers, S networks.
"""

import hashlib
import json
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, fx, nn

from gnnrl_ray.home import home
from gnnrl_ray.pruning.costs import Costs
from gnnrl_ray.pruning.importance import rank
from gnnrl_ray.pruning.latency import LatencyTable
from gnnrl_ray.pruning.removal import keep, remove
from gnnrl_ray.scoring.layout import channels_last
from gnnrl_ray.scoring.speed import device_name, images_for
from gnnrl_ray.storage import Storage
from gnnrl_ray.tracing.groups import ChannelGroups
from gnnrl_ray.tracing.shapes import Interpreter

_SCALES, _RANDOM, _HELD = 8, 20, 10  # networks that are timed: alike in all groups, not
_PASSES, _WARM_UP = 7, 2
_LEAST_KEPT = 0.1
_WAY = 2  # of measuring: what was measured in another is not taken for this


def latency_table(
    network: nn.Module,
    groups: ChannelGroups,
    device: torch.device,
    batch: int = 1,
    on_network: Callable[[int, int], None] | None = None,
) -> LatencyTable:
    """Return the table of ``network`` on ``device``, measured once and then kept.

    It is kept under ``home()``, by all modules and operations of the network, device,
    threads, batch, version of torch and the way it was measured in.

    Args:
        network: dense; left as it is.
        groups: of that network.
        device: to time on.
        batch: images at a time.
        on_network: called with how many networks have been timed, of how many.
    """
    name = device_name(device)
    told = [
        _WAY, name, batch, torch.__version__, groups.input_shapes, groups.widths.tolist(),
        [(op.name, op.kernel, op.size, op.groups, op.uses) for op in groups.layers],
        str(groups.graph_of(network)),
    ]  # fmt: skip
    digest = hashlib.sha256(json.dumps(told, default=int).encode()).hexdigest()[:16]
    storage, file = Storage(home()), f"latency/{digest}.json"
    if storage.exists(file):
        try:
            return LatencyTable.from_dict(json.loads(storage.read(file)))
        except (KeyError, TypeError, ValueError):
            pass  # damaged: measured anew
    table = measure_latency(network, groups, device, batch, on_network)
    storage.write(file, json.dumps(table.to_dict()).encode())
    return table


def measure_latency(
    network: nn.Module,
    groups: ChannelGroups,
    device: torch.device,
    batch: int = 1,
    on_network: Callable[[int, int], None] | None = None,
    seed: int = 0,
) -> LatencyTable:
    """Time some dozens of pruned networks and their layers, and fit a table to them.

    Some of them are held back, to say by how much the table is wrong.
    """
    costs, generator = Costs(groups), np.random.default_rng(seed)
    many = groups.multiple_of
    scales = np.linspace(_LEAST_KEPT, 1, _SCALES)[:, None] * np.ones(len(many))
    drawn = generator.uniform(_LEAST_KEPT, 1, (_RANDOM + _HELD, 1)) * np.ones(len(many))
    drawn = (drawn + generator.normal(0, 0.25, drawn.shape)).clip(_LEAST_KEPT, 1)
    shares = np.concatenate([scales, drawn])
    widths = np.maximum(np.rint(shares * groups.widths / many), 1) * many
    widths = np.minimum(widths, groups.widths).astype(np.int64)
    graph, ranking = groups.graph_of(network), rank(network, groups)
    images = images_for(groups.input_shapes, batch, device)
    passes, layers = np.zeros(len(widths)), np.zeros((len(widths), len(groups.layers)))
    # Not in the order of size, which what else the machine does would look like.
    for done, number in enumerate(generator.permutation(len(widths)), start=1):
        removed = remove(graph, groups, keep(ranking, widths[number])).eval().to(device)
        channels_last(removed)
        passes[number], layers[number] = _timed(removed, groups, images)
        if on_network is not None:
            on_network(done, len(widths))
    fitted = slice(None, -_HELD)
    table = LatencyTable.fitted(
        costs, widths[fitted], layers[fitted], passes[fitted],
        device=device_name(device), batch=batch,
    )  # fmt: skip
    found = table(costs, widths[-_HELD:])
    error = float(np.mean(np.abs(found / passes[-_HELD:] - 1)))
    return LatencyTable(table.device, batch, table.layers, table.rest, error)


def _timed(
    network: fx.GraphModule, groups: ChannelGroups, images: tuple[Tensor, ...]
) -> tuple[float, np.ndarray]:
    """Return the microseconds of a pass, and of each layer in it [L]; the least of some."""
    clock, whole = _Clock(network, groups), []
    apart = []
    with torch.inference_mode():
        for number in range(-_WARM_UP, _PASSES):
            start = time.perf_counter()
            network(*images)
            if images[0].device.type == "cuda":
                torch.cuda.synchronize(images[0].device)
            taken = (time.perf_counter() - start) * 1e6
            clock.begin()
            clock.run(*images)
            if number >= 0:
                whole.append(taken)
                apart.append(clock.microseconds())
    layers = np.min(apart, axis=0)
    # Together they cannot take longer than the pass that they are of.
    return min(whole), layers * min(1.0, min(whole) / max(layers.sum(), 1e-9))


class _Clock(Interpreter):
    """Runs a graph and times its layers."""

    def __init__(self, network: fx.GraphModule, groups: ChannelGroups) -> None:
        super().__init__(network)
        self._layers = {op.module: i for i, op in enumerate(groups.layers) if op.module}
        self._count = len(groups.layers)
        self._device = next(network.parameters()).device

    def begin(self) -> None:
        self._times = np.zeros(self._count)
        self._events: list[tuple] = []

    def call_module(self, target, args, kwargs):
        layer = self._layers.get(target)
        if layer is None:
            return super().call_module(target, args, kwargs)
        if self._device.type == "cuda":
            events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            events[0].record()
            result = super().call_module(target, args, kwargs)
            events[1].record()
            self._events.append((layer, *events))
            return result
        start = time.perf_counter()
        result = super().call_module(target, args, kwargs)
        self._times[layer] += (time.perf_counter() - start) * 1e6
        return result

    def microseconds(self) -> np.ndarray:
        if self._events:
            torch.cuda.synchronize(self._device)
        for layer, start, end in self._events:
            self._times[layer] += start.elapsed_time(end) * 1e3
        return self._times
