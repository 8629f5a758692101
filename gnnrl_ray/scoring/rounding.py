"""Numbers of channels that a device is quick with.

Vector units take channels in fours, eights or sixteens: fewer cost as much.
"""

import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gnnrl_ray.scoring.speed import settle_memory

_MULTIPLES = (16, 8, 4, 2)
_WIDTHS = np.arange(9, 49)
_SIDE, _PASSES, _WARM_UP = 16, 7, 3
_SLOWER = 1.02  # of which no more is said to be no slower


def quick_multiple(device: torch.device, batch: int = 1) -> int:
    """Return the largest multiple that widths can be rounded up to and take no longer.

    Convolutions of 3 x 3 on ``batch`` images of 16 x 16, from 9 to 48 channels to as many,
    are timed; with a GPU in bfloat16, as networks are scored and trained there.

    Args:
        device: to time on.
        batch: images at a time.
    """
    return _largest_free(_seconds(device, batch))


def _largest_free(seconds: np.ndarray) -> int:
    """Return the multiple, by the ``seconds`` that each of the widths takes."""
    for multiple in _MULTIPLES:
        rounded = -(-_WIDTHS // multiple) * multiple
        there = rounded <= _WIDTHS[-1]
        taken = seconds[rounded[there] - _WIDTHS[0]]
        if taken.mean() <= _SLOWER * seconds[there].mean():
            return multiple
    return 1


def _seconds(device: torch.device, batch: int) -> np.ndarray:
    """Return the least seconds of some passes for each of the widths."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    taken = np.full((_PASSES, len(_WIDTHS)), np.inf)
    generator = np.random.default_rng(0)
    settle_memory()
    with torch.inference_mode():
        layers = [_layer(int(width), batch, device, dtype) for width in _WIDTHS]
        for turn in range(-_WARM_UP, _PASSES):
            # Not in the order of widths, which what else the machine does would look like.
            for index in generator.permutation(len(_WIDTHS)):
                seconds = _pass(*layers[index])
                if turn >= 0:
                    taken[turn, index] = seconds
    return taken.min(0)


def _layer(
    width: int, batch: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    like = {"device": device, "dtype": dtype}
    images = torch.randn(batch, width, _SIDE, _SIDE, **like)
    weight = torch.randn(width, width, 3, 3, **like)
    last = torch.channels_last
    return images.to(memory_format=last), weight.to(memory_format=last)


def _pass(images: Tensor, weight: Tensor) -> float:
    start = time.perf_counter()
    for _ in range(5):
        F.conv2d(images, weight, padding=1)
    if images.device.type == "cuda":
        torch.cuda.synchronize(images.device)
    return time.perf_counter() - start
