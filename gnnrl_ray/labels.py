"""Channels followed through a network by labels in place of activations.

Every channel that a convolution or a linear layer makes gets a label of its own; operations
that move channels move the labels, additions tie them. Shape operations need no rules: they
run on labels as they are.

Axis letter: C channels of one operation.
"""

import math
import operator
import traceback
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

FIXED = -1  # a channel that is always there, as those of input and output
ZERO = -1  # no channel to take from: zeros instead


class TraceError(ValueError):
    """A network that cannot be traced, or an operation that is not understood."""


@dataclass(frozen=True, eq=False)
class Operation:
    """One operation of the traced network, in execution order.

    Channels are numbered over all groups: group ``g`` owns the numbers from
    ``offsets[g]`` to ``offsets[g + 1]``; ``FIXED`` and ``ZERO`` belong to none.

    Attributes:
        name: node of the ``torch.fx`` graph.
        kind: one of ``KINDS``.
        module: qualified name of the module that owns weights, or None.
        parents: indices of the operations it reads; -1 is the network's input.
        inputs: int [C_in], channels of the first parent.
        outputs: int [C_out], channels written.
        size: positions of one output channel (height x width; 1 for vectors).
        kernel: weights of one filter and input channel (kernel height x width).
        depthwise: a convolution with one filter for each channel.
        bias: whether there is one bias for each output channel.
        taken: of a ``select``, int [C_out]: the position among the inputs that each
            output is taken from, or ``ZERO``.
    """

    name: str
    kind: str
    module: str | None
    parents: tuple[int, ...]
    inputs: np.ndarray
    outputs: np.ndarray
    size: int
    kernel: int = 1
    depthwise: bool = False
    bias: bool = False
    taken: np.ndarray | None = None


def select_channels(x: Tensor, index: Tensor) -> Tensor:
    """Gather channels of ``x`` [B, C, ...] by ``index`` int64 [C']; ``ZERO`` gives zeros.

    What becomes of padding with channels of zeros once channels are removed.
    """
    padded = torch.cat([x, torch.zeros_like(x[:, :1])], 1)
    return padded[:, torch.where(index == ZERO, x.shape[1], index)]


fx.wrap("select_channels")

KINDS = (
    "conv", "linear", "norm", "activation", "pool", "add", "multiply", "concat",
    "select", "reshape",
)  # fmt: skip

_TABLES: dict[str, set] = {
    "activation": {
        nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SiLU, nn.GELU, nn.Sigmoid, nn.Tanh,
        nn.Hardswish, nn.Hardsigmoid, F.relu, F.relu6, F.leaky_relu, F.elu, F.silu,
        F.gelu, F.hardswish, F.hardsigmoid, torch.relu, torch.sigmoid, torch.tanh,
        "relu", "relu_", "sigmoid", "tanh",
    },
    "pool": {
        nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d,
        F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d,
        torch.max_pool2d, torch.mean, "mean",
    },
    "add": {operator.add, operator.iadd, operator.sub, torch.add, torch.sub,
            "add", "add_", "sub"},
    "multiply": {operator.mul, operator.imul, operator.truediv, torch.mul, torch.div,
                 "mul", "mul_", "div"},
    "concat": {torch.cat, torch.concat},
    "select": {F.pad, select_channels},
    # Run on the labels themselves, as on activations.
    "reshape": {nn.Flatten, torch.flatten, torch.reshape, torch.squeeze, "flatten",
                "view", "reshape", "squeeze", operator.getitem},
}  # fmt: skip
_KIND = {target: kind for kind, table in _TABLES.items() for target in table}
# Leave values as they are, so that nothing is recorded of them.
_PASSES = {nn.Identity, nn.Dropout, nn.Dropout2d, F.dropout, "contiguous", "clone",
           "detach"}  # fmt: skip
_SIZES = {getattr, "size", "dim", "numel"}
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


