"""What every operation does to channels.

Axis letters: C channels of one operation.
"""

import math
import operator
import re
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from gnnrl_ray.data.loader import InputShape
from gnnrl_ray.tracing import moves
from gnnrl_ray.tracing.labels import Labels, Stream, WholeError
from gnnrl_ray.tracing.names import (
    COMBINING,
    CREATING_ALIKE,
    KEEPING,
    MIXING,
    MOVING,
    REDUCING,
    SCALING,
    UNARY,
    called,
    layers,
)
from gnnrl_ray.tracing.network import IMAGES, TraceError, get_tensor
from gnnrl_ray.tracing.operations import FIXED, select_channels
from gnnrl_ray.tracing.proxies import set_item
from gnnrl_ray.tracing.sizes import has_tensor, reads_kernel, spell_out
from gnnrl_ray.tracing.symbolic import describe_node, makes_record


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
        elif node.op == "output" or makes_record(node):
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
    rules = {"data": _skip, "T": moves.rearrange, "mT": moves.rearrange}
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


def _pool(flow: Labels, node: fx.Node) -> None:
    labels = _pooled(flow, node)
    flow.record("pool", labels, labels)


def _pooled(flow: Labels, node: fx.Node) -> Tensor:
    """Return the channels of what is pooled or padded, each for itself."""
    source = node.all_input_nodes[0]
    kinds = [node.target]
    if node.op == "call_module":
        kinds = type(flow.graph.get_submodule(str(node.target))).__mro__
    said = re.search(r"(\d)d", " ".join(getattr(kind, "__name__", "") for kind in kinds))
    labels = flow.stream(source, 1).labels
    if said and int(said[1]) > len(flow.shape(source)) - 2:
        raise flow.whole("channels are pooled as positions are")
    return labels


def _adaptive_pool(flow: Labels, node: fx.Node) -> None:
    labels = _pooled(flow, node)
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
    elif node.target in _ONE_BY_ONE and len(labels) not in moves.sizes_given(node):
        for source in node.all_input_nodes:
            if isinstance(flow.values[source], Tensor) and source not in flow.streams:
                _lay_constant(flow, source, labels)
    else:
        raise flow.whole("parameters that are calculated with outside of a layer")


def _created(flow: Labels, node: fx.Node) -> None:
    """Numbers in the format of a tensor have nothing else of it."""
    flow.alone.append(node)


_CONVOLUTIONS = {F.conv1d, F.conv2d, F.conv3d}
_TRANSPOSED = {F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d}
_NORMS = called("norm", "vector_norm")  # of which the second argument is not an axis


_TABLES: dict[Callable[[Labels, fx.Node], None], set] = {
    _activation: called(*UNARY, in_place=True) | layers(
        "ReLU", "ReLU6", "LeakyReLU", "ELU", "SELU", "CELU", "SiLU", "GELU", "Mish",
        "Softplus", "Softsign", "Softshrink", "Hardshrink", "Tanhshrink", "Threshold",
        "Sigmoid", "LogSigmoid", "Tanh", "Hardtanh", "Hardswish", "Hardsigmoid", "RReLU",
    ),
    _prelu: {nn.PReLU, F.prelu, torch.prelu},
    _gated: {nn.GLU, F.glu},
    _attribute: {getattr},
    _softmax: called("softmax", "log_softmax", "softmin") | {
        nn.Softmax, nn.LogSoftmax, nn.Softmin,
    },
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
    moves.concat: called("cat", "concat", "concatenate"),
    moves.stack: {torch.stack},
    _created: {*CREATING_ALIKE},
    moves.replaced: {set_item},
    moves.pad: {F.pad},
    moves.padded: {select_channels},
    moves.rearrange: called(*MOVING) | {
        nn.Flatten, nn.Unflatten, nn.ChannelShuffle, F.channel_shuffle,
        torch.channel_shuffle, operator.getitem, "view", "expand", "repeat",
        "view_as", "reshape_as",
    },
    moves.mix: layers("PixelShuffle", "PixelUnshuffle") | {
        F.pixel_shuffle, F.pixel_unshuffle,
    },
    _mixing: called(*MIXING) | {
        "torchvision.models.swin_transformer:shifted_window_attention",
        "torchvision.models.video.swin_transformer:shifted_window_attention_3d",
        operator.matmul, nn.MultiheadAttention, nn.LocalResponseNorm, nn.CosineSimilarity,
        nn.CrossMapLRN2d,
        nn.Bilinear, nn.TransformerEncoderLayer, nn.TransformerEncoder, nn.LSTM, nn.GRU,
        nn.RNN, nn.Softmax2d, nn.Unfold, nn.Fold,
    },
    # Leave values as they are, so that nothing is recorded of them.
    _skip: KEEPING | layers("Identity", "Dropout", "AlphaDropout", "FeatureAlphaDropout"),
}  # fmt: skip
_RULES = {target: rule for rule, table in _TABLES.items() for target in table}
# Each number of the result comes of the one at the same place in what it is made of.
_ONE_BY_ONE = (
    _TABLES[_activation] | _TABLES[_add] | _TABLES[_multiply] | _TABLES[_skip]
    | called("view", "reshape", "squeeze", "unsqueeze", "flatten", "expand", "reshape_as")
    | {operator.getitem}
)  # fmt: skip
