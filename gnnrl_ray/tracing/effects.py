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

from gnnrl_ray.data.loader import InputShape
from gnnrl_ray.tracing.labels import Labels, Stream, Transit, WholeError
from gnnrl_ray.tracing.names import (
    COMBINING,
    CREATING_ALIKE,
    MIXING,
    MOVING,
    REDUCING,
    SCALING,
    UNARY,
    called,
    layers,
)
from gnnrl_ray.tracing.operations import FIXED, RESHAPES, ZERO, select_channels
from gnnrl_ray.tracing.proxies import set_item
from gnnrl_ray.tracing.sizes import counts_channels, has_tensor, reads_kernel, spell_out
from gnnrl_ray.tracing.symbolic import (
    IMAGES,
    TraceError,
    describe_node,
    get_tensor,
)


def follow(
    graph: fx.GraphModule, input_shape: InputShape, skip: bool = False
) -> tuple[Labels, list[str]]:
    """Follow the channels of one image through ``graph``.

    Args:
        graph: of the network.
        input_shape: (C, H, W) of one image, or one such for each that it takes.
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
                flow.read_bare(source)
        elif any(n in flow.several for n in node.all_input_nodes):
            flow.leave(node, "read together with what is whole")
        elif node.op != "get_attr":
            left += _follow_node(flow, node, skip)
    flow.freeze_bare()
    graph.recompile()  # with the numbers that have been spelled out
    return flow, left


def _follow_node(flow: Labels, node: fx.Node, skip: bool) -> list[str]:
    """Apply the node's rule; return what was not understood."""
    inputs = [n for n in node.all_input_nodes if n in flow.streams]
    if not has_tensor(flow.values[node]):
        if not reads_kernel(flow, node):
            sources = (n for n in node.all_input_nodes if has_tensor(flow.values[n]))
            flow.read_bare(*sources)
        return []
    spell_out(flow, node)
    if not inputs:
        # Calculated from parameters; what reads it will say what that means.
        flow.alone.append(node)
        return []
    # What only reads channels that are fixed can do nothing to any.
    free = any((flow.labels_of(n) != FIXED).any() for n in inputs)
    try:
        _rule_of(flow, node)(flow, node)
    except WholeError as error:
        flow.leave(node, str(error))
    except TraceError as error:
        if free and not skip:
            raise
        flow.leave(node, "read by what is not understood")
        return [str(error)] * free
    return []


def _rule_of(flow: Labels, node: fx.Node) -> Callable[[Labels, fx.Node], None]:
    if node.meta.get("identity"):
        return _skip
    if node.meta.get("hooked"):
        return _hooked
    if node.op != "call_module":
        return _RULES.get(node.target) or _RULES.get(_path(node.target), _unknown)
    kinds = type(flow.graph.get_submodule(str(node.target))).__mro__
    # Parametrised, a layer is of a class that is made for it alone.
    torchs = (kind for kind in kinds if kind.__module__.startswith("torch.nn.modules"))
    kind = kinds[0] if kinds[0] in _RULES else next(torchs, None)
    return _RULES.get(kind, _unknown)


def _path(target: object) -> str:
    """Name a function whose package is not imported before somebody uses it."""
    return f"{getattr(target, '__module__', '')}:{getattr(target, '__name__', '')}"


def _unknown(flow: Labels, node: fx.Node) -> None:
    raise TraceError(
        describe_node(node, "an operation whose effect on channels is unknown")
    )


def _skip(flow: Labels, node: fx.Node) -> None:
    source = node.all_input_nodes[0]
    if source in flow.streams:
        flow.streams[node] = flow.streams[source]
    else:  # parameters in the format of a tensor
        _created(flow, node)


def _attribute(flow: Labels, node: fx.Node) -> None:
    """The tensor itself, or the same with axes in another order; nothing else is known."""
    rules = {"data": _skip, "T": _rearrange, "mT": _rearrange}
    rules.get(node.args[1], _unknown)(flow, node)


def _hooked(flow: Labels, node: fx.Node) -> None:
    raise flow.whole("a hook changes what it reads or returns")


def _activation(flow: Labels, node: fx.Node) -> None:
    tensors = [n for n in node.all_input_nodes if isinstance(flow.values[n], Tensor)]
    if len(tensors) > 1:  # bounds that are tensors
        _elementwise(flow, node, "activation")
        return
    stream = flow.stream(node.all_input_nodes[0])
    flow.record("activation", stream.labels, stream.labels, stream.axis)


def _prelu(flow: Labels, node: fx.Node) -> None:
    labels = flow.stream(node.all_input_nodes[0], 1).labels
    if node.op == "call_module":
        slopes = f"{node.target}.weight"
    elif node.all_input_nodes[-1].op == "get_attr":
        slopes = str(node.all_input_nodes[-1].target)
    else:
        raise flow.whole("weights that are computed")
    if get_tensor(flow.graph, slopes).numel() > 1:
        flow.lay(slopes, labels)
    flow.record("activation", labels, labels)


