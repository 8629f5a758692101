"""How long networks take, and what memory, on the device that they are for.

Axis letters: B batch, C channels, H height, W width.
"""

import platform
import time
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from gnnrl_ray.data.loader import InputShape, shapes_of
from gnnrl_ray.errors import InputError
from gnnrl_ray.scoring.layout import channels_last, laid_out, runs

_WARM_UP = 3  # passes that are not counted: memory is taken, kernels are chosen
# The largest block for which glibc learns from its return: see `settle_memory`.
_LEARNT = 31 * 2**20

# Of one network with one batch: milliseconds, images a second, bytes.
Speed = dict[str, float]


def measure_speed(
    networks: Mapping[str, nn.Module],
    input_shape: InputShape,
    *,
    batch: int,
    device: torch.device | str = "cpu",
    rounds: int = 50,
    seconds: float = 10.0,
    memory: bool = True,
) -> dict[str, Speed]:
    """Time ``networks`` in turn, so that whatever else the machine does meets all alike.

    Args:
        networks: by name; moved to ``device``, in evaluation mode.
        input_shape: (C, H, W) of one image, or one such for each that they take.
        batch: B.
        device: where.
        rounds: passes of each network, at least 5.
        seconds: for each network, after which no further round begins.
        memory: whether to measure that, too, for which a pass is profiled.

    Returns:
        By name: ``median_ms`` and ``p95_ms`` of a pass, ``per_second`` images, ``rounds``
        that were timed; ``memory``, the most bytes at any time of a pass, weights included.

    Raises:
        InputError: so many images do not fit in memory.
    """
    try:
        images = images_for(input_shape, batch, torch.device(device))
        every = [network.eval().to(device) for network in networks.values()]
        if all(runs(network, images) for network in every):
            for network in every:
                channels_last(network)
        else:
            images = tuple(each.contiguous() for each in images)
        settle_memory()  # anew: who tried them has taken and freed some
        found = _measured(networks, images, rounds, seconds)
        if memory:
            for name, network in networks.items():
                found[name]["memory"] = _memory(network, images)
        return found
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if "memory" not in str(error).lower():
            raise
        raise InputError(
            f"--batch {batch} does not fit in memory: {str(error).splitlines()[0]}"
        ) from error


def _measured(
    networks: Mapping[str, nn.Module], images: tuple[Tensor, ...], rounds: int,
    seconds: float,
) -> dict[str, Speed]:  # fmt: skip
    milliseconds: dict[str, list[float]] = {name: [] for name in networks}
    start = time.perf_counter()
    for number in range(-_WARM_UP, rounds):
        if number >= 5 and time.perf_counter() - start > seconds * len(networks):
            break
        # Forth and back: what else the machine does comes in turns, too.
        for name in [*networks][:: -1 if number % 2 else 1]:
            passed = _milliseconds(networks[name], images)
            if number >= 0:
                milliseconds[name].append(passed)
    return {
        name: {
            "median_ms": float(np.median(times)),
            "p95_ms": float(np.quantile(times, 0.95)),
            "per_second": len(images[0]) / float(np.median(times)) * 1e3,
            "rounds": len(times),
        }
        for name, times in milliseconds.items()
    }


def device_name(device: torch.device) -> str:
    """Return what was measured on: a GPU's name, or the machine and its threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    machine = platform.processor() or platform.machine()
    return f"{device.type}: {machine}, {torch.get_num_threads()} threads"


def images_for(
    input_shape: InputShape, batch: int, device: torch.device
) -> tuple[Tensor, ...]:
    """Return one batch for each image that a network takes, channels-last."""
    settle_memory()
    every = [torch.rand(batch, *shape, device=device) for shape in shapes_of(input_shape)]
    return tuple(map(laid_out, every))


def settle_memory() -> None:
    """Let this process keep the memory of hidden states from pass to pass.

    glibc returns blocks to the system that are larger than any that was freed before, and
    is given them back page by page: in a young process, that is a quarter of a pass, and
    of another share for every network.
    """
    torch.ones(_LEARNT, dtype=torch.uint8)


def _milliseconds(network: nn.Module, images: tuple[Tensor, ...]) -> float:
    start = time.perf_counter()
    with torch.inference_mode():
        network(*images)
    if images[0].device.type == "cuda":
        torch.cuda.synchronize(images[0].device)
    return (time.perf_counter() - start) * 1e3


def _memory(network: nn.Module, images: tuple[Tensor, ...]) -> int:
    """Return the most bytes in use at any time of a pass: weights, input and the rest."""
    tensors = [*network.parameters(), *network.buffers(), *images]
    own = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    device = images[0].device
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        _milliseconds(network, images)
        return own + torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        _milliseconds(network, images)
    events = profiler.profiler.kineto_results.events()
    taken = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    return own + max(0, *np.cumsum([size for _, size in sorted(taken)]).tolist(), 0)
