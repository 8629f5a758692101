"""What moves channels about: they are joined, padded, chosen, or put in another order.

Views, splits and shuffles need no rules: they run on the positions of their input, and
where the positions end up says all.
"""

import math
import operator

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from gnnrl_ray.tracing.assignment import taken_along
from gnnrl_ray.tracing.labels import Labels, Stream, Transit
from gnnrl_ray.tracing.names import KEEPING
from gnnrl_ray.tracing.operations import FIXED, RESHAPES, ZERO
from gnnrl_ray.tracing.sizes import counts_channels


def concat(flow: Labels, node: fx.Node) -> None:
    """Channels behind each other; those of zeros are padding, as of :func:`pad`."""
    dim = flow.arguments("tensors", "dim").get("dim", 0) % len(flow.shape(node))
    # Not ``all_input_nodes``: what is joined to itself counts twice.
    parts: list[fx.Node] = []
    fx.node.map_arg(flow.tensors(), parts.append)
    streams = [flow.stream(n) for n in parts if n in flow.streams]
    first = streams[0]
    if any(stream.axis != first.axis for stream in streams):
        raise flow.whole("channels at different axes are joined")
    zeros = [_is_zeros(flow, n) for n in parts]
    alone = len(streams) == 1 and sum(zeros) == len(parts) - 1 > 0
    if alone and dim == first.axis == 1:
        indices = [
            torch.full((flow.shape(n)[1],), ZERO) if z else torch.arange(len(first.labels))
            for n, z in zip(parts, zeros, strict=True)
        ]
        taken, (source,) = torch.cat(indices), [n for n in parts if n in flow.streams]
        _select(flow, first, flow.mint(len(taken)), taken, source, padded=True)
        return
    each = [_joined(flow, n, first.axis) for n in parts]
    labels = first.labels
    if dim == first.axis:
        labels = torch.cat(each)
    else:
        for other in each:
            flow.unite(labels, other)
    flow.record("concat", first.labels, labels, first.axis)


def _joined(flow: Labels, node: fx.Node, axis: int) -> Tensor:
    """Return the labels of what is joined: fixed ones where it comes of no image."""
    if node in flow.streams:
        return flow.stream(node).labels
    flow.read_bare(node)
    return torch.full((flow.shape(node)[axis],), FIXED)


def _is_zeros(flow: Labels, node: fx.Node) -> bool:
    """Say whether ``node`` is nothing but zeros, whatever the weights are."""
    while node.op != "call_module" and node.target in KEEPING:
        node = node.all_input_nodes[0]
    return node.op != "call_module" and node.target == "new_zeros"


def stack(flow: Labels, node: fx.Node) -> None:
    """Tensors side by side along an axis of their own."""
    given, shape = flow.arguments("tensors", "dim"), flow.shape(node)
    dim = given.get("dim", 0) % len(shape)
    streams: list[Stream] = []
    fx.node.map_arg(flow.tensors(), lambda n: streams.append(flow.stream(n)))
    first = streams[0]
    for other in streams[1:]:
        if other.axis != first.axis:
            raise flow.whole("channels at different axes are joined")
        flow.unite(first.labels, other.labels)
    axis = first.axis + (dim <= first.axis)
    flow.record("concat", first.labels, first.labels, axis)


def pad(flow: Labels, node: fx.Node) -> None:
    """Zeros around channels make a fresh stream, not a tie.

    Were the channels behind the padding tied to those before it, all stages of a
    CIFAR ResNet would be one group.
    """
    source = node.all_input_nodes[0]
    stream = flow.stream(source)
    given = flow.arguments("input", "pad", "mode", "value")
    pad, at = list(given["pad"]), 2 * (len(flow.shape(source)) - 1 - stream.axis)
    before, after = (*pad[at : at + 2], 0, 0)[:2]
    if not (before or after):
        flow.record("pool", stream.labels, stream.labels, stream.axis)
        return
    plain = given.get("mode", "constant") == "constant" and not given.get("value")
    if not plain or stream.axis != 1 or any(pad[:at]) or min(before, after) < 0:
        raise flow.whole("channels padded other than with zeros")
    taken = F.pad(torch.arange(len(stream.labels)), (before, after), value=ZERO)
    _select(flow, stream, flow.mint(len(taken)), taken, source, padded=True)


def padded(flow: Labels, node: fx.Node) -> None:
    """What has become of padding where channels have been removed before."""
    source, index = node.all_input_nodes
    taken = flow.values[index]
    outputs = flow.mint(len(taken))
    _select(flow, flow.stream(source, 1), outputs, taken, source, padded=True)


def _select(
    flow: Labels, stream: Stream, outputs: Tensor, taken: Tensor, source: fx.Node,
    padded: bool = False,
) -> None:  # fmt: skip
    flow.record(
        "select", stream.labels, outputs, stream.axis, taken=taken.numpy(),
        source=source.name, padded=padded,
    )  # fmt: skip