def _gated(flow: Labels, node: fx.Node) -> None:
    """One half of the channels times a gate made of the other, channel by channel."""
    source = node.all_input_nodes[0]
    dim = flow.settings("dim").get("dim", -1)
    stream = flow.stream(source, dim)
    first, second = stream.labels.chunk(2)
    flow.unite(first, second)
    flow.record("multiply", stream.labels, first, stream.axis)


def _softmax(flow: Labels, node: fx.Node) -> None:
    source = node.all_input_nodes[0]
    stream, given = flow.stream(source), flow.settings("dim")
    dim = given.get("dim")
    if dim is None or dim % len(flow.shape(source)) == stream.axis:
        raise flow.whole("normalised over all channels together")
    flow.record("activation", stream.labels, stream.labels, stream.axis)


def _mixing(flow: Labels, node: fx.Node) -> None:
    raise flow.whole("an operation that mixes channels")


def _stack(flow: Labels, node: fx.Node) -> None:
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


def _pool(flow: Labels, node: fx.Node) -> None:
    labels = flow.stream(node.all_input_nodes[0], 1).labels
    flow.record("pool", labels, labels)


def _adaptive_pool(flow: Labels, node: fx.Node) -> None:
    labels = flow.stream(node.all_input_nodes[0], 1).labels
    alone = flow.shape(node).numel() == len(labels) * IMAGES
    flow.record("pool", labels, labels, everywhere=alone)


def _reduce(flow: Labels, node: fx.Node) -> None:
    source = node.all_input_nodes[0]
    orders = ("input", "p", "dim") if node.target in _NORMS else ("input", "dim")
    stream, given = flow.stream(source), flow.arguments(*orders)
    count, over = len(flow.shape(source)), given.get("dim")
    over = range(count) if over is None else [over] if isinstance(over, int) else over
    over = {axis % count for axis in over}
    if stream.axis in over:
        raise flow.whole("a mean or a sum over channels")
    if not isinstance(flow.values[node], Tensor):
        raise flow.whole("several tensors at once")
    kept = len(flow.shape(node)) == count
    axis = stream.axis - (0 if kept else sum(a < stream.axis for a in over))
    alone = flow.shape(node).numel() == len(stream.labels) * IMAGES
    flow.record("pool", stream.labels, stream.labels, axis, everywhere=alone)


def _extreme(flow: Labels, node: fx.Node) -> None:
    """The largest of two tensors, or of one."""
    rule = _add if len(node.all_input_nodes) > 1 else _reduce
    rule(flow, node)


def _conv(flow: Labels, node: fx.Node) -> None:
    inputs = flow.stream(node.all_input_nodes[0], 1).labels
    names = flow.tensor_names()
    if node.op == "call_module":
        module = flow.graph.get_submodule(str(node.target))
        groups, transposed = module.groups, module.transposed
    else:
        transposed = node.target in _TRANSPOSED
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
        raise flow.whole("weights that are used in two different ways")
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
        uses=flow.shape(source).numel() // IMAGES // len(inputs),
    )  # fmt: skip


def _norm(flow: Labels, node: fx.Node) -> None:
    labels = flow.stream(node.all_input_nodes[0], 1).labels
    names = flow.tensor_names()
    for name in names.values():
        flow.lay(name, labels)
    flow.record("norm", labels, labels, bias="bias" in names)


def _function_norm(flow: Labels, node: fx.Node) -> None:
    labels = flow.stream(node.all_input_nodes[0], 1).labels
    tensors = ("running_mean", "running_var", "weight", "bias")
    given = dict(zip(("input", *tensors), node.args, strict=False)) | node.kwargs
    for key in tensors:
        if isinstance(given.get(key), fx.Node):
            _lay_constant(flow, given[key], labels)
    flow.record("norm", labels, labels, bias=given.get("bias") is not None)


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


def _expand_as(flow: Labels, node: fx.Node) -> None:
    """As many channels as another tensor has, which may lose some."""
    _elementwise(flow, node, "reshape")


def _multiply(flow: Labels, node: fx.Node) -> None:
    _elementwise(flow, node, "multiply")


