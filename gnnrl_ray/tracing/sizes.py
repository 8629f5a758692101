"""Numbers that a network reads from the shapes of its tensors, and which count channels.

What they were read from may lose channels that what is done with them keeps.
"""

import operator
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx

from gnnrl_ray.tracing.labels import Labels, Stream
from gnnrl_ray.tracing.network import IMAGES
from gnnrl_ray.tracing.operations import RESHAPES
from gnnrl_ray.tracing.symbolic import describe_node


def spell_out(flow: Labels, node: fx.Node) -> None:
    """Write numbers of channels as they are: what they were read from may change alone.

    Of views, removal rewrites what has become of the number of what is viewed.
    """
    tensors = [n for n in node.all_input_nodes if n in flow.streams]
    own = flow.labels_of(tensors[0]) if tensors and node.target in RESHAPES else None

    def number(given: fx.Node) -> object:
        read = _sizes_read(flow, given)
        counted = [flow.labels_of(s[0]) for s in read if _is_channels(flow, *s)]
        others = [n for n in counted if own is None or not torch.equal(n, own)]
        if not others:
            return given
        if not any(_is_images(flow, *size) for size in read):
            return flow.values[given]
        for labels in (*others, *map(flow.labels_of, tensors)):
            flow.freeze(labels, describe_node(node, "counted together with the images"))
        return given

    node.args, node.kwargs = fx.node.map_arg((node.args, node.kwargs), number)


def counts_channels(flow: Labels, node: object) -> bool:
    """Say whether a number is calculated from how many channels something has."""
    return isinstance(node, fx.Node) and any(
        _is_channels(flow, *size) for size in _sizes_read(flow, node)
    )


def reads_kernel(flow: Labels, node: fx.Node) -> bool:
    """Say whether all that is read of a weight is its format, or its kernel's size."""
    if node.target is not getattr:
        return False
    if node.args[1] != "shape":
        return node.args[1] in ("dtype", "device", "ndim", "requires_grad", "is_cuda")
    axes = range(len(flow.values[node]))
    taken = [u.args[1] if u.target is operator.getitem else slice(None) for u in node.users]
    read = [axes[i] if isinstance(i, slice) else [axes[i]] for i in taken]
    return all(axis >= 2 for part in read for axis in part)


def has_tensor(value: object) -> bool:
    """Say whether ``value`` is a tensor, or has one in it."""
    found: list[bool] = []
    fx.node.map_aggregate(value, lambda v: found.append(isinstance(v, Tensor)))
    return any(found)


def _sizes_read(flow: Labels, node: fx.Node) -> list[tuple[fx.Node, int | None]]:
    """Return the sizes that a number, or several, are made of: tensors and axes.

    The axis is ``None`` for a tensor's number of elements.
    """
    value, sources = flow.values[node], node.all_input_nodes
    if node.op == "get_attr" or has_tensor(value):
        return []
    if isinstance(value, tuple):
        return _entries_read(flow, node, range(len(value)))
    if sources and isinstance(flow.values[sources[0]], Tensor):
        tensor = sources[0]
        if node.target == "size":
            (axis,) = (*node.args[1:], *node.kwargs.values())
            return [(tensor, range(len(flow.shape(tensor)))[axis])]
        counts = node.target in ("numel", "nelement", torch.numel)
        return [(tensor, None)] if counts else []
    if node.target is operator.getitem and isinstance(flow.values[sources[0]], tuple):
        return _entries_read(flow, sources[0], [node.args[1]])
    return [size for source in sources for size in _sizes_read(flow, source)]


def _entries_read(
    flow: Labels, node: fx.Node, which: Iterable[int]
) -> list[tuple[fx.Node, int | None]]:
    """Return what :func:`_sizes_read` does, of some of several numbers."""
    sources = node.all_input_nodes
    given = flow.values[sources[0]] if sources else None
    if isinstance(given, Tensor):
        is_shape = node.target == "size" or node.args[1:] == ("shape",)
        axes = range(given.dim()) if is_shape else ()
        return [(sources[0], axes[i]) for i in which if axes]
    if node.target is operator.getitem and isinstance(given, tuple):
        taken = range(len(given))[fx.node.map_arg(node.args[1], flow.values.__getitem__)]
        return _entries_read(flow, sources[0], [taken[i] for i in which])
    if node.target is not operator.add:
        return [size for source in sources for size in _sizes_read(flow, source)]
    read = []
    joined = [entry for side in node.args for entry in _entries(flow, side)]
    for source, at in (joined[i] for i in which):
        if at is not None:
            read += _entries_read(flow, source, [at])
        elif isinstance(source, fx.Node):
            read += _sizes_read(flow, source)
    return read


def _entries(flow: Labels, side: Any) -> list[tuple[Any, int | None]]:
    """Return each number of a tuple, and which it is of a node that returns them all."""
    if isinstance(side, fx.Node):
        return [(side, i) for i in range(len(flow.values[side]))]
    return [(entry, None) for entry in side]


def _is_channels(flow: Labels, tensor: fx.Node, axis: int | None) -> bool:
    """Say whether how many channels ``tensor`` has is in its size along ``axis``."""
    stream = flow.streams.get(tensor)
    if isinstance(stream, Stream):
        return axis in (stream.axis, None)
    return stream is not None and (axis is None or not _is_images(flow, tensor, axis))


def _is_images(flow: Labels, tensor: fx.Node, axis: int | None) -> bool:
    """Say whether how many images there are is in a size of ``tensor`` along ``axis``."""
    first = not axis and flow.shape(tensor)[0] == IMAGES
    return first and _axis_of(flow, tensor) != axis


def _axis_of(flow: Labels, node: fx.Node) -> int:
    stream = flow.streams.get(node)
    return stream.axis if isinstance(stream, Stream) else -1
