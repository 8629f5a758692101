"""A network rewritten for inference: fewer, larger operations, narrower numbers.

A convolution, the normalisation behind it, an addition and an activation become one call:
on a CPU, of oneDNN (https://uxlfoundation.github.io/oneDNN/dev_guide_attributes_post_ops.html).
What does not fit that pattern runs as it is, in the same number format.
"""

import copy
import operator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from gnnrl_ray.tracing.network import get_tensor
from gnnrl_ray.tracing.proxies import set_item
from gnnrl_ray.tracing.shapes import ShapeRun

_ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")
# What oneDNN calls an activation, and with which numbers.
_ACTIVATIONS: dict[object, tuple[str, list[float]]] = {
    **dict.fromkeys((nn.ReLU, F.relu, torch.relu, "relu", "relu_"), ("relu", [])),
    **dict.fromkeys((nn.ReLU6, F.relu6), ("hardtanh", [0.0, 6.0])),
    **dict.fromkeys((nn.SiLU, F.silu), ("swish", [])),
    **dict.fromkeys((nn.Hardswish, F.hardswish), ("hardswish", [])),
}
# The same without oneDNN.
_FUNCTIONS = {
    None: lambda x: x, "relu": F.relu_, "hardtanh": F.relu6, "swish": F.silu,
    "hardswish": F.hardswish,
}  # fmt: skip
_IN_PLACE = {
    set_item, operator.iadd, operator.isub, operator.imul, operator.itruediv,
    operator.ifloordiv, operator.ipow, operator.imod, operator.iand, operator.ior,
    operator.ixor,
}  # fmt: skip
_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


@dataclass
class _Chain:
    """What one fused call stands for.

    Attributes:
        convolution: the first node.
        tail: the last one.
        norm: the normalisation behind the convolution.
        other: what is added.
        activation: how oneDNN calls it, and its numbers.
    """

    convolution: fx.Node
    tail: fx.Node
    norm: nn.BatchNorm2d | nn.SyncBatchNorm | None = None
    other: fx.Node | None = None
    activation: tuple[str | None, list[float]] = (None, [])


def fuse(
    network: fx.GraphModule, input_shape: tuple[int, ...], dtype: torch.dtype
) -> fx.GraphModule:
    """Return ``network`` for inference in ``dtype``, with weights of its own.

    Normalisation that is not fused, and linear layers that make the logits, stay in the
    format they have: narrowing them costs accuracy and saves nothing.

    Args:
        network: in evaluation mode; left as it is.
        input_shape: (C, H, W) of one image.
        dtype: float32 or bfloat16.

    Returns:
        A function of channels-last images [B, C, H, W] of ``dtype``.
    """
    return Fusion(network, input_shape, dtype).network