class Labels(fx.Interpreter):
    """Runs a graph on labels: int64 tensors of the activations' own shapes, batch of one.

    Attributes:
        operations: what was met, with labels still in place of channel numbers.
        minted: how many labels there are.
        ties: int [n, 2] each, labels of channels that share one fate.
        frozen: labels of channels that must stay.
    """

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph, garbage_collect_values=False)
        self.operations: list[Operation] = []
        self.minted = 0
        self.ties: list[np.ndarray] = []
        self.frozen: set[int] = set()
        self._source: dict[fx.Node, int] = {}
        self._used: set[int] = set()  # parameters
        self._node: fx.Node

    def mint(self, count: int) -> Tensor:
        """Return ``count`` labels that nothing carries yet."""
        self.minted += count
        return torch.arange(self.minted - count, self.minted)

    def unite(self, first: Tensor, second: Tensor) -> None:
        """Tie channels pairwise; one that meets a fixed channel stays for ever."""
        pairs = torch.stack([first, second], 1)
        fixed = (pairs == FIXED).any(1)
        self.ties.append(pairs[~fixed].numpy())
        self._freeze(pairs[fixed])

    def channels(self, labels: Tensor) -> Tensor:
        """int64 [C]: the one label that each channel carries at all its positions."""
        if labels.dim() < 2 or len(labels) != 1:
            raise self._error("the first axis is not the batch, or there is no other")
        flat = labels.reshape(labels.shape[1], -1)
        if (flat != flat[:, :1]).any():
            raise self._error("one channel mixes several, which cannot be followed")
        return flat[:, 0]

    def spread(self, channels: Tensor) -> Tensor:
        """Give every position of the current node's output its channel's label."""
        shape = (1, *self._node.meta["tensor_meta"].shape[1:])
        return channels.view(1, -1, *[1] * (len(shape) - 2)).expand(shape)

    # The interpreter: one method for each sort of node.

    def run_node(self, n: fx.Node):
        self._node = n
        return super().run_node(n)

    def placeholder(self, target, args, kwargs):
        self._source[self._node] = -1
        return self.spread(torch.full((self._node.meta["tensor_meta"].shape[1],), FIXED))

    def get_attr(self, target, args, kwargs):
        value = super().get_attr(target, args, kwargs)
        if not isinstance(value, Tensor) or value.is_floating_point():
            raise self._error("a parameter used outside of a layer")
        return value

    def call_module(self, target, args, kwargs):
        module = self.fetch_attr(target)
        own = {id(parameter) for parameter in module.parameters()}
        if own & self._used:
            raise self._error("weights that are used more than once")
        self._used |= own
        if isinstance(module, nn.Conv2d | nn.Linear):
            return self._weighted(module, args[0])
        if isinstance(module, _NORMS):
            channels = self.channels(args[0])
            self._record("norm", channels, channels, bias=module.bias is not None)
            return args[0]
        if own:
            raise self._error(f"weights of {type(module).__name__} are not understood")
        return self._apply(type(module), module, args, kwargs)

    def call_function(self, target, args, kwargs):
        return self._apply(target, target, args, kwargs)

    def call_method(self, target, args, kwargs):
        # Labels are broadcast views, which ``view`` would refuse.
        name = "reshape" if target == "view" else target

        def method(x, *rest, **options):
            return getattr(x, name)(*rest, **options)

        return self._apply(target, method, args, kwargs)

    def output(self, target, args, kwargs):
        fx.node.map_aggregate(args, self._freeze)

    def _freeze(self, value: object) -> None:
        if isinstance(value, Tensor):
            self.frozen |= set(value.unique().tolist()) - {FIXED}

    def _weighted(self, module: nn.Conv2d | nn.Linear, labels: Tensor) -> Tensor:
        inputs = self.channels(labels)
        bias = module.bias is not None
        if isinstance(module, nn.Linear):
            if labels.dim() != 2:
                raise self._error(f"a linear layer over {labels.dim() - 1} axes")
            outputs = self.mint(module.out_features)
            self._record("linear", inputs, outputs, bias=bias)
        else:
            depthwise = 1 < module.groups == module.in_channels == module.out_channels
            if module.groups > 1 and not depthwise:
                raise self._error(f"a convolution in {module.groups} groups")
            outputs = inputs if depthwise else self.mint(module.out_channels)
            kernel = math.prod(module.kernel_size)
            self._record(
                "conv", inputs, outputs, kernel=kernel, depthwise=depthwise, bias=bias
            )
        return self.spread(outputs)

    def _apply(self, target: object, run: Callable, args: tuple, kwargs: dict):
        """Follow an operation without weights."""
        tensors = _tensors(args)
        if target in _SIZES or not tensors:
            return run(*args, **kwargs)
        if target in _PASSES:
            self._source[self._node] = self._source[self._node.all_input_nodes[0]]
            return tensors[0]
        kind = _KIND.get(target)
        inputs, extra = self.channels(tensors[0]), {}
        match kind:
            case "activation":
                result = tensors[0]
            case "pool" if target in (torch.mean, "mean"):
                result = self._mean(*args, **kwargs)
            case "pool":
                result = self.spread(inputs)
            case "add" | "multiply":
                result = self._elementwise(tensors)
            case "select":
                index = self._selection(len(inputs), *args[1:], **kwargs)
                result = self.spread(self.mint(len(index)))
                extra["taken"] = index.numpy()
            case "concat" | "reshape":
                result = run(*args, **kwargs)
                if not (isinstance(result, Tensor) and _in_place(kind, tensors[0], result)):
                    # Its positions are written into the network's own code.
                    raise self._error("channels are divided or reordered by position")
            case _:
                raise self._error("an operation whose effect on channels is unknown")
        self._record(kind, inputs, self.channels(result), **extra)
        return result

    def _elementwise(self, tensors: list[Tensor]) -> Tensor:
        first, *others = torch.broadcast_tensors(*tensors)
        for other in others:
            self.unite(self.channels(first), self.channels(other))
        return first

    def _selection(
        self, count: int, pad, mode: str = "constant", value: float | None = None
    ) -> Tensor:
        """int64 [C_out]: where each output comes from.

        Zeros around channels make a fresh stream, not a tie: were the channels behind
        the padding tied to those before it, all residual stages would be one group.
        """
        if isinstance(pad, Tensor):  # an index, of select_channels
            return pad
        before, after = (*pad[4:6], 0, 0)[:2]
        if mode != "constant" or value or len(pad) > 6 or min(pad) < 0:
            raise self._error("padding other than with zeros")
        return F.pad(torch.arange(count), (before, after), value=ZERO)

    def _mean(self, labels: Tensor, *args, **kwargs) -> Tensor:
        high, low = labels.amax(*args, **kwargs), labels.amin(*args, **kwargs)
        if (high != low).any():
            raise self._error("a mean over channels")
        return high

    def _record(self, kind: str, inputs: Tensor, outputs: Tensor, **numbers) -> None:
        parents = [self._source[n] for n in self._node.all_input_nodes if n in self._source]
        size = math.prod(self._node.meta["tensor_meta"].shape[2:])
        self._source[self._node] = len(self.operations)
        module = str(self._node.target) if self._node.op == "call_module" else None
        self.operations.append(
            Operation(
                self._node.name, kind, module, tuple(parents), inputs.numpy(),
                outputs.numpy(), size, **numbers,
            )
        )  # fmt: skip

    def _error(self, reason: str) -> TraceError:
        frames = (self._node.stack_trace or "").split("  File ")
        ours = [f.split() for f in frames if f.strip() and "/torch/" not in f]
        source = f" at {' '.join(ours[-1])}" if ours else ""
        scope = self._node.meta.get("nn_module_stack") or {}
        module = next(reversed(scope), "") or "the network itself"
        return TraceError(f"{self._node.target} in {module}: {reason}{source}.")


