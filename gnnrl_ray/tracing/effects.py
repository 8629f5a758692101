"""What every operation does to channels.

Views, splits and shuffles need no rules: they run on the positions of their input, and
where the positions end up says all.

Axis letters: C channels of one operation.
"""

import math
import operator
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torchvision.ops import StochasticDepth, stochastic_depth

from gnnrl_ray.tracing.labels import Labels, Stream, Transit
from gnnrl_ray.tracing.operations import FIXED, RESHAPES, ZERO, select_channels
from gnnrl_ray.tracing.symbolic import TraceError, get_tensor


def follow(
    graph: fx.GraphModule, input_shape: tuple[int, ...], skip: bool = False
) -> tuple[Labels, list[str]]:
    """Follow the channels of one image of ``input_shape`` (C, H, W) through ``graph``.

    Args:
        graph: of the network.
        input_shape: (C, H, W) of one image.
        skip: leave whole what is not understood.

    Returns:
        The labels, and what was not understood.

    Raises:
        TraceError: an operation is not understood, and ``skip`` is off.
    """
    flow, left = Labels(graph, input_shape), []
    for node in graph.graph.nodes:
        flow.node = node
        if node.op == "placeholder":
            if isinstance(flow.values[node], Tensor):
                fixed = torch.full((flow.shape(node)[1],), FIXED)
                flow.streams[node] = Stream(fixed, 1, -1)
        elif node.op == "output":
            for source in node.all_input_nodes:
                flow.freeze_node(source, "the network's output")
        elif any(n in flow.several for n in node.all_input_nodes):
            flow.leave(node)
        elif node.op != "get_attr":
            left += _follow_node(flow, node, skip)
    flow.freeze_bare()
    return flow, left


def _follow_node(flow: Labels, node: fx.Node, skip: bool) -> list[str]:
    """Apply the node's rule; return what was not understood."""
    inputs = [n for n in node.all_input_nodes if n in flow.streams]
    if not inputs or not _has_tensor(flow.values[node]):
        flow.read_bare(*node.all_input_nodes)
        return []
    target = node.target
    if node.op == "call_module":
        target = type(flow.graph.get_submodule(str(node.target)))
    try:
        _RULES.get(target, _unknown)(flow, node)
    except TraceError as error:
        # What only reads channels that are fixed can do nothing to any.
        free = any((flow.labels_of(n) != FIXED).any() for n in inputs)
        if free and not skip:
            raise
        flow.leave(node)
        return [str(error)] * free
    return []


def _has_tensor(value: object) -> bool:
    found: list[bool] = []
    fx.node.map_aggregate(value, lambda v: found.append(isinstance(v, Tensor)))
    return any(found)


def _unknown(flow: Labels, node: fx.Node) -> None:
    raise flow.error("an operation whose effect on channels is unknown")


def _skip(flow: Labels, node: fx.Node) -> None:
    flow.streams[node] = flow.streams[node.all_input_nodes[0]]


def _activation(flow: Labels, node: fx.Node) -> None:
    stream = flow.stream(node.all_input_nodes[0])
    if node.op == "call_module":
        module = flow.graph.get_submodule(str(node.target))
        if isinstance(module, nn.PReLU) and module.num_parameters > 1:
            flow.lay(f"{node.target}.weight", stream.labels)
    flow.record("activation", stream.labels, stream.labels, stream.axis)


def _pool(flow: Labels, node: fx.Node) -> None:
    labels = flow.stream(node.all_input_nodes[0], 1).labels
    flow.record("pool", labels, labels)


def _adaptive_pool(flow: Labels, node: fx.Node) -> None:
    labels = flow.stream(node.all_input_nodes[0], 1).labels
    alone = flow.shape(node).numel() == len(labels)
    flow.record("pool", labels, labels, everywhere=alone)