class Fusion:
    """Finds the chains of a network, and writes it anew with a call for each.

    Takes what :func:`fuse` takes.

    Attributes:
        network: what :func:`fuse` returns.
    """

    def __init__(
        self, network: fx.GraphModule, input_shape: tuple[int, ...], dtype: torch.dtype
    ) -> None:
        self._dtype = dtype
        self._source = network
        on_cpu = next(network.parameters()).device.type == "cpu"
        library = torch.backends.mkldnn
        # Plain, adding, and adding to what is there; builds of torch without oneDNN do
        # not have them.
        self._calls: tuple = ()
        if on_cpu and library.is_available() and library.enabled:
            ops = torch.ops.mkldnn
            pointwise, in_place = ops._convolution_pointwise, ops._convolution_pointwise_
            self._calls = (pointwise.default, pointwise.binary, in_place.binary)
        self._modules = dict(network.named_modules())
        self._shapes = {
            node.name: value.shape
            for node, value in ShapeRun(network).run_on(input_shape).values.items()
            if isinstance(value, Tensor)
        }
        self._nodes = self._without_identities()
        self._chains: dict[fx.Node, _Chain] = {}  # by the last of their nodes
        self._taken: set[fx.Node] = set()  # by one or the other of them
        self._places = {node: place for place, node in enumerate(self._nodes)}
        self._changing = [n for n in self._nodes if _changes(n, self._module(n))]
        for node in self._nodes:
            if _fits(self._module(node)):
                chain = self._follow(node)
                self._chains[chain.tail] = chain
        # What is to be written.
        self._graph = fx.Graph()
        self._root: dict[str, object] = {}
        self._written: dict[fx.Node, fx.Node] = {}
        # Weights that were written, and what they came from.
        self._folded: list[tuple[_Chain, list[Tensor]]] = []
        self._copied: list[tuple[Tensor, Tensor]] = []
        self.network = self._write()

    @torch.no_grad()
    def refold(self, wider: "Fusion | None" = None) -> None:
        """Let weights and statistics follow those of the source, where they are.

        Args:
            wider: of the same source, and refolded; spares folding a second time.
        """
        for number, (chain, written) in enumerate(self._folded):
            folded = wider._folded[number][1] if wider else self._weights(chain)
            for there, now in zip(written, folded, strict=True):
                there.copy_(now)
        for there, now in self._copied:
            there.copy_(now)

    def _write(self) -> fx.GraphModule:
        """Copy all nodes, but those of a chain as one."""
        for node in self._nodes:
            if node in self._chains:
                self._written[node] = self._call(self._chains[node])
            elif node not in self._taken:
                self._written[node] = self._copy(node)
        return fx.GraphModule(self._root, self._graph)

    def _without_identities(self) -> list[fx.Node]:
        """Return the nodes of a copy of the graph that lacks what does nothing."""
        graph = fx.Graph()
        graph.output(graph.graph_copy(self._source.graph, {}))
        for node in graph.nodes:
            same = node.meta.get("identity")
            if same or isinstance(self._module(node), nn.Identity | nn.Dropout):
                node.replace_all_uses_with(node.all_input_nodes[0])
                graph.erase_node(node)
            elif (node.op, node.target) == ("get_attr", "training"):
                for user in list(node.users):
                    user.args, user.kwargs = fx.node.map_arg(
                        (user.args, user.kwargs), lambda n, mode=node: n is not mode and n
                    )
                graph.erase_node(node)
        return list(graph.nodes)

    def _module(self, node: fx.Node | None) -> nn.Module | None:
        if node is None or node.op != "call_module":
            return None
        return self._modules[str(node.target)]

    def _follow(self, convolution: fx.Node) -> _Chain:
        """Find how much of what follows can be computed with ``convolution``."""
        chain = _Chain(convolution, convolution)
        user = self._only_user(chain)
        norm = self._module(user)
        normal = isinstance(norm, nn.BatchNorm2d | nn.SyncBatchNorm)
        if normal and norm.running_mean is not None:
            chain.norm, chain.tail = norm, user
            user = self._only_user(chain)
        # In groups, oneDNN adds only if the image happens to be laid out channels-last.
        single = self._module(convolution).groups == 1
        if user is not None and single and self._adds(user):
            first, second = user.args
            chain.other = second if first is chain.tail else first
            chain.tail = user
            user = self._only_user(chain)
        if user is not None:
            module = self._module(user)
            kind = user.target if module is None else type(module)
            if kind in _ACTIVATIONS:
                chain.activation, chain.tail = _ACTIVATIONS[kind], user
                self._taken.add(user)
        return chain

    def _only_user(self, chain: _Chain) -> fx.Node | None:
        """Take the last node of ``chain``; return what alone reads it, if that is free.

        A chain is done where it ends: what it begins with must not be changed by then.
        """
        self._taken.add(chain.tail)
        users = set(chain.tail.users)
        if len(users) != 1 or users & self._taken:
            return None
        (user,) = users
        begin, end = self._places[chain.convolution], self._places[user]
        between = (n for n in self._changing if begin < self._places[n] < end)
        if any(node is not chain.tail for node in between):
            return None
        return user

    def _adds(self, node: fx.Node) -> bool:
        """Say whether ``node`` adds two tensors of one shape."""
        if node.op == "call_module" or node.target not in _ADDITIONS or node.kwargs:
            return False
        if not all(isinstance(term, fx.Node) for term in node.args):
            return False
        shapes = {self._shapes.get(term.name) for term in node.args}
        return len(set(node.args)) == 2 and len(shapes) == 1 and None not in shapes

    def _call(self, chain: _Chain) -> fx.Node:
        """Write the call that stands for ``chain``."""
        module, name = self._module(chain.convolution), chain.convolution.name
        assert isinstance(module, nn.Conv2d)
        weight, *bias = (tensor.to(self._dtype) for tensor in self._weights(chain))
        written = [weight.contiguous(memory_format=torch.channels_last), *bias]
        self._folded.append((chain, written))
        constants = [self._constant(f"{name}_weight", written[0]), None]
        if bias:
            constants[1] = self._constant(f"{name}_bias", written[1])
        geometry = (module.padding, module.stride, module.dilation, module.groups)
        source = self._written[chain.convolution.all_input_nodes[0]]
        activation, numbers = chain.activation
        if not self._calls:
            other = self._written[chain.other] if chain.other else None
            given = (source, *constants, *geometry, other, activation)
            target = _convolve_pairs if self._pairs_up(chain) else _convolve
            return self._graph.call_function(target, given)
        plain, adding, adding_to = self._calls
        if chain.other is None:
            target, given = plain, (source, *constants, *geometry)
            given += (activation or "none", numbers, "")
        else:
            other = self._written[chain.other]
            added = (*constants, *geometry, "add", 1.0, activation, numbers, "")
            if self._is_spent(chain.other):
                target, given = adding_to, (other, source, *added)
            else:
                target, given = adding, (source, other, *added)
        return self._graph.call_function(target, given)

    def _weights(self, chain: _Chain) -> list[Tensor]:
        """Return weight and, if there is one, bias of a convolution and its norm."""
        module = self._module(chain.convolution)
        tensors = (module.weight, module.bias)
        if chain.norm is not None:
            tensors = _folded(module, chain.norm)
        if not self._calls and self._pairs_up(chain):
            weight, bias = tensors
            bias = bias if bias is None else bias.repeat(2)
            tensors = _paired_weight(weight), bias
        return [tensor.detach() for tensor in tensors if tensor is not None]

    def _pairs_up(self, chain: _Chain) -> bool:
        """Say whether pixels are convolved in pairs: where channels are few.

        cuDNN's kernels for 16 channels take twice the time of those for 32.
        """
        module = self._module(chain.convolution)
        assert isinstance(module, nn.Conv2d)
        across = (module.kernel_size[1], module.stride[1], module.padding[1])
        few = {module.in_channels, module.out_channels} <= {8, 16}
        dense = (*across, module.dilation[1], module.groups) == (3, 1, 1, 1, 1)
        return few and dense and self._shapes[chain.convolution.name][-1] % 2 == 0

    def _is_spent(self, node: fx.Node) -> bool:
        """Say whether what is written now reads ``node`` last, and may write over it."""
        written = self._written[node]
        calls = (written, *written.users)
        fresh = all(call.target in self._calls for call in calls)
        return fresh and len(written.users) == len(node.users) - 1

    def _constant(self, name: str, value: Tensor) -> fx.Node:
        self._root[name] = value
        return self._graph.get_attr(name)

    def _copy(self, node: fx.Node) -> fx.Node:
        """Write ``node`` as it is, with narrow weights unless it makes the logits."""
        target, module = str(node.target), self._module(node)
        copied = self._graph.node_copy(node, self._written.__getitem__)
        if node.op == "get_attr":
            tensor = get_tensor(self._source, target).detach()
            floating = tensor.is_floating_point()
            self._root[target] = tensor.to(self._dtype) if floating else tensor
            self._copied.append((self._root[target], tensor))
        elif isinstance(module, nn.Linear) and all(u.op == "output" for u in node.users):
            self._root[target] = module
            with self._graph.inserting_before(copied):
                wide = self._graph.call_method("float", copied.args)
            copied.args = (wide,)
        elif module is not None:
            self._root[target] = copy.deepcopy(module)
            for part in self._root[target].modules():
                if not isinstance(part, _NORMS):
                    for tensor in (*part.parameters(False), *part.buffers(False)):
                        if tensor.is_floating_point():
                            tensor.data = tensor.data.to(self._dtype)
            for there, now in zip(
                (*self._root[target].parameters(), *self._root[target].buffers()),
                (*module.parameters(), *module.buffers()), strict=True,
            ):  # fmt: skip
                self._copied.append((there, now))
        return copied


