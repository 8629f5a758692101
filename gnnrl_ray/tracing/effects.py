"""What every operation does to channels.

Views, splits and shuffles need no rules: they run on the positions of their input, and
where the positions end up says all.

Axis letters: C channels of one operation.
"""

import math
import operator
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from gnnrl_ray.data.loader import InputShape
from gnnrl_ray.tracing.labels import Labels, Stream, Transit, WholeError
from gnnrl_ray.tracing.operations import FIXED, RESHAPES, ZERO, select_channels
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
    if not _has_tensor(flow.values[node]):
        if not _reads_kernel(flow, node):
            sources = (n for n in node.all_input_nodes if _has_tensor(flow.values[n]))
            flow.read_bare(*sources)
        return []
    _spell_out(flow, node)
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


def _reads_kernel(flow: Labels, node: fx.Node) -> bool:
    """Say whether all that is read of a weight is its format, or its kernel's size."""
    if node.target is not getattr:
        return False
    if node.args[1] != "shape":
        return node.args[1] in ("dtype", "device", "ndim", "requires_grad", "is_cuda")
    axes = range(len(flow.values[node]))
    taken = [u.args[1] if u.target is operator.getitem else slice(None) for u in node.users]
    read = [axes[i] if isinstance(i, slice) else [axes[i]] for i in taken]
    return all(axis >= 2 for part in read for axis in part)


def _has_tensor(value: object) -> bool:
    found: list[bool] = []
    fx.node.map_aggregate(value, lambda v: found.append(isinstance(v, Tensor)))
    return any(found)


def _unknown(flow: Labels, node: fx.Node) -> None:
    raise TraceError(
        describe_node(node, "an operation whose effect on channels is unknown")
    )


def _skip(flow: Labels, node: fx.Node) -> None:
    flow.streams[node] = flow.streams[node.all_input_nodes[0]]


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
    fx.node.map_arg(node.args[0], lambda n: streams.append(flow.stream(n)))
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
            if isinstance(flow.values[source], Tensor):
                _lay_constant(flow, source, labels)
    else:
        raise flow.whole("parameters that are calculated with outside of a layer")


def _concat(flow: Labels, node: fx.Node) -> None:
    given = flow.arguments("tensors", "dim")
    dim = given.get("dim", given.get("axis", 0)) % len(flow.shape(node))
    streams: list[Stream] = []
    # Not ``all_input_nodes``: what is joined to itself counts twice.
    fx.node.map_arg(node.args[0], lambda n: streams.append(flow.stream(n)))
    first = streams[0]
    if any(stream.axis != first.axis for stream in streams):
        raise flow.whole("channels at different axes are joined")
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
    if others and node.target != "expand_as":
        raise flow.whole("an index that depends on the image")
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
    in_order = torch.arange(channels).repeat_interleave(each)
    if direct and not rest and torch.equal(taken, in_order):
        if any(_counts_channels(flow, n) for i, n in enumerate(sizes) if i != axis):
            return  # a quotient that is right for the dense network only
        if node.target is operator.getitem and _indexes(node.args[1], origin.axis):
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


def _counts_channels(flow: Labels, node: object) -> bool:
    """Say whether a number is calculated from how many channels something has."""
    return isinstance(node, fx.Node) and any(
        _is_channels(flow, *size) for size in _sizes_read(flow, node)
    )


def _spell_out(flow: Labels, node: fx.Node) -> None:
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


def _sizes_read(flow: Labels, node: fx.Node) -> list[tuple[fx.Node, int | None]]:
    """Return the sizes that a number, or several, are made of: tensors and axes.

    The axis is ``None`` for a tensor's number of elements.
    """
    value, sources = flow.values[node], node.all_input_nodes
    if node.op == "get_attr" or _has_tensor(value):
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


_CONVOLUTIONS = {F.conv1d, F.conv2d, F.conv3d}
_TRANSPOSED = {F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d}
# One number of one number, by what torch, F and tensors call it.
_UNARY = (
    "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "silu", "gelu", "mish",
    "softplus", "softsign", "softshrink", "hardshrink", "tanhshrink", "threshold",
    "sigmoid", "logsigmoid", "tanh", "hardtanh", "hardswish", "hardsigmoid", "rrelu", "exp",
    "expm1", "log", "log1p", "log2", "sqrt", "rsqrt", "reciprocal", "abs", "sign", "clamp",
    "clamp_min", "clamp_max", "clip", "square", "neg", "sin", "cos", "tan", "atan", "erf",
    "floor", "ceil", "round", "trunc", "nan_to_num", "masked_fill", "logical_not",
    "zeros_like", "ones_like", "full_like", "isnan", "isinf", "isfinite",
)  # fmt: skip
_COMBINING = (
    "add", "sub", "rsub", "maximum", "minimum", "where", "addcmul", "addcdiv", "lerp", "gt",
    "ge", "lt", "le", "eq", "ne", "logical_and", "logical_or", "atan2", "hypot", "fmod",
    "remainder", "heaviside", "copysign",
)  # fmt: skip
_SCALING = ("mul", "multiply", "div", "divide", "true_divide", "floor_divide", "pow")
# What moves positions about.
_MOVING = (
    "flatten",
    "unflatten",
    "reshape",
    "squeeze",
    "unsqueeze",
    "permute",
    "transpose",
    "swapaxes",
    "movedim",
    "chunk",
    "split",
    "tensor_split",
    "unbind",
    "narrow",
    "flip",
    "roll",
    "index_select",
    "repeat_interleave",
    "select",
    "t",
)
_REDUCING = ("mean", "sum", "amax", "amin", "prod", "logsumexp", "std", "var", "norm")
_MIXING = (
    "matmul", "bmm", "mm", "einsum", "baddbmm", "addmm", "cumsum", "cumprod", "sort",
    "argsort", "topk", "argmax", "argmin", "median", "quantile", "kthvalue", "cdist",
    "gather", "scatter", "scatter_add", "normalize", "local_response_norm",
    "cosine_similarity", "scaled_dot_product_attention", "multi_head_attention_forward",
    "unfold", "fold", "cross", "tril", "triu", "dot", "outer", "kron", "bilinear",
)  # fmt: skip


