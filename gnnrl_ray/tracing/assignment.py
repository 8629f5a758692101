"""``x[index] = value`` as operations that return something new.

What is left of a graph then is torch alone: parts that are joined, and conditions.
"""

from typing import Any

import torch
from torch import Tensor

from gnnrl_ray.tracing.proxies import ValueProxy, is_proxy, values_of


def assigned(x: Any, index: Any, value: Any) -> ValueProxy | None:
    """Return ``x``, a proxy, with ``value`` at ``index``; ``None`` if that is not so plain.

    Args:
        x: stands for a tensor; left as it is.
        index: slices of neighbours, numbers and an ellipsis; or a condition of its shape.
        value: a number, or a tensor or what stands for one.
    """
    now, put = values_of(index), values_of(value)
    if isinstance(now, Tensor):
        everywhere = now.dtype is torch.bool and now.shape == x.value.shape
        single = not isinstance(put, Tensor) or put.dim() == 0
        return x.masked_fill(index, value) if everywhere and single else None
    listed = now if isinstance(now, tuple) else (now,)
    if not all(entry is ... or type(entry) in (int, slice) for entry in listed):
        return None
    spread, bounds = taken_along(now, x.value.dim()), []
    for entry, size in zip(spread, x.value.shape, strict=False):
        one = type(entry) is int
        whole = slice(entry % size, entry % size + 1) if one else entry
        start, stop, step = whole.indices(size)
        if step != 1 or stop <= start:
            return None
        bounds.append((start, stop))
    if isinstance(put, Tensor):
        if put.shape != x.value[now].shape:
            value = value.expand_as(x[index])
        for axis, entry in enumerate(spread):
            value = value.unsqueeze(axis) if type(entry) is int else value
    new = _put(x, bounds, 0, value)
    return new if is_proxy(new) else None


def _put(x: Any, bounds: list[tuple[int, int]], axis: int, value: Any) -> Any:
    """Return ``x`` with ``value`` between ``bounds`` of axes from ``axis`` on."""
    while bounds and bounds[0] == (0, x.value.shape[axis]):
        bounds, axis = bounds[1:], axis + 1
    if not bounds:
        if is_proxy(value):
            return value.clone()  # what is assigned stays another tensor
        return value if isinstance(value, Tensor) else torch.full_like(x, value)
    (start, stop), *later = bounds
    before = (slice(None),) * axis
    part = _put(x[(*before, slice(start, stop))], later, axis + 1, value)
    parts = [part]
    if start:
        parts.insert(0, x[(*before, slice(None, start))])
    if stop < x.value.shape[axis]:
        parts.append(x[(*before, slice(stop, None))])
    return torch.cat(parts, axis)


def taken_along(index: object, dimensions: int) -> list:
    """Return what ``index`` of a tensor takes along each of its axes."""
    listed = index if isinstance(index, tuple) else (index,)
    listed = [entry for entry in listed if entry is not None]
    rest = [slice(None)] * (dimensions - sum(entry is not ... for entry in listed))
    if any(entry is ... for entry in listed):
        return [e for entry in listed for e in (rest if entry is ... else [entry])]
    return listed + rest