def _changes(node: fx.Node, module: nn.Module | None) -> bool:
    """Say whether ``node`` may change what it reads in place."""
    if module is not None:
        return getattr(module, "inplace", not type(module).__module__.startswith("torch."))
    flags = (*node.args, *node.kwargs.values())  # ``inplace`` has a place of its own
    name = node.target if node.op == "call_method" else getattr(node.target, "__name__", "")
    known = node.target in _IN_PLACE or str(name).endswith("_")
    return node.op.startswith("call") and (known or any(flag is True for flag in flags))


def _convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int],
    stride: tuple[int, int], dilation: tuple[int, int], groups: int,
    other: Tensor | None, activation: str | None,
) -> Tensor:  # fmt: skip
    """Do what a call of oneDNN does, where there is none.

    cuDNN adds and rectifies while the sums are at hand, too, and saves a GPU two ways to
    its memory and back; it has no other activations.
    """
    if x.is_cuda and torch.version.cuda and activation == "relu" and groups == 1:
        geometry = (stride, padding, dilation, groups)
        if other is None:
            return torch.cudnn_convolution_relu(x, weight, bias, *geometry)
        return torch.cudnn_convolution_add_relu(x, weight, other, 1.0, bias, *geometry)
    y = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    if other is not None:
        y += other
    return _FUNCTIONS[activation](y)