def _tensors(args: tuple) -> list[Tensor]:
    """Return the tensors in ``args``, also those in a list (as of ``torch.cat``)."""
    found: list[Tensor] = []
    fx.node.map_aggregate(
        args, lambda a: found.append(a) if isinstance(a, Tensor) else None
    )
    return found


def _in_place(kind: str, before: Tensor, after: Tensor) -> bool:
    """Say whether every channel is where it was, or follows from flattening or joining."""
    return kind == "concat" or after.dim() == 2 or after.shape[1:2] == before.shape[1:2]


def symbolic(network: nn.Module) -> fx.GraphModule:
    """Return ``network`` as a graph of operations that shares its modules and weights.

    Raises:
        TraceError: control flow that depends on values, or code that cannot be followed.
    """
    if isinstance(network, fx.GraphModule):
        return network
    tracer = fx.Tracer()
    tracer.record_stack_traces = True
    try:
        return fx.GraphModule(network, tracer.trace(network))
    except Exception as error:
        frames = [
            f for f in traceback.extract_tb(error.__traceback__) if "/torch/" not in f[0]
        ]
        where = tracer.scope.module_path or "the network itself"
        raise TraceError(
            f"cannot follow {where} at {frames[-1].filename}:{frames[-1].lineno} "
            f"({frames[-1].line}): {error}"
        ) from error