def _reduce(flow: Labels, node: fx.Node) -> None:
    source = node.all_input_nodes[0]
    stream, given = flow.stream(source), flow.arguments("input", "dim", "keepdim")
    count, over = len(flow.shape(source)), given.get("dim")
    over = range(count) if over is None else [over] if isinstance(over, int) else over
    over = {axis % count for axis in over}
    if stream.axis in over:
        raise flow.error("a mean or a sum over channels")
    kept = given.get("keepdim", False)
    axis = stream.axis - (0 if kept else sum(a < stream.axis for a in over))
    alone = flow.shape(node).numel() == len(stream.labels)
    flow.record("pool", stream.labels, stream.labels, axis, everywhere=alone)


def _conv(flow: Labels, node: fx.Node) -> None:
    inputs = flow.stream(node.all_input_nodes[0], 1).labels
    names = flow.tensor_names()
    if node.op == "call_module":
        module = flow.graph.get_submodule(str(node.target))
        groups, transposed = module.groups, module.transposed
    else:
        transposed = node.target is F.conv_transpose2d
        last = ("output_padding", "groups") if transposed else ("dilation", "groups")
        order = ("input", "weight", "bias", "stride", "padding", *last)
        groups = flow.arguments(*order).get("groups", 1)
    weight = get_tensor(flow.graph, names["weight"])
    depthwise = groups == len(inputs) > 1
    if depthwise:
        each = weight.shape[1] if transposed else weight.shape[0] // groups
        outputs = inputs.repeat_interleave(each)
        flow.lay(names["weight"], inputs if transposed else outputs)
    else:
        outputs = _filters(flow, names["weight"], inputs, groups, transposed)
    if "bias" in names:
        flow.lay(names["bias"], outputs)
    shape = flow.shape(node.all_input_nodes[0] if transposed else node)
    flow.record(
        "conv", inputs, outputs, weight=flow.name_of(names["weight"]), groups=groups,
        bias="bias" in names, kernel=math.prod(weight.shape[2:]),
        uses=math.prod(shape[2:]), depthwise=depthwise, transposed=transposed,
    )  # fmt: skip


def _filters(
    flow: Labels, name: str, inputs: Tensor, groups: int = 1, transposed: bool = False
) -> Tensor:
    """Return what filters make of ``inputs``; the same filters, the same channels."""
    known = flow.layouts.get(flow.name_of(name))
    shape = get_tensor(flow.graph, name).shape
    if transposed:
        outputs = known.columns if known else flow.mint(groups * shape[1])
    else:
        outputs = known.rows if known else flow.mint(shape[0])
    if not isinstance(outputs, Tensor):
        raise flow.error("weights that are used in two different ways")
    ends = (inputs, outputs) if transposed else (outputs, inputs)
    flow.lay(name, *ends, groups=groups)
    return outputs


def _linear(flow: Labels, node: fx.Node) -> None:
    source = node.all_input_nodes[0]
    inputs, names = flow.stream(source, -1).labels, flow.tensor_names()
    outputs = _filters(flow, names["weight"], inputs)
    if "bias" in names:
        flow.lay(names["bias"], outputs)
    flow.record(
        "linear", inputs, outputs, len(flow.shape(node)) - 1,
        weight=flow.name_of(names["weight"]), bias="bias" in names,
        uses=flow.shape(source).numel() // len(inputs),
    )  # fmt: skip


def _norm(flow: Labels, node: fx.Node) -> None:
    labels = flow.stream(node.all_input_nodes[0], 1).labels
    names = flow.tensor_names()
    for name in names.values():
        flow.lay(name, labels)
    flow.record("norm", labels, labels, bias="bias" in names)


def _group_norm(flow: Labels, node: fx.Node) -> None:
    """Statistics are of several channels: these stay or go together."""
    labels = flow.stream(node.all_input_nodes[0], 1).labels
    blocks = labels.view(flow.graph.get_submodule(str(node.target)).num_groups, -1)
    for other in blocks.T[1:]:
        flow.unite(blocks.T[0], other)
    _norm(flow, node)