def _elementwise(flow: Labels, node: fx.Node, kind: str) -> None:
    """Tie channels that meet; a single one that all others meet is tied to none."""
    count, shape = len(flow.shape(node)), flow.shape(node)
    if not shape:
        raise flow.whole("a single number of all images")
    tensors = [n for n in node.all_input_nodes if isinstance(flow.values[n], Tensor)]
    streams = {n: flow.stream(n) for n in tensors if n in flow.streams}
    wide = [n for n, s in streams.items() if len(s.labels) > 1] or list(streams)
    main = streams[wide[0]]
    axis = main.axis - len(flow.shape(wide[0]))  # from the end, as broadcasting does
    if shape[axis] != len(main.labels):
        raise flow.whole("a single channel meets several")
    for other in tensors:
        extent = flow.shape(other)[axis] if len(flow.shape(other)) >= -axis else 1
        if other in streams:
            stream = streams[other]
            elsewhere = stream.axis - len(flow.shape(other)) != axis
            if elsewhere and len(stream.labels) > 1:
                raise flow.whole("channels at different axes meet")
            if other is not wide[0] and extent == len(main.labels) and not elsewhere:
                flow.unite(main.labels, stream.labels)
        elif extent == 1:
            flow.read_bare(other)
        elif other.op == "get_attr":
            flow.lay(str(other.target), main.labels, axis=len(flow.shape(other)) + axis)
        else:
            _lay_constant(flow, other, main.labels)
    flow.record(kind, streams[next(iter(streams))].labels, main.labels, count + axis)


def _lay_constant(flow: Labels, node: fx.Node, labels: Tensor) -> None:
    """Say that what ``node`` calculates from parameters alone lies along channels.

    It does where each number comes of the one at the same place in each of them, as with a
    normalisation whose statistics are frozen, or a scale for each channel.
    """
    shape = flow.shape(node)
    if shape.numel() not in (1, len(labels)):
        raise flow.whole("parameters for each channel and position")
    if shape.numel() == 1:
        flow.read_bare(node)
    elif node.op == "get_attr":
        axis = next(a for a, extent in enumerate(shape) if extent == len(labels))
        flow.lay(str(node.target), labels, axis=axis)
    elif node.target in _ONE_BY_ONE and len(labels) not in _sizes(node):
        for source in node.all_input_nodes:
            if isinstance(flow.values[source], Tensor) and source not in flow.streams:
                _lay_constant(flow, source, labels)
    else:
        raise flow.whole("parameters that are calculated with outside of a layer")


def _concat(flow: Labels, node: fx.Node) -> None:
    given = flow.arguments("tensors", "dim")
    dim = given.get("dim", given.get("axis", 0)) % len(flow.shape(node))
    # Not ``all_input_nodes``: what is joined to itself counts twice.
    parts: list[fx.Node] = []
    fx.node.map_arg(flow.tensors(), parts.append)
    streams = [flow.stream(n) for n in parts if n in flow.streams]
    first = streams[0]
    if any(stream.axis != first.axis for stream in streams):
        raise flow.whole("channels at different axes are joined")
    zeros = [_is_zeros(flow, n) for n in parts]
    if len(streams) == 1 and dim == first.axis == 1 and sum(zeros) == len(parts) - 1:
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
    while node.op != "call_module" and node.target in _TABLES[_skip]:
        node = node.all_input_nodes[0]
    return node.op != "call_module" and node.target in (torch.zeros, "new_zeros")


def _created(flow: Labels, node: fx.Node) -> None:
    """Numbers in the format of a tensor have nothing else of it."""
    flow.alone.append(node)


def _set_item(flow: Labels, node: fx.Node) -> None:
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
    elif _taken_along(index, len(flow.shape(node)))[stream.axis] != slice(None):
        raise flow.whole("some of its channels are replaced")
    flow.record("activation", stream.labels, stream.labels, stream.axis)


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
        raise flow.whole("channels padded other than with zeros")
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


