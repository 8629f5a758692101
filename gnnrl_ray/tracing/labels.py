"""Channels followed through a network by labels.

Every channel that a convolution or a linear layer makes gets a label of its own; operations
that move channels move the labels, additions tie them. What each operation does is in
``effects.py``; here is what it does it to.

Axis letters: C channels of one operation.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from gnnrl_ray.data.loader import InputShape
from gnnrl_ray.tracing.network import IMAGES, TraceError, get_tensor
from gnnrl_ray.tracing.operations import FIXED, NO_CHANNELS, Layout, Operation
from gnnrl_ray.tracing.shapes import ShapeRun
from gnnrl_ray.tracing.symbolic import describe_node


class WholeError(TraceError):
    """An operation that is understood, and whose channels must all stay."""


@dataclass(frozen=True)
class Stream:
    """A tensor whose channels lie along ``axis``, written by an operation."""

    labels: Tensor  # int64 [C]
    axis: int
    operation: int


@dataclass(frozen=True)
class Transit:
    """A tensor whose channels are, for now, spread over several axes or tensors.

    ``positions`` are its elements' places in the tensor that ``source`` returned.
    """

    source: fx.Node
    positions: object


@dataclass(frozen=True, eq=False)
class Labelled:
    """An operation whose channels have labels, and no numbers yet.

    Attributes:
        operation: all of it but its channels.
        read: int [C_in], labels of the channels of the first parent.
        made: int [C_out], labels of the channels written.
    """

    operation: Operation
    read: np.ndarray
    made: np.ndarray

    def numbered(self, number: np.ndarray) -> Operation:
        """Return the operation, with the channel ``number`` [labels] of each label."""
        return replace(self.operation, inputs=number[self.read], outputs=number[self.made])


@dataclass(frozen=True, eq=False)
class LabelledLayout:
    """Which labels lie along the axes of a tensor, as channels will in ``layout``."""

    layout: Layout
    rows: Tensor
    columns: Tensor | None

    def numbered(self, number: np.ndarray) -> Layout:
        """Return the layout, with the channel ``number`` [labels] of each label."""
        columns = None if self.columns is None else number[self.columns.numpy()]
        return replace(self.layout, rows=number[self.rows.numpy()], columns=columns)


@dataclass
class Labels:
    """The labels met while a graph is followed, one node after the other.

    Args:
        graph: of the network.
        input_shape: (C, H, W) of one image, or one such for each that it takes.

    Attributes:
        node: the one that is being followed.
        values: what each node returns, see :class:`~gnnrl_ray.tracing.symbolic.ShapeRun`.
        streams: where the channels of each node's output are.
        operations: what was met.
        layouts: of parameters and buffers, by name.
        minted: how many labels there are.
        ties: int [n, 2] each, labels of channels that share one fate.
        frozen: labels of channels that must stay, and why.
        alone: nodes that are left whole.
        several: those of them that return several tensors, and the operation they read.
        bare: names of parameters that are read outside of layers.
        whole_layers: modules with parameters that are left whole, and why.
    """

    graph: fx.GraphModule
    input_shape: InputShape
    operations: list[Labelled] = field(default_factory=list)
    layouts: dict[str, LabelledLayout] = field(default_factory=dict)
    minted: int = 0
    ties: list[np.ndarray] = field(default_factory=list)
    frozen: dict[int, str] = field(default_factory=dict)
    alone: list[fx.Node] = field(default_factory=list)
    several: dict[fx.Node, int] = field(default_factory=dict)
    bare: set[str] = field(default_factory=set)
    whole_layers: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.node: fx.Node
        self.values = ShapeRun(self.graph).run_on(self.input_shape).values
        self.streams: dict[fx.Node, Stream | Transit] = {}
        self._names: dict[int, str] = {}  # of tensors; tied ones have one name

    def mint(self, count: int) -> Tensor:
        """Return ``count`` labels that nothing carries yet."""
        self.minted += count
        return torch.arange(self.minted - count, self.minted)

    def unite(self, first: Tensor, second: Tensor) -> None:
        """Tie channels pairwise; one that meets a fixed channel stays for ever."""
        if len(first) != len(second):
            raise self.whole(f"{len(first)} channels meet {len(second)}")
        pairs = torch.stack([first, second], 1)
        fixed = (pairs == FIXED).any(1)
        self.ties.append(pairs[~fixed].numpy())
        self.freeze(pairs[fixed], "tied to channels that are whole")

    def freeze(self, labels: Tensor, reason: str) -> None:
        """Let channels stay."""
        for label in labels.unique().tolist():
            if label != FIXED:
                self.frozen.setdefault(label, reason)

    def freeze_node(self, node: fx.Node, reason: str) -> None:
        """Let all channels that ``node`` returns stay."""
        if node in self.streams:
            self.freeze(self.labels_of(node), reason)

    def labels_of(self, node: fx.Node) -> Tensor:
        """Return the labels of the channels that ``node`` returns, in order or not."""
        value = self.streams[node]
        if isinstance(value, Transit):
            return self.labels_of(value.source)
        return value.labels

    def shape(self, node: fx.Node) -> torch.Size:
        """Return the shape of what ``node`` returns, of ``IMAGES`` images."""
        value = self.values[node]
        if not isinstance(value, Tensor):
            raise self.whole("several tensors, or none, where one is expected")
        return value.shape

    def stream(self, node: fx.Node, axis: int | None = None) -> Stream:
        """Return the stream of ``node``, with its channels at ``axis`` if one is asked."""
        stream = self.streams.get(node)
        if stream is None:
            raise self.whole("a parameter used outside of a layer")
        if isinstance(stream, Transit):
            raise self.whole("channels are divided or reordered by position")
        shape = self.shape(node)
        if axis is None or stream.axis == axis % len(shape):
            return stream
        if (stream.labels == stream.labels[0]).all():  # a single channel has no axis
            return replace(stream, labels=stream.labels[:1].expand(shape[axis]), axis=axis)
        raise self.whole(f"channels are at axis {stream.axis}, not {axis}")

    def record(
        self, kind: str, inputs: Tensor, outputs: Tensor, axis: int = 1, **facts
    ) -> None:
        """Write down the current node, whose output's channels are ``outputs``."""
        parents = []
        for node in self.node.all_input_nodes:
            value = self.streams.get(node)
            while isinstance(value, Transit):
                value = self.streams[value.source]
            if value is not None:
                parents.append(value.operation)
            elif node in self.several:
                parents.append(self.several[node])
        size = max(1, self.shape(self.node).numel() // IMAGES // max(1, len(outputs)))
        module = str(self.node.target) if self.node.op == "call_module" else None
        self.streams[self.node] = Stream(outputs, axis, len(self.operations))
        operation = Operation(
            self.node.name, kind, module, tuple(parents), NO_CHANNELS, NO_CHANNELS, size,
            axis, **facts,
        )  # fmt: skip
        self.operations.append(Labelled(operation, inputs.numpy(), outputs.numpy()))

    def lay(
        self, name: str, rows: Tensor, columns: Tensor | None = None, axis: int = 0,
        groups: int = 1,
    ) -> None:  # fmt: skip
        """Say which channels lie along the axes of a tensor; tie what other uses say."""
        tensor = get_tensor(self.graph, name)
        known = self.layouts.get(self.name_of(name))
        if known is None:
            pairs = len(rows) * (1 if columns is None else len(columns) // groups)
            layout = Layout(
                NO_CHANNELS, None, axis, groups, tensor.numel() // pairs,
                isinstance(tensor, nn.Parameter),
            )  # fmt: skip
            self.layouts[name] = LabelledLayout(layout, rows, columns)
            return
        if (known.layout.axis, known.layout.groups) != (axis, groups):
            raise self.whole("weights that are used in two different ways")
        self.unite(known.rows, rows)
        if columns is not None and known.columns is not None:
            self.unite(known.columns, columns)

    def name_of(self, name: str) -> str:
        """Return the first name of the tensor that also goes by ``name``."""
        return self._names.setdefault(id(get_tensor(self.graph, name)), name)

    def arguments(self, *names: str) -> dict:
        """Return the current node's arguments by name, its nodes replaced by values."""
        given = dict(zip(names, self.node.args, strict=False)) | dict(self.node.kwargs)
        if "axis" in given:  # as numpy calls it
            given["dim"] = given.pop("axis")
        return {
            key: fx.node.map_arg(value, lambda n: self.values.get(n, n))
            for key, value in given.items()
        }

    def tensors(self) -> Any:
        """Return the nodes that the current one joins, in order."""
        return self.node.args[0] if self.node.args else self.node.kwargs["tensors"]

    def settings(self, *names: str) -> dict:
        """Return the current node's arguments by name, or attributes of its module."""
        if self.node.op != "call_module":
            return self.arguments("input", *names)
        module = self.graph.get_submodule(str(self.node.target))
        return {name: getattr(module, name) for name in names if hasattr(module, name)}

    def tensor_names(self) -> dict[str, str]:
        """Return the names of the weight, bias and statistics that the node has."""
        if self.node.op == "call_module":
            module = self.graph.get_submodule(str(self.node.target))
            keys = ("weight", "bias", "running_mean", "running_var")
            there = [key for key in keys if getattr(module, key, None) is not None]
            if not module._parameters.keys() | module._buffers.keys() >= set(there):
                raise self.whole(
                    "weights that are computed; torch.nn.utils can remove what computes "
                    "them (prune.remove, parametrize.remove_parametrizations)"
                )
            return {key: f"{self.node.target}.{key}" for key in there}
        names: dict[str, str] = {}
        given = dict(zip(("weight", "bias"), self.node.args[1:], strict=False))
        for key, node in (given | dict(self.node.kwargs)).items():
            if key in ("weight", "bias") and isinstance(node, fx.Node):
                if node.op != "get_attr":
                    raise self.whole("weights that are computed")
                names[key] = str(node.target)
        return names

    def whole(self, reason: str) -> "WholeError":
        """Return the error that says why what the current node reads cannot be pruned."""
        return WholeError(describe_node(self.node, reason))

    def leave(self, node: fx.Node, reason: str) -> None:
        """Leave whole all that ``node`` reads and writes."""
        self.alone.append(node)
        for source in node.all_input_nodes:
            self.freeze_node(source, reason)
        self.read_bare(*node.all_input_nodes)
        if node.op == "call_module":
            module = self.graph.get_submodule(str(node.target))
            names = [name for name, _ in module.named_parameters()]
            self.bare.update(f"{node.target}.{name}" for name in names)
            if names:
                self.whole_layers[str(node.target)] = reason
        value = self.values[node]
        if isinstance(value, Tensor):
            axis = min(1, max(value.dim() - 1, 0))
            fixed = torch.full((value.shape[axis] if value.dim() else 1,), FIXED)
            self.record("other", fixed, fixed, axis)
        else:
            read = [self.streams.get(n) for n in node.all_input_nodes]
            known = [s.operation for s in read if isinstance(s, Stream)]
            self.several[node] = max(known, default=-1)

    def read_bare(self, *nodes: fx.Node) -> None:
        """Note what parameters ``nodes`` are calculated from: no layer reads them."""
        for node in nodes:
            if node.op == "get_attr":
                self.bare.add(str(node.target))
            elif node not in self.streams and node not in self.several:
                self.read_bare(*node.all_input_nodes)

    def freeze_bare(self) -> None:
        """Let channels stay whose weights are also read outside of layers."""
        for name in self.bare:
            layout = self.layouts.get(self.name_of(name))
            for labels in (layout.rows, layout.columns) if layout else ():
                if labels is not None:
                    self.freeze(labels, f"{name} is also read outside of layers")

    def macs_alone(self) -> tuple[int, int]:
        """Multiply-accumulates of all nodes that are left whole.

        For one image, and of that once for all images: of weights that are calculated.
        """
        if not self.alone:
            return 0, 0
        fewer, more = (
            sum(ShapeRun(self.graph, self.alone).run_on(self.input_shape, n).macs.values())
            for n in (IMAGES, IMAGES + 1)
        )
        each = more - fewer
        once = fewer - IMAGES * each
        return each + once, once