def _layer_norm(flow: Labels, node: fx.Node) -> None:
    source = node.all_input_nodes[0]
    stream = flow.stream(source)
    if node.op == "call_module":
        shape = flow.graph.get_submodule(str(node.target)).normalized_shape
    else:
        shape = flow.arguments("input", "normalized_shape")["normalized_shape"]
    if stream.axis >= len(flow.shape(source)) - len(shape):
        flow.freeze(stream.labels, "normalised over all channels together")
    flow.record("norm", stream.labels, stream.labels, stream.axis, bias=True)


def _add(flow: Labels, node: fx.Node) -> None:
    _elementwise(flow, node, "add")


def _multiply(flow: Labels, node: fx.Node) -> None:
    _elementwise(flow, node, "multiply")


def _elementwise(flow: Labels, node: fx.Node, kind: str) -> None:
    """Tie channels that meet; a single one that all others meet is tied to none."""
    if any(_counts_channels(flow, n) for n in node.all_input_nodes):
        raise flow.error("the number of channels is calculated with")
    count, shape = len(flow.shape(node)), flow.shape(node)
    tensors = [n for n in node.all_input_nodes if isinstance(flow.values[n], Tensor)]
    streams = {n: flow.stream(n) for n in tensors if n in flow.streams}
    wide = [n for n, s in streams.items() if len(s.labels) > 1] or list(streams)
    main = streams[wide[0]]
    axis = main.axis - len(flow.shape(wide[0]))  # from the end, as broadcasting does
    if shape[axis] != len(main.labels):
        raise flow.error("a single channel meets several")
    for other in tensors:
        extent = flow.shape(other)[axis] if len(flow.shape(other)) >= -axis else 1
        if other in streams:
            stream = streams[other]
            elsewhere = stream.axis - len(flow.shape(other)) != axis
            if elsewhere and len(stream.labels) > 1:
                raise flow.error("channels at different axes meet")
            if other is not wide[0] and extent == len(main.labels) and not elsewhere:
                flow.unite(main.labels, stream.labels)
        elif extent == 1:
            flow.read_bare(other)
        else:
            if other.op != "get_attr":
                raise flow.error("a parameter used outside of a layer")
            across = len(flow.shape(other)) + axis
            flow.lay(str(other.target), main.labels, axis=across)
    flow.record(kind, streams[next(iter(streams))].labels, main.labels, count + axis)


def _concat(flow: Labels, node: fx.Node) -> None:
    given = flow.arguments("tensors", "dim")
    dim = given.get("dim", given.get("axis", 0)) % len(flow.shape(node))
    streams: list[Stream] = []
    # Not ``all_input_nodes``: what is joined to itself counts twice.
    fx.node.map_arg(node.args[0], lambda n: streams.append(flow.stream(n)))
    first = streams[0]
    if any(stream.axis != first.axis for stream in streams):
        raise flow.error("channels at different axes are joined")
    labels = first.labels
    if dim == first.axis:
        labels = torch.cat([stream.labels for stream in streams])
    else:
        for other in streams[1:]:
            flow.unite(labels, other.labels)
    flow.record("concat", first.labels, labels, first.axis)


def _pad(flow: Labels, node: fx.Node) -> None:
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
        raise flow.error("channels padded other than with zeros")
    taken = F.pad(torch.arange(len(stream.labels)), (before, after), value=ZERO)
    _select(flow, stream, flow.mint(len(taken)), taken, source, padded=True)


def _select(
    flow: Labels, stream: Stream, outputs: Tensor, taken: Tensor, source: fx.Node,
    padded: bool = False,
) -> None:  # fmt: skip
    flow.record(
        "select", stream.labels, outputs, stream.axis, taken=taken.numpy(),
        source=source.name, padded=padded,
    )  # fmt: skip


def _padded(flow: Labels, node: fx.Node) -> None:
    source, index = node.all_input_nodes
    taken = flow.values[index]
    outputs = flow.mint(len(taken))
    _select(flow, flow.stream(source, 1), outputs, taken, source, padded=True)