def _rearrange(flow: Labels, node: fx.Node) -> None:
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
    sizes, origin = _sizes(node), flow.stream(before.source)
    if not isinstance(positions, Tensor):
        return
    shape, channels = flow.shape(before.source), len(origin.labels)
    stride = math.prod(shape[origin.axis + 1 :])
    axis, taken = _along_one_axis(positions // stride % channels)
    if taken is None:
        return
    every = torch.arange(shape.numel()).view(shape)
    if axis == origin.axis and torch.equal(positions, every.index_select(axis, taken)):
        made_by = flow.operations[origin.operation].operation
        if made_by.padded and made_by.taken is not None:
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
        entries = _taken_along(node.args[1], len(shape)) if indexed else []
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


def _sizes(node: fx.Node) -> list:
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


def _taken_along(index: object, dimensions: int) -> list:
    """Return what ``index`` of a tensor takes along each of its axes."""
    listed = index if isinstance(index, tuple) else (index,)
    listed = [entry for entry in listed if entry is not None]
    rest = [slice(None)] * (dimensions - sum(entry is not ... for entry in listed))
    if any(entry is ... for entry in listed):
        return [e for entry in listed for e in (rest if entry is ... else [entry])]
    return listed + rest


_CONVOLUTIONS = {F.conv1d, F.conv2d, F.conv3d}
_TRANSPOSED = {F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d}
_NORMS = called("norm")  # of which the second argument is not an axis


_TABLES: dict[Callable[[Labels, fx.Node], None], set] = {
    _activation: called(*UNARY, in_place=True) | layers(
        "ReLU", "ReLU6", "LeakyReLU", "ELU", "SELU", "CELU", "SiLU", "GELU", "Mish",
        "Softplus", "Softsign", "Softshrink", "Hardshrink", "Tanhshrink", "Threshold",
        "Sigmoid", "LogSigmoid", "Tanh", "Hardtanh", "Hardswish", "Hardsigmoid", "RReLU",
    ),
    _prelu: {nn.PReLU, F.prelu, torch.prelu},
    _gated: {nn.GLU, F.glu},
    _attribute: {getattr},
    _softmax: {nn.Softmax, nn.LogSoftmax, nn.Softmin, *called("softmax", "log_softmax")},
    _pool: layers(
        "MaxPool", "AvgPool", "LPPool", "Upsample", "UpsamplingNearest",
        "UpsamplingBilinear", "ZeroPad", "ConstantPad", "ReflectionPad", "ReplicationPad",
        "CircularPad",
    ) | {
        F.max_pool1d, F.max_pool2d, F.max_pool3d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d,
        F.lp_pool1d, F.lp_pool2d, F.interpolate, F.upsample, torch.max_pool1d,
        torch.max_pool2d, torch.max_pool3d, torch.avg_pool1d, torch._C._nn.avg_pool2d,
        torch._C._nn.avg_pool3d,
    },
    _adaptive_pool: layers("AdaptiveAvgPool", "AdaptiveMaxPool") | {
        F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d,
        F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d,
        torch.adaptive_avg_pool1d,
    },
    _reduce: called(*REDUCING),
    _extreme: {torch.max, torch.min, "max", "min"},
    _conv: layers("Conv", "ConvTranspose") | _CONVOLUTIONS | _TRANSPOSED,
    _linear: {nn.Linear, F.linear},
    _norm: layers("BatchNorm", "SyncBatchNorm", "InstanceNorm"),
    _function_norm: {F.batch_norm, F.instance_norm},
    _group_norm: {nn.GroupNorm},
    _layer_norm: {nn.LayerNorm, F.layer_norm, nn.RMSNorm, F.rms_norm},
    _add: called(*COMBINING, in_place=True) | {
        operator.iadd, operator.isub, operator.iand, operator.ior, operator.ixor,
    },
    _multiply: called(*SCALING, in_place=True) | {
        operator.imul, operator.ipow, operator.truediv, operator.itruediv,
        operator.floordiv, operator.ifloordiv, operator.mod, operator.imod,
    },
    _expand_as: {"expand_as"},
    _concat: called("cat", "concat", "concatenate"),
    _stack: {torch.stack},
    _created: {*CREATING_ALIKE},
    _set_item: {set_item},
    _pad: {F.pad},
    _padded: {select_channels},
    _rearrange: called(*MOVING) | {
        nn.Flatten, nn.Unflatten, nn.ChannelShuffle, F.channel_shuffle,
        torch.channel_shuffle, operator.getitem, "view", "expand", "repeat",
        "view_as", "reshape_as",
    },
    _mix: layers("PixelShuffle", "PixelUnshuffle") | {F.pixel_shuffle, F.pixel_unshuffle},
    _mixing: called(*MIXING) | {
        operator.matmul, nn.MultiheadAttention, nn.LocalResponseNorm, nn.CosineSimilarity,
        nn.Bilinear, nn.TransformerEncoderLayer, nn.TransformerEncoder, nn.LSTM, nn.GRU,
        nn.RNN, nn.Softmax2d, nn.Unfold, nn.Fold,
    },
    # Leave values as they are, so that nothing is recorded of them.
    _skip: layers("Identity", "Dropout", "AlphaDropout", "FeatureAlphaDropout") | {
        F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout,
        F.feature_alpha_dropout, "torchvision.ops.stochastic_depth:stochastic_depth",
        "contiguous", "clone", "detach", "to", "cpu", "cuda", "type", "type_as", "float",
        "half", "double", "bfloat16", "bool", "int", "long", torch.clone,
        torch.tensor, torch.as_tensor, torch.asarray,
    },
}  # fmt: skip
_RULES = {target: rule for rule, table in _TABLES.items() for target in table}
# Each number of the result comes of the one at the same place in what it is made of.
_ONE_BY_ONE = (
    _TABLES[_activation] | _TABLES[_add] | _TABLES[_multiply] | _TABLES[_skip]
    | called("view", "reshape", "squeeze", "unsqueeze", "flatten", "expand", "reshape_as")
    | {operator.getitem}
)  # fmt: skip