def mix(flow: Labels, node: fx.Node) -> None:
    """Pixels become channels or channels pixels, a block of them at a time."""
    labels = flow.stream(node.all_input_nodes[0], 1).labels
    if len(flow.shape(node)) != 4:
        raise flow.whole("pixels shuffled in other than batches of images")
    before, after = len(labels), flow.shape(node)[1]
    if after >= before:
        outputs = labels.repeat_interleave(after // before)
    else:
        blocks = labels.view(after, -1)
        for other in blocks.T[1:]:
            flow.unite(blocks.T[0], other)
        outputs = blocks[:, 0]
    flow.record("reshape", labels, outputs)


def replaced(flow: Labels, node: fx.Node) -> None:
    """The same number is put where a condition holds, or to some pixels of all channels."""
    target, index, value = node.args
    stream = flow.stream(target)
    if isinstance(value, fx.Node) and flow.shape(value):
        raise flow.whole("a part of it is replaced by another tensor")
    listed = index if isinstance(index, tuple) else (index,)
    if isinstance(index, fx.Node) and flow.shape(index) == flow.shape(node):
        flow.unite(stream.labels, flow.stream(index, stream.axis).labels)
    elif not all(isinstance(e, slice | int | None) or e is ... for e in listed):
        raise flow.whole("which part of it is replaced is calculated")
    elif taken_along(index, len(flow.shape(node)))[stream.axis] != slice(None):
        raise flow.whole("some of its channels are replaced")
    flow.record("activation", stream.labels, stream.labels, stream.axis)


def rearrange(flow: Labels, node: fx.Node) -> None:
    """Views, splits and shuffles: where do the positions of the input end up?"""
    source, *others = [n for n in node.all_input_nodes if n in flow.streams]
    before = flow.streams[source]
    if others or source is not node.all_input_nodes[0]:
        raise flow.whole("an index or a shape that depends on the image")
    direct = isinstance(before, Stream)
    if isinstance(before, Stream):
        shape = flow.shape(source)
        before = Transit(source, torch.arange(shape.numel()).view(shape))
    try:
        positions = _rerun(flow, node, source, before.positions)
    except (RuntimeError, TypeError) as error:
        raise flow.whole(f"positions cannot be followed ({error})") from error
    flow.streams[node] = Transit(before.source, positions)
    sizes, origin = sizes_given(node), flow.stream(before.source)
    if not isinstance(positions, Tensor):
        return
    shape, channels = flow.shape(before.source), len(origin.labels)
    stride = math.prod(shape[origin.axis + 1 :])
    axis, taken = _along_one_axis(positions // stride % channels)
    if taken is None:
        return
    every = torch.arange(shape.numel()).view(shape)
    if axis == origin.axis and torch.equal(positions, every.index_select(axis, taken)):
        made = origin.operation >= 0  # else it is the image
        made_by = flow.operations[origin.operation].operation if made else None
        if made_by and made_by.padded and made_by.taken is not None:
            # Two steps of one: padding, and a selection of what is padded.
            first = next(n for n in flow.graph.graph.nodes if n.name == made_by.source)
            taken = torch.from_numpy(made_by.taken)[taken]
            outputs = flow.mint(len(taken))
            _select(flow, flow.stream(first, 1), outputs, taken, first, padded=True)
            return
        _select(flow, origin, origin.labels[taken], taken, before.source)
        return
    each, rest = divmod(len(taken), channels)
    indexed = node.target is operator.getitem
    in_order = torch.arange(channels).repeat_interleave(each)
    if direct and not rest and torch.equal(taken, in_order):
        if any(counts_channels(flow, n) for i, n in enumerate(sizes) if i != axis):
            return  # a quotient that is right for the dense network only
        entries = taken_along(node.args[1], len(shape)) if indexed else []
        if indexed and entries[origin.axis] != slice(None):
            raise flow.whole("channels and pixels are sliced at once")
        flow.record("reshape", origin.labels, origin.labels[taken], axis)


def _rerun(flow: Labels, node: fx.Node, source: fx.Node, positions: object) -> object:
    """Apply ``node`` to ``positions`` in place of what ``source`` returned."""

    def value(n: fx.Node) -> object:
        return positions if n is source else flow.values[n]

    args = fx.node.map_arg(node.args, value)
    kwargs = fx.node.map_arg(node.kwargs, value)
    if node.op == "call_module":
        return flow.graph.get_submodule(str(node.target))(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    return node.target(*args, **kwargs)


def sizes_given(node: fx.Node) -> list:
    """Return the sizes that a view spells out, numbers and nodes."""
    if node.target not in RESHAPES:
        return []
    given = node.args[1:] or tuple(node.kwargs.values())
    return list(given[0] if isinstance(given[0], tuple | list) else given)


def _along_one_axis(channel: Tensor) -> tuple[int, Tensor | None]:
    """Find the axis along which alone ``channel`` varies, and its values there.

    The first axis is the batch and has no channels. ``None`` if there is no such axis.
    """
    for axis in range(1, channel.dim()):
        flat = channel.movedim(axis, 0).flatten(1)
        if (flat == flat[:, :1]).all():
            return axis, flat[:, 0]
    return 0, None