def _mix(flow: Labels, node: fx.Node) -> None:
    """Pixels become channels or channels pixels, a block of them at a time."""
    labels = flow.stream(node.all_input_nodes[0], 1).labels
    if len(flow.shape(node)) != 4:
        raise flow.error("pixels shuffled in other than batches of images")
    before, after = len(labels), flow.shape(node)[1]
    if after >= before:
        outputs = labels.repeat_interleave(after // before)
    else:
        blocks = labels.view(after, -1)
        for other in blocks.T[1:]:
            flow.unite(blocks.T[0], other)
        outputs = blocks[:, 0]
    flow.record("reshape", labels, outputs)


def _rearrange(flow: Labels, node: fx.Node) -> None:
    source, *others = [n for n in node.all_input_nodes if n in flow.streams]
    before = flow.streams[source]
    if others and node.target != "expand_as":
        raise flow.error("an index that depends on the image")
    direct = isinstance(before, Stream)
    if isinstance(before, Stream):
        shape = flow.shape(source)
        before = Transit(source, torch.arange(shape.numel()).view(shape))
    try:
        positions = _rerun(flow, node, source, before.positions)
    except (RuntimeError, TypeError) as error:
        raise flow.error(f"positions cannot be followed ({error})") from error
    flow.streams[node] = Transit(before.source, positions)
    if not isinstance(positions, Tensor):
        return
    origin = flow.stream(before.source)
    shape, channels = flow.shape(before.source), len(origin.labels)
    stride = math.prod(shape[origin.axis + 1 :])
    axis, taken = _along_one_axis(positions // stride % channels)
    if taken is None:
        return
    every = torch.arange(shape.numel()).view(shape)
    if axis == origin.axis and torch.equal(positions, every.index_select(axis, taken)):
        _select(flow, origin, origin.labels[taken], taken, before.source)
        return
    each, rest = divmod(len(taken), channels)
    in_order = torch.arange(channels).repeat_interleave(each)
    if direct and not rest and torch.equal(taken, in_order):
        sizes = _sizes(node)
        if any(_counts_channels(flow, n) for i, n in enumerate(sizes) if i != axis):
            return  # a quotient that is right for the dense network only
        if node.target is operator.getitem and _indexes(node.args[1], origin.axis):
            raise flow.error("channels and pixels are sliced at once")
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
        # A view of a tensor in another memory format may be a copy of positions.
        method = "reshape" if node.target == "view" else str(node.target)
        return getattr(args[0], method)(*args[1:], **kwargs)
    return node.target(*args, **kwargs)


def _sizes(node: fx.Node) -> list:
    """Return the sizes that a view spells out, numbers and nodes."""
    if node.target not in RESHAPES:
        return []
    given = node.args[1:] or tuple(node.kwargs.values())
    return list(given[0] if isinstance(given[0], tuple | list) else given)


def _counts_channels(flow: Labels, node: object) -> bool:
    """Say whether a number is calculated from how many channels something has."""
    if not isinstance(node, fx.Node) or _has_tensor(flow.values[node]):
        return False
    if node.op == "get_attr" or not node.all_input_nodes:
        return False
    source = node.all_input_nodes[0]
    sizes = flow.values[source]
    if node.target is operator.getitem and isinstance(sizes, tuple):
        which = range(len(sizes))[node.args[1]]
        axis = _axis_of(flow, source.all_input_nodes[0])
        return axis in ([which] if isinstance(which, int) else which)
    if node.target == "size" and len(node.args) > 1:
        return bool(node.args[1] % len(flow.shape(source)) == _axis_of(flow, source))
    if source in flow.streams:  # its whole shape, or the number of all its elements
        return node.target not in ("dim", "ndimension", "is_contiguous")
    return any(_counts_channels(flow, n) for n in node.all_input_nodes)


def _axis_of(flow: Labels, node: fx.Node) -> int:
    stream = flow.streams.get(node)
    return stream.axis if isinstance(stream, Stream) else -1


def _along_one_axis(channel: Tensor) -> tuple[int, Tensor | None]:
    """Find the axis along which alone ``channel`` varies, and its values there.

    The first axis is the batch and has no channels. ``None`` if there is no such axis.
    """
    for axis in range(1, channel.dim()):
        flat = channel.movedim(axis, 0).flatten(1)
        if (flat == flat[:, :1]).all():
            return axis, flat[:, 0]
    return 0, None


def _indexes(index: object, axis: int) -> bool:
    """Say whether ``index`` of a tensor spells out what it takes along ``axis``."""
    listed = index if isinstance(index, tuple) else (index,)
    return len(listed) > axis and listed[axis] not in (slice(None), Ellipsis)


_TABLES: dict[Callable[[Labels, fx.Node], None], set] = {
    _activation: {
        nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.SiLU, nn.GELU,
        nn.Mish, nn.Softplus, nn.Sigmoid, nn.LogSigmoid, nn.Tanh, nn.Hardtanh,
        nn.Hardswish, nn.Hardsigmoid, nn.PReLU, F.relu, F.relu6, F.leaky_relu, F.elu,
        F.selu, F.celu, F.silu, F.gelu, F.mish, F.softplus, F.sigmoid, F.logsigmoid,
        F.tanh, F.hardtanh, F.hardswish, F.hardsigmoid, torch.relu, torch.sigmoid,
        torch.tanh, torch.exp, torch.sqrt, torch.abs, torch.clamp, torch.square,
        torch.neg, operator.neg, "relu", "relu_", "sigmoid", "tanh", "exp", "sqrt",
        "abs", "clamp", "square", "neg",
    },
    _pool: {
        nn.MaxPool2d, nn.AvgPool2d,
        nn.LPPool2d, nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d,
        nn.ZeroPad2d, nn.ConstantPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d,
        F.max_pool2d, F.avg_pool2d,
        F.interpolate, torch.max_pool2d, torch._C._nn.avg_pool2d,
    },
    _adaptive_pool: {
        nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, F.adaptive_avg_pool2d,
        F.adaptive_max_pool2d,
    },
    _reduce: {torch.mean, torch.sum, torch.amax, torch.amin, "mean", "sum", "amax",
               "amin"},
    _conv: {nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d,
             nn.ConvTranspose3d, F.conv2d, F.conv_transpose2d},
    _linear: {nn.Linear, F.linear},
    _norm: {nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.InstanceNorm1d,
             nn.InstanceNorm2d, nn.InstanceNorm3d},
    _group_norm: {nn.GroupNorm},
    _layer_norm: {nn.LayerNorm, F.layer_norm},
    _add: {operator.add, operator.iadd, operator.sub, operator.isub, torch.add, torch.sub,
            torch.maximum, torch.minimum, "add", "add_", "sub", "sub_"},
    _multiply: {operator.mul, operator.imul, operator.truediv, operator.itruediv,
                 operator.pow, torch.mul, torch.div, torch.pow, "mul", "mul_", "div",
                 "div_", "pow"},
    _concat: {torch.cat, torch.concat},
    _pad: {F.pad},
    _padded: {select_channels},
    _rearrange: {
        nn.Flatten, nn.ChannelShuffle, F.channel_shuffle, operator.getitem,
        torch.flatten, torch.reshape, torch.squeeze, torch.unsqueeze,
        torch.permute, torch.transpose, torch.swapaxes, torch.movedim, torch.chunk,
        torch.split, torch.tensor_split, torch.unbind, torch.narrow, torch.flip,
        torch.roll, torch.index_select, "flatten", "view", "reshape",
        "squeeze", "unsqueeze", "permute", "transpose", "swapaxes", "movedim", "chunk",
        "split", "tensor_split", "unbind", "narrow", "flip", "roll", "expand", "expand_as",
        "repeat", "index_select", "t",
    },
    _mix: {nn.PixelShuffle, nn.PixelUnshuffle, F.pixel_shuffle, F.pixel_unshuffle},
    # Leave values as they are, so that nothing is recorded of them.
    _skip: {nn.Identity, nn.Dropout, nn.Dropout2d, F.dropout, F.dropout2d, StochasticDepth,
             stochastic_depth, "contiguous", "clone", "detach", "float"},
}  # fmt: skip
_RULES = {target: rule for rule, table in _TABLES.items() for target in table}