def _called(*names: str, in_place: bool = False) -> set:
    """Return whatever goes by one of ``names``: functions, methods, operators."""
    found: set = set(names)
    if in_place:
        found |= {f"{name}_" for name in names}
    for module in (torch, F, operator, torch.linalg, torch.special):
        for name in (*names, *(f"{name}_" for name in names)):
            found.add(getattr(module, name, None))
    return found - {None}


_NORMS = _called("norm")  # of which the second argument is not an axis


def _layers(*names: str) -> set:
    """Return torch's modules of these names, for as many dimensions as there are."""
    every = {
        f"{name}{dimensions}" for name in names for dimensions in ("", "1d", "2d", "3d")
    }
    return {getattr(nn, name) for name in every if hasattr(nn, name)}


_TABLES: dict[Callable[[Labels, fx.Node], None], set] = {
    _activation: _called(*_UNARY, in_place=True) | _layers(
        "ReLU", "ReLU6", "LeakyReLU", "ELU", "SELU", "CELU", "SiLU", "GELU", "Mish",
        "Softplus", "Softsign", "Softshrink", "Hardshrink", "Tanhshrink", "Threshold",
        "Sigmoid", "LogSigmoid", "Tanh", "Hardtanh", "Hardswish", "Hardsigmoid", "RReLU",
    ),
    _prelu: {nn.PReLU, F.prelu, torch.prelu},
    _gated: {nn.GLU, F.glu},
    _softmax: {nn.Softmax, nn.LogSoftmax, nn.Softmin, *_called("softmax", "log_softmax")},
    _pool: _layers(
        "MaxPool", "AvgPool", "LPPool", "Upsample", "UpsamplingNearest",
        "UpsamplingBilinear", "ZeroPad", "ConstantPad", "ReflectionPad", "ReplicationPad",
        "CircularPad",
    ) | {
        F.max_pool1d, F.max_pool2d, F.max_pool3d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d,
        F.lp_pool1d, F.lp_pool2d, F.interpolate, F.upsample, torch.max_pool1d,
        torch.max_pool2d, torch.max_pool3d, torch.avg_pool1d, torch._C._nn.avg_pool2d,
        torch._C._nn.avg_pool3d,
    },
    _adaptive_pool: _layers("AdaptiveAvgPool", "AdaptiveMaxPool") | {
        F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d,
        F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d,
        torch.adaptive_avg_pool1d,
    },
    _reduce: _called(*_REDUCING),
    _extreme: {torch.max, torch.min, "max", "min"},
    _conv: _layers("Conv", "ConvTranspose") | _CONVOLUTIONS | _TRANSPOSED,
    _linear: {nn.Linear, F.linear},
    _norm: _layers("BatchNorm", "SyncBatchNorm", "InstanceNorm"),
    _function_norm: {F.batch_norm, F.instance_norm},
    _group_norm: {nn.GroupNorm},
    _layer_norm: {nn.LayerNorm, F.layer_norm, nn.RMSNorm, F.rms_norm},
    _add: _called(*_COMBINING, in_place=True) | {operator.iadd, operator.isub},
    _multiply: _called(*_SCALING, in_place=True) | {
        operator.imul, operator.ipow, operator.truediv, operator.itruediv,
        operator.floordiv, operator.ifloordiv, operator.mod, operator.imod,
    },
    _concat: _called("cat", "concat", "concatenate"),
    _stack: {torch.stack},
    _pad: {F.pad},
    _padded: {select_channels},
    _rearrange: _called(*_MOVING) | {
        nn.Flatten, nn.Unflatten, nn.ChannelShuffle, F.channel_shuffle,
        torch.channel_shuffle, operator.getitem, "view", "expand", "expand_as", "repeat",
        "view_as", "reshape_as",
    },
    _mix: _layers("PixelShuffle", "PixelUnshuffle") | {F.pixel_shuffle, F.pixel_unshuffle},
    _mixing: _called(*_MIXING) | {
        operator.matmul, nn.MultiheadAttention, nn.LocalResponseNorm, nn.CosineSimilarity,
        nn.Bilinear, nn.TransformerEncoderLayer, nn.TransformerEncoder, nn.LSTM, nn.GRU,
        nn.RNN, nn.Softmax2d, nn.Unfold, nn.Fold,
    },
    # Leave values as they are, so that nothing is recorded of them.
    _skip: _layers("Identity", "Dropout", "AlphaDropout", "FeatureAlphaDropout") | {
        F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout,
        F.feature_alpha_dropout, "torchvision.ops.stochastic_depth:stochastic_depth",
        "contiguous", "clone", "detach", "to",
        "type", "type_as", "float", "half", "double", "bfloat16", torch.clone,
    },
}  # fmt: skip
_RULES = {target: rule for rule, table in _TABLES.items() for target in table}
# Each number of the result comes of the one at the same place in what it is made of.
_ONE_BY_ONE = (
    _TABLES[_activation] | _TABLES[_add] | _TABLES[_multiply] | _TABLES[_skip]
    | _called("view", "reshape", "squeeze", "unsqueeze", "flatten", "expand", "reshape_as")
    | {operator.getitem}
)  # fmt: skip
