"""Channels followed through a network by labels.

Every channel that a convolution or a linear layer makes gets a label of its own; operations
that move channels move the labels, additions tie them. Views, splits and shuffles need no
rules: they run on the positions of their input, and where the positions end up says all.

Axis letters: C channels of one operation.
"""

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torchvision.ops import StochasticDepth, stochastic_depth

from gnnrl_ray.symbolic import ShapeRun, TraceError, describe_node, get_tensor

FIXED = -1  # a channel that is always there, as those of input and output
ZERO = -1  # no channel to take from: zeros instead

KINDS = (
    "conv", "linear", "norm", "activation", "pool", "add", "multiply", "concat",
    "select", "reshape",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Operation:
    """One operation of the traced network, in execution order.

    Channels are numbered over all groups: group ``g`` owns the numbers from
    ``offsets[g]`` to ``offsets[g + 1]``; ``FIXED`` and ``ZERO`` belong to none.

    Attributes:
        name: node of the ``torch.fx`` graph.
        kind: one of ``KINDS``, or ``other``.
        module: qualified name of the module that was called, or None.
        parents: indices of the operations it reads; -1 is the network's input.
        inputs: int [C_in], channels of the first parent.
        outputs: int [C_out], channels written.
        size: positions of one output channel (height x width; 1 for vectors).
        axis: of the channels in the output.
        weight: of a layer, the qualified name of its filters.
        bias: whether every output channel has a parameter beside the filters.
        kernel: weights of one filter and input channel (kernel height x width).
        uses: how often each weight is used for one image.
        groups: equal parts of a convolution's channels, each with filters of its own.
        depthwise: a convolution whose groups have one input channel each.
        taken: of a ``select``, int [C_out]: the position among the inputs that each
            output is taken from, or ``ZERO``.
        source: of a ``select``, the node that returned what it takes from.
        padded: a ``select`` whose outputs are channels of their own, not its inputs moved:
            one may stay where that which it is taken from goes, and is zero then.
    """

    name: str
    kind: str
    module: str | None
    parents: tuple[int, ...]
    inputs: np.ndarray
    outputs: np.ndarray
    size: int
    axis: int = 1
    weight: str | None = None
    bias: bool = False
    kernel: int = 1
    uses: int = 1
    groups: int = 1
    depthwise: bool = False
    taken: np.ndarray | None = None
    source: str | None = None
    padded: bool = False


@dataclass(frozen=True, eq=False)
class Layout:
    """Which channels lie along the axes of a parameter or buffer.

    Attributes:
        rows: int [C], along ``axis``.
        columns: int [C'], along the axis after it, if that one has channels too; of a
            convolution in groups, those of all groups in a row.
        axis: of the rows.
        groups: of the convolution.
        size: numbers for each pair of row and column, or for each row.
        trained: a parameter, not a buffer.
    """

    rows: np.ndarray
    columns: np.ndarray | None = None
    axis: int = 0
    groups: int = 1
    size: int = 1
    trained: bool = True


def select_channels(x: Tensor, index: Tensor) -> Tensor:
    """Gather channels of ``x`` [B, C, ...] by ``index`` int64 [C']; ``ZERO`` gives zeros.

    What becomes of padding with channels of zeros once channels are removed.
    """
    padded = torch.cat([x, torch.zeros_like(x[:, :1])], 1)
    return padded[:, torch.where(index == ZERO, x.shape[1], index)]


fx.wrap("select_channels")

# What spells out a shape.
RESHAPES = ("view", "reshape", torch.reshape)

_TABLES: dict[str, set] = {
    "activation": {
        nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.SiLU, nn.GELU,
        nn.Mish, nn.Softplus, nn.Sigmoid, nn.LogSigmoid, nn.Tanh, nn.Hardtanh,
        nn.Hardswish, nn.Hardsigmoid, nn.PReLU, F.relu, F.relu6, F.leaky_relu, F.elu,
        F.selu, F.celu, F.silu, F.gelu, F.mish, F.softplus, F.sigmoid, F.logsigmoid,
        F.tanh, F.hardtanh, F.hardswish, F.hardsigmoid, torch.relu, torch.sigmoid,
        torch.tanh, torch.exp, torch.sqrt, torch.abs, torch.clamp, torch.square,
        torch.neg, operator.neg, "relu", "relu_", "sigmoid", "tanh", "exp", "sqrt",
        "abs", "clamp", "square", "neg",
    },
    "pool": {
        nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d,
        nn.LPPool2d, nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d,
        nn.ZeroPad2d, nn.ConstantPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d,
        F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d,
        F.interpolate, torch.max_pool2d, torch._C._nn.avg_pool2d,
    },
    "reduce": {torch.mean, torch.sum, torch.amax, torch.amin, "mean", "sum", "amax",
               "amin"},
    "conv": {nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d,
             nn.ConvTranspose3d, F.conv2d, F.conv_transpose2d},
    "linear": {nn.Linear, F.linear},
    "norm": {nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.InstanceNorm1d,
             nn.InstanceNorm2d, nn.InstanceNorm3d},
    "group_norm": {nn.GroupNorm},
    "layer_norm": {nn.LayerNorm, F.layer_norm},
    "add": {operator.add, operator.iadd, operator.sub, operator.isub, torch.add, torch.sub,
            torch.maximum, torch.minimum, "add", "add_", "sub", "sub_"},
    "multiply": {operator.mul, operator.imul, operator.truediv, operator.itruediv,
                 operator.pow, torch.mul, torch.div, torch.pow, "mul", "mul_", "div",
                 "div_", "pow"},
    "concat": {torch.cat, torch.concat},
    "pad": {F.pad},
    "padded": {select_channels},
    "rearrange": {
        nn.Flatten, nn.ChannelShuffle, F.channel_shuffle, operator.getitem,
        torch.flatten, torch.reshape, torch.squeeze, torch.unsqueeze,
        torch.permute, torch.transpose, torch.swapaxes, torch.movedim, torch.chunk,
        torch.split, torch.tensor_split, torch.unbind, torch.narrow, torch.flip,
        torch.roll, torch.index_select, "flatten", "view", "reshape",
        "squeeze", "unsqueeze", "permute", "transpose", "swapaxes", "movedim", "chunk",
        "split", "tensor_split", "unbind", "narrow", "flip", "roll", "expand", "repeat",
        "index_select", "t",
    },
    "mix": {nn.PixelShuffle, nn.PixelUnshuffle, F.pixel_shuffle, F.pixel_unshuffle},
    # Leave values as they are, so that nothing is recorded of them.
    "skip": {nn.Identity, nn.Dropout, nn.Dropout2d, F.dropout, F.dropout2d, StochasticDepth,
             stochastic_depth, "contiguous", "clone", "detach", "float"},
}  # fmt: skip
_RULE = {target: rule for rule, table in _TABLES.items() for target in table}


@dataclass(frozen=True)
class _Stream:
    """A tensor whose channels lie along ``axis``, written by an operation."""

    labels: Tensor  # int64 [C]
    axis: int
    operation: int


@dataclass(frozen=True)
class _Transit:
    """A tensor whose channels are, for now, spread over several axes or tensors.

    ``positions`` are its elements' places in the tensor that ``source`` returned.
    """

    source: fx.Node
    positions: object


@dataclass
class Labels:
    """Sends labels through a graph.

    Args:
        graph: of the network.
        skip: leave whole what is not understood, and note it in ``left``.

    Attributes:
        operations: what was met, with labels still in place of channel numbers.
        layouts: of parameters and buffers, by name; labels in place of channel numbers.
        minted: how many labels there are.
        ties: int [n, 2] each, labels of channels that share one fate.
        frozen: labels of channels that must stay, and why.
        left: what was not understood.
        left_macs: multiply-accumulates of all that is left whole for that.
    """

    graph: fx.GraphModule
    skip: bool = False
    operations: list[Operation] = field(default_factory=list)
    layouts: dict[str, Layout] = field(default_factory=dict)
    minted: int = 0
    ties: list[np.ndarray] = field(default_factory=list)
    frozen: dict[int, str] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)
    left_macs: int = 0

    def run(self, input_shape: tuple[int, ...]) -> "Labels":
        """Follow the channels of one image of ``input_shape`` (C, H, W); returns itself.

        Raises:
            TraceError: an operation is not understood, and ``skip`` is off.
        """
        self._values = ShapeRun(self.graph).run_on(input_shape).values
        self._streams: dict[fx.Node, _Stream | _Transit] = {}
        self._names: dict[int, str] = {}  # of tensors; tied ones have one name
        self._several: dict[fx.Node, int] = {}  # left whole, and return several tensors
        self._alone: list[fx.Node] = []  # all that are left whole
        for node in self.graph.graph.nodes:
            self._node = node
            if node.op == "placeholder":
                shape = self._shape(node)
                self._streams[node] = _Stream(torch.full((shape[1],), FIXED), 1, -1)
            elif node.op == "output":
                for source in node.all_input_nodes:
                    self._freeze(source, "the network's output")
            elif node.op != "get_attr":
                self._visit(node)
        if self._alone:
            counts = ShapeRun(self.graph, self._alone).run_on(input_shape).macs
            self.left_macs = sum(counts.values())
        return self

    def _visit(self, node: fx.Node) -> None:
        inputs = [n for n in node.all_input_nodes if n in self._streams]
        if any(n in self._several for n in node.all_input_nodes):
            self._leave(node)
            return
        if not inputs or not _has_tensor(self._values[node]):
            return
        target = node.target
        if node.op == "call_module":
            target = type(self.graph.get_submodule(str(node.target)))
        rule: Callable[[fx.Node], None] = getattr(self, f"_{_RULE.get(target, 'unknown')}")
        try:
            rule(node)
        except TraceError as error:
            free = any((self._labels_of(n) != FIXED).any() for n in inputs)
            if free and not self.skip:
                raise
            if free:
                self.left.append(str(error))
            self._leave(node, "not understood")

    # What rules are made of.

    def _mint(self, count: int) -> Tensor:
        """Return ``count`` labels that nothing carries yet."""
        self.minted += count
        return torch.arange(self.minted - count, self.minted)

    def _unite(self, first: Tensor, second: Tensor) -> None:
        """Tie channels pairwise; one that meets a fixed channel stays for ever."""
        if len(first) != len(second):
            raise self._error(f"{len(first)} channels meet {len(second)}")
        pairs = torch.stack([first, second], 1)
        fixed = (pairs == FIXED).any(1)
        self.ties.append(pairs[~fixed].numpy())
        self._freeze_labels(pairs[fixed], "tied to channels that are whole")

    def _freeze_labels(self, labels: Tensor, reason: str) -> None:
        for label in labels.unique().tolist():
            if label != FIXED:
                self.frozen.setdefault(label, reason)

    def _freeze(self, node: fx.Node, reason: str) -> None:
        if node in self._streams:
            self._freeze_labels(self._labels_of(node), reason)

    def _labels_of(self, node: fx.Node) -> Tensor:
        value = self._streams[node]
        return (
            self._labels_of(value.source) if isinstance(value, _Transit) else value.labels
        )

    def _shape(self, node: fx.Node) -> torch.Size:
        value = self._values[node]
        assert isinstance(value, Tensor)
        return value.shape

    def _stream(self, node: fx.Node, axis: int | None = None) -> _Stream:
        """Return the stream of ``node``, with its channels at ``axis`` if one is asked."""
        stream = self._streams.get(node)
        if stream is None:
            raise self._error("a parameter used outside of a layer")
        if isinstance(stream, _Transit):
            raise self._error("channels are divided or reordered by position")
        shape = self._shape(node)
        if axis is None or stream.axis == axis % len(shape):
            return stream
        if (stream.labels == stream.labels[0]).all():  # a single channel has no axis
            return replace(stream, labels=stream.labels[:1].expand(shape[axis]), axis=axis)
        raise self._error(f"channels are at axis {stream.axis}, not {axis}")

    def _record(
        self, kind: str, inputs: Tensor, outputs: Tensor, axis: int = 1, **facts
    ) -> None:
        """Write down the current node, whose output's channels are ``outputs``."""
        parents = []
        for node in self._node.all_input_nodes:
            value = self._streams.get(node)
            while isinstance(value, _Transit):
                value = self._streams[value.source]
            if value is not None:
                parents.append(value.operation)
            elif node in self._several:
                parents.append(self._several[node])
        size = self._shape(self._node).numel() // max(1, len(outputs))
        module = str(self._node.target) if self._node.op == "call_module" else None
        self._streams[self._node] = _Stream(outputs, axis, len(self.operations))
        self.operations.append(
            Operation(
                self._node.name, kind, module, tuple(parents), inputs.numpy(),
                outputs.numpy(), size, axis, **facts,
            )
        )  # fmt: skip

    def _lay(self, name: str, rows: Tensor, columns: Tensor | None = None, **facts) -> None:
        """Say which channels lie along the axes of a tensor; tie what other uses say."""
        tensor = get_tensor(self.graph, name)
        known = self.layouts.get(self._name(name))
        if known is None:
            layout = Layout(
                rows, columns, trained=isinstance(tensor, nn.Parameter), **facts
            )
            pairs = len(rows) * (
                len(columns) // layout.groups if columns is not None else 1
            )
            facts["size"] = tensor.numel() // pairs
            self.layouts[name] = Layout(rows, columns, trained=layout.trained, **facts)
            return
        if (known.axis, known.groups) != (facts.get("axis", 0), facts.get("groups", 1)):
            raise self._error("weights that are used in two different ways")
        self._unite(known.rows, rows)
        if columns is not None and known.columns is not None:
            self._unite(known.columns, columns)

    def _name(self, name: str) -> str:
        """Return the first name of the tensor that also goes by ``name``."""
        return self._names.setdefault(id(get_tensor(self.graph, name)), name)

    def _arguments(self, *names: str) -> dict:
        """Return the current node's arguments by name, its nodes replaced by values."""
        given = dict(zip(names, self._node.args, strict=False)) | dict(self._node.kwargs)
        return {
            key: fx.node.map_arg(value, lambda n: self._values.get(n, n))
            for key, value in given.items()
        }

    def _tensor_names(self) -> dict[str, str | None]:
        """Return the names of ``weight`` and ``bias`` of the current node."""
        if self._node.op == "call_module":
            module = self.graph.get_submodule(str(self._node.target))
            return {
                key: f"{self._node.target}.{key}" if tensor is not None else None
                for key in ("weight", "bias", "running_mean", "running_var")
                if (tensor := getattr(module, key, None)) is not None or key == "bias"
            }
        names: dict[str, str | None] = {"bias": None}
        given = dict(zip(("weight", "bias"), self._node.args[1:], strict=False))
        for key, node in (given | dict(self._node.kwargs)).items():
            if key in ("weight", "bias") and isinstance(node, fx.Node):
                if node.op != "get_attr":
                    raise self._error("weights that are computed")
                names[key] = str(node.target)
        return names

    def _error(self, reason: str) -> TraceError:
        return TraceError(describe_node(self._node, reason))

    # The rules, one for each table.

    def _unknown(self, node: fx.Node) -> None:
        raise self._error("an operation whose effect on channels is unknown")

    def _leave(self, node: fx.Node, reason: str = "not understood") -> None:
        """Leave whole all that ``node`` reads and writes."""
        self._alone.append(node)
        for source in node.all_input_nodes:
            self._freeze(source, reason)
        value = self._values[node]
        if isinstance(value, Tensor):
            axis = min(1, value.dim() - 1)
            fixed = torch.full((value.shape[axis] if value.dim() else 1,), FIXED)
            self._record("other", fixed, fixed, axis)
        else:
            read = [self._streams.get(n) for n in node.all_input_nodes]
            known = [s.operation for s in read if isinstance(s, _Stream)]
            self._several[node] = max(known, default=-1)

    def _skip(self, node: fx.Node) -> None:
        self._streams[node] = self._streams[node.all_input_nodes[0]]

    def _activation(self, node: fx.Node) -> None:
        stream = self._stream(node.all_input_nodes[0])
        if node.op == "call_module":
            module = self.graph.get_submodule(str(node.target))
            if isinstance(module, nn.PReLU) and module.num_parameters > 1:
                self._lay(f"{node.target}.weight", stream.labels)
        self._record("activation", stream.labels, stream.labels, stream.axis)

    def _pool(self, node: fx.Node) -> None:
        labels = self._stream(node.all_input_nodes[0], 1).labels
        self._record("pool", labels, labels)

    def _reduce(self, node: fx.Node) -> None:
        source = node.all_input_nodes[0]
        stream, given = self._stream(source), self._arguments("input", "dim", "keepdim")
        count, over = len(self._shape(source)), given.get("dim")
        over = range(count) if over is None else [over] if isinstance(over, int) else over
        over = {axis % count for axis in over}
        if stream.axis in over:
            raise self._error("a mean or a sum over channels")
        kept = given.get("keepdim", False)
        axis = stream.axis - (0 if kept else sum(a < stream.axis for a in over))
        self._record("pool", stream.labels, stream.labels, axis)

    def _conv(self, node: fx.Node) -> None:
        inputs, names = (
            self._stream(node.all_input_nodes[0], 1).labels,
            self._tensor_names(),
        )
        if node.op == "call_module":
            module = self.graph.get_submodule(str(node.target))
            groups, transposed = module.groups, module.transposed
        else:
            transposed = node.target is F.conv_transpose2d
            last = ("output_padding", "groups") if transposed else ("dilation", "groups")
            order = ("input", "weight", "bias", "stride", "padding", *last)
            groups = self._arguments(*order).get("groups", 1)
        weight = get_tensor(self.graph, names["weight"])
        depthwise = groups == len(inputs) > 1
        if depthwise:
            each = weight.shape[1] if transposed else weight.shape[0] // groups
            outputs = inputs.repeat_interleave(each)
            self._lay(names["weight"], inputs if transposed else outputs)
        else:
            outputs = self._filters(names["weight"], inputs, groups, transposed)
        if names["bias"]:
            self._lay(names["bias"], outputs)
        shape = self._shape(node.all_input_nodes[0] if transposed else node)
        self._record(
            "conv", inputs, outputs, weight=self._name(names["weight"]), groups=groups,
            bias=bool(names["bias"]), kernel=math.prod(weight.shape[2:]),
            uses=math.prod(shape[2:]), depthwise=depthwise,
        )  # fmt: skip

    def _filters(
        self, name: str, inputs: Tensor, groups: int = 1, transposed: bool = False
    ) -> Tensor:
        """Return what filters make of ``inputs``; the same filters, the same channels."""
        known = self.layouts.get(self._name(name))
        shape = get_tensor(self.graph, name).shape
        if transposed:
            outputs = known.columns if known else self._mint(groups * shape[1])
            self._lay(name, inputs, outputs, groups=groups)
        else:
            outputs = known.rows if known else self._mint(shape[0])
            self._lay(name, outputs, inputs, groups=groups)
        if outputs is None:
            raise self._error("weights that are used in two different ways")
        return outputs

    def _linear(self, node: fx.Node) -> None:
        source = node.all_input_nodes[0]
        inputs, names = self._stream(source, -1).labels, self._tensor_names()
        outputs = self._filters(names["weight"], inputs)
        if names["bias"]:
            self._lay(names["bias"], outputs)
        self._record(
            "linear", inputs, outputs, len(self._shape(node)) - 1,
            weight=self._name(names["weight"]), bias=bool(names["bias"]),
            uses=self._shape(source).numel() // len(inputs),
        )  # fmt: skip

    def _norm(self, node: fx.Node) -> None:
        labels, names = (
            self._stream(node.all_input_nodes[0], 1).labels,
            self._tensor_names(),
        )
        for name in filter(None, names.values()):
            self._lay(name, labels)
        self._record("norm", labels, labels, bias=bool(names["bias"]))

    def _group_norm(self, node: fx.Node) -> None:
        """Statistics are of several channels: these stay or go together."""
        labels = self._stream(node.all_input_nodes[0], 1).labels
        blocks = labels.view(self.graph.get_submodule(str(node.target)).num_groups, -1)
        for other in blocks.T[1:]:
            self._unite(blocks.T[0], other)
        self._norm(node)

    def _layer_norm(self, node: fx.Node) -> None:
        source = node.all_input_nodes[0]
        stream = self._stream(source)
        if node.op == "call_module":
            shape = self.graph.get_submodule(str(node.target)).normalized_shape
        else:
            shape = self._arguments("input", "normalized_shape")["normalized_shape"]
        if stream.axis >= len(self._shape(source)) - len(shape):
            self._freeze_labels(stream.labels, "normalised over all channels together")
        self._record("norm", stream.labels, stream.labels, stream.axis, bias=True)

    def _add(self, node: fx.Node) -> None:
        self._elementwise(node, "add")

    def _multiply(self, node: fx.Node) -> None:
        self._elementwise(node, "multiply")

    def _elementwise(self, node: fx.Node, kind: str) -> None:
        """Tie channels that meet; a single one that all others meet is tied to none."""
        count, shape = len(self._shape(node)), self._shape(node)
        tensors = [n for n in node.all_input_nodes if isinstance(self._values[n], Tensor)]
        streams = {n: self._stream(n) for n in tensors if n in self._streams}
        wide = [n for n, s in streams.items() if len(s.labels) > 1] or list(streams)
        main = streams[wide[0]]
        axis = main.axis - len(self._shape(wide[0]))  # from the end, as broadcasting does
        if shape[axis] != len(main.labels):
            raise self._error("a single channel meets several")
        for other in tensors:
            extent = self._shape(other)[axis] if len(self._shape(other)) >= -axis else 1
            if other in streams:
                stream = streams[other]
                elsewhere = stream.axis - len(self._shape(other)) != axis
                if elsewhere and len(stream.labels) > 1:
                    raise self._error("channels at different axes meet")
                if other is not wide[0] and extent == len(main.labels) and not elsewhere:
                    self._unite(main.labels, stream.labels)
            elif extent > 1:
                if other.op != "get_attr":
                    raise self._error("a parameter used outside of a layer")
                across = len(self._shape(other)) + axis
                self._lay(str(other.target), main.labels, axis=across)
        self._record(kind, streams[next(iter(streams))].labels, main.labels, count + axis)

    def _concat(self, node: fx.Node) -> None:
        given = self._arguments("tensors", "dim")
        dim = given.get("dim", given.get("axis", 0)) % len(self._shape(node))
        listed = node.args[0] if node.args else node.kwargs["tensors"]
        streams = [self._stream(n) for n in listed]
        first = streams[0]
        if any(stream.axis != first.axis for stream in streams):
            raise self._error("channels at different axes are joined")
        labels = first.labels
        if dim == first.axis:
            labels = torch.cat([stream.labels for stream in streams])
        else:
            for other in streams[1:]:
                self._unite(labels, other.labels)
        self._record("concat", first.labels, labels, first.axis)

    def _pad(self, node: fx.Node) -> None:
        """Zeros around channels make a fresh stream, not a tie.

        Were the channels behind the padding tied to those before it, all stages of a
        CIFAR ResNet would be one group.
        """
        source = node.all_input_nodes[0]
        stream = self._stream(source)
        given = self._arguments("input", "pad", "mode", "value")
        pad, at = list(given["pad"]), 2 * (len(self._shape(source)) - 1 - stream.axis)
        before, after = (*pad[at : at + 2], 0, 0)[:2]
        if not (before or after):
            self._record("pool", stream.labels, stream.labels, stream.axis)
            return
        plain = given.get("mode", "constant") == "constant" and not given.get("value")
        if not plain or stream.axis != 1 or any(pad[:at]) or min(before, after) < 0:
            raise self._error("channels padded other than with zeros")
        taken = F.pad(torch.arange(len(stream.labels)), (before, after), value=ZERO)
        self._select(stream, self._mint(len(taken)), taken, source, padded=True)

    def _select(
        self, stream: _Stream, outputs: Tensor, taken: Tensor, source: fx.Node,
        padded: bool = False,
    ) -> None:  # fmt: skip
        self._record(
            "select", stream.labels, outputs, stream.axis, taken=taken.numpy(),
            source=source.name, padded=padded,
        )  # fmt: skip

    def _padded(self, node: fx.Node) -> None:
        source, index = node.all_input_nodes
        taken = self._values[index]
        outputs = self._mint(len(taken))
        self._select(self._stream(source, 1), outputs, taken, source, padded=True)

    def _mix(self, node: fx.Node) -> None:
        """Pixels become channels or channels pixels, a block of them at a time."""
        labels = self._stream(node.all_input_nodes[0], 1).labels
        if len(self._shape(node)) != 4:
            raise self._error("pixels shuffled in other than batches of images")
        before, after = len(labels), self._shape(node)[1]
        if after >= before:
            outputs = labels.repeat_interleave(after // before)
        else:
            blocks = labels.view(after, -1)
            for other in blocks.T[1:]:
                self._unite(blocks.T[0], other)
            outputs = blocks[:, 0]
        self._record("reshape", labels, outputs)

    def _rearrange(self, node: fx.Node) -> None:
        source, *others = [n for n in node.all_input_nodes if n in self._streams]
        before = self._streams[source]
        if others:
            raise self._error("an index that depends on the image")
        direct = isinstance(before, _Stream)
        if isinstance(before, _Stream):
            shape = self._shape(source)
            before = _Transit(source, torch.arange(shape.numel()).view(shape))
            if node.target in RESHAPES and isinstance(self._values[node], Tensor):
                # Sizes that divide channels are right for the dense network only.
                direct = len(self._shape(node)) <= len(shape)
        try:
            positions = self._rerun(node, source, before.positions)
        except (RuntimeError, TypeError) as error:
            raise self._error(f"positions cannot be followed ({error})") from error
        self._streams[node] = _Transit(before.source, positions)
        if not isinstance(positions, Tensor):
            return
        origin = self._stream(before.source)
        shape, channels = self._shape(before.source), len(origin.labels)
        stride = math.prod(shape[origin.axis + 1 :])
        axis, taken = _along_one_axis(positions // stride % channels)
        if taken is None:
            return
        every = torch.arange(shape.numel()).view(shape)
        if axis == origin.axis and torch.equal(positions, every.index_select(axis, taken)):
            self._select(origin, origin.labels[taken], taken, before.source)
            return
        each, rest = divmod(len(taken), channels)
        in_order = torch.arange(channels).repeat_interleave(each)
        if direct and not rest and torch.equal(taken, in_order):
            if node.target is operator.getitem and _indexes(node.args[1], origin.axis):
                raise self._error("channels and pixels are sliced at once")
            self._record("reshape", origin.labels, origin.labels[taken], axis)

    def _rerun(self, node: fx.Node, source: fx.Node, positions: object) -> object:
        """Apply ``node`` to ``positions`` in place of what ``source`` returned."""

        def value(n: fx.Node) -> object:
            return positions if n is source else self._values[n]

        args = fx.node.map_arg(node.args, value)
        kwargs = fx.node.map_arg(node.kwargs, value)
        if node.op == "call_module":
            return self.graph.get_submodule(str(node.target))(*args, **kwargs)
        if node.op == "call_method":
            # A view of a tensor in another memory format may be a copy of positions.
            method = "reshape" if node.target == "view" else str(node.target)
            return getattr(args[0], method)(*args[1:], **kwargs)
        return node.target(*args, **kwargs)


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


def _has_tensor(value: object) -> bool:
    found: list[bool] = []
    fx.node.map_aggregate(value, lambda v: found.append(isinstance(v, Tensor)))
    return any(found)