def _convolve_pairs(
    x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int],
    stride: tuple[int, int], dilation: tuple[int, int], groups: int,
    other: Tensor | None, activation: str | None,
) -> Tensor:  # fmt: skip
    """Do :func:`_convolve` on half as many pixels with twice the channels.

    Two neighbours in a row lie side by side in channels-last memory; weights and bias are
    those of pairs already.
    """
    other = other if other is None else _pairs(other)
    y = _convolve(
        _pairs(x), weight, bias, padding, stride, dilation, groups, other, activation
    )
    batch, channels, height, width = y.shape
    apart = y.permute(0, 2, 3, 1).reshape(batch, height, 2 * width, channels // 2)
    return apart.permute(0, 3, 1, 2)


def _pairs(x: Tensor) -> Tensor:
    """Return [B, 2C, H, W / 2] of [B, C, H, W]: the channels of the left pixel first."""
    batch, channels, height, width = x.shape
    paired = x.permute(0, 2, 3, 1).reshape(batch, height, width // 2, 2 * channels)
    return paired.permute(0, 3, 1, 2)


def _paired_weight(weight: Tensor) -> Tensor:
    """Return the weight [2O, 2I, H, 3] that does for pairs what [O, I, H, 3] does."""
    rows, columns, height, _ = weight.shape
    paired = weight.new_zeros(2, rows, 2, columns, height, 3)
    for side in (0, 1):
        paired[side, :, side, ..., 1] = weight[..., 1]  # a pixel, and itself
        # Its neighbour in the same pair, and the one across.
        paired[side, :, 1 - side, ..., side : side + 2] = weight[..., ::2]
    return paired.view(2 * rows, 2 * columns, height, 3)


def _fits(module: nn.Module | None) -> bool:
    """Say whether oneDNN has all of ``module``."""
    return (
        isinstance(module, nn.Conv2d)
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
    )


def _folded(
    convolution: nn.Conv2d, norm: nn.BatchNorm2d | nn.SyncBatchNorm
) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a convolution that does what both did."""
    return fuse_conv_bn_weights(
        convolution.weight, convolution.bias, norm.running_mean, norm.running_var,
        norm.eps, norm.weight, norm.bias,
    )  # fmt: skip
