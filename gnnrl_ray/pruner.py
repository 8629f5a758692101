"""Which channels to keep, and the network without the others: removed, or silenced.

Axis letters: G prunable groups, C channels of one group, K weights of one channel.
"""

import copy
from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor, fx, nn

from gnnrl_ray.groups import ChannelGroups
from gnnrl_ray.labels import FIXED, ZERO, Operation, select_channels, symbolic

IMPORTANCES: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "l1": lambda weights, _: weights.abs().sum(1),
    "l2": lambda weights, _: weights.norm(dim=1),
    "random": lambda weights, generator: torch.rand(len(weights), generator=generator),
}


def rank(
    network: nn.Module, groups: ChannelGroups, importance: str = "l2", seed: int = 0
) -> tuple[np.ndarray, ...]:
    """Order the channels of every group from most to least important.

    A channel's weights are those of all filters that make it, over all layers of its
    group, so that layers of one residual stream are ranked as one.

    Args:
        network: the dense network.
        groups: of that network.
        importance: one of ``IMPORTANCES``.
        seed: for ``random``.

    Returns:
        G arrays, int64 [C] each: a permutation of 0 .. C - 1.
    """
    if importance not in IMPORTANCES:
        raise ValueError(
            f"unknown importance {importance!r}; known: {', '.join(IMPORTANCES)}."
        )
    generator = torch.Generator().manual_seed(seed)
    made: list[list[Tensor]] = [[] for _ in groups.names]
    for op in groups.layers:
        if op.depthwise:
            continue
        weight = network.get_submodule(op.module).weight.detach().cpu().flatten(1).float()
        owner = groups.group_of(op.outputs)
        for g in np.unique(owner[owner >= 0]):
            rows = torch.zeros(groups.widths[g], weight.shape[1])
            rows[op.outputs[owner == g] - groups.offsets[g]] = weight[owner == g]
            made[g].append(rows)
    score = IMPORTANCES[importance]
    return tuple(
        score(torch.cat(rows, 1), generator).argsort(descending=True, stable=True).numpy()
        for rows in made
    )


def keep(ranking: Iterable[np.ndarray], widths: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return the ``widths`` best channels of each group, G sorted int64 arrays."""
    return tuple(
        np.sort(order[:width]) for order, width in zip(ranking, widths, strict=True)
    )


def prune(
    network: nn.Module,
    groups: ChannelGroups,
    widths: np.ndarray,
    importance: str = "l2",
    seed: int = 0,
) -> fx.GraphModule:
    """Return a physically smaller copy of ``network`` with ``widths`` channels.

    Args:
        network: the dense network; left as it is.
        groups: of that network.
        widths: int [G], channels to keep.
        importance: one of ``IMPORTANCES``: which channels those are.
        seed: for ``random`` importance.

    Raises:
        ValueError: widths out of range, or an unknown importance.
    """
    widths = groups.check_widths(widths)
    return remove(network, groups, keep(rank(network, groups, importance, seed), widths))


def mask(
    network: nn.Module,
    groups: ChannelGroups,
    widths: np.ndarray,
    importance: str = "l2",
    seed: int = 0,
) -> fx.GraphModule:
    """Return a copy of ``network`` with the same channels silenced: equal outputs.

    Takes what :func:`prune` takes. Shapes stay; every layer reads zeros from dropped
    channels, after normalisation and activation, as if they were not there.
    """
    widths = groups.check_widths(widths)
    return silence(network, groups, keep(rank(network, groups, importance, seed), widths))


def _flags(groups: ChannelGroups, kept: Iterable[np.ndarray]) -> np.ndarray:
    """Bool [channels + 1]: kept or not; the last entry serves ``FIXED``."""
    flags = np.zeros(groups.offsets[-1] + 1, bool)
    flags[FIXED] = True
    for offset, index in zip(groups.offsets, kept, strict=False):
        flags[offset + np.asarray(index)] = True
    return flags


def remove(
    network: nn.Module, groups: ChannelGroups, kept: Iterable[np.ndarray]
) -> fx.GraphModule:
    """Return a copy of ``network`` that has only the channels ``kept`` (see :func:`keep`).

    It is a ``torch.fx`` graph over modules of the same names and types, so its state
    dict has the dense network's keys, and it trains, copies and exports like any module.
    """
    flags = _flags(groups, kept)
    graph = symbolic(network)
    indices = {
        op.module: (_positions(flags, op.inputs), _positions(flags, op.outputs), op)
        for op in groups.operations
        if op.kind in ("conv", "linear", "norm")
    }
    smaller: dict[int, object] = {}
    for name, (inputs, outputs, op) in indices.items():
        _slice(graph.get_submodule(name), inputs, outputs, op, smaller)
    result = copy.deepcopy(graph, smaller)
    for name, (inputs, outputs, op) in indices.items():
        _resize(result.get_submodule(name), len(inputs), len(outputs), op)
    for op in groups.operations:
        if op.kind == "select":
            _reselect(result, op, flags)
    result.recompile()
    return result


def _positions(flags: np.ndarray, channels: np.ndarray) -> Tensor:
    return torch.from_numpy(np.flatnonzero(flags[channels]))


def _slice(
    module: nn.Module, inputs: Tensor, outputs: Tensor, op: Operation, memo: dict
) -> None:
    """Put the smaller tensors of ``module`` where ``copy.deepcopy`` looks for copies."""

    def put(tensor: Tensor | None, *indices: Tensor) -> None:
        if tensor is None:
            return
        part = tensor.detach()
        for axis, index in enumerate(indices):
            part = part.index_select(axis, index.to(part.device))
        if isinstance(tensor, nn.Parameter):
            part = nn.Parameter(part, tensor.requires_grad)
        memo[id(tensor)] = part

    if op.kind == "norm":
        for tensor in (
            module.weight,
            module.bias,
            module.running_mean,
            module.running_var,
        ):
            put(tensor, outputs)
        return
    put(module.weight, outputs, *([] if op.depthwise else [inputs]))
    put(module.bias, outputs)


def _resize(module: nn.Module, inputs: int, outputs: int, op: Operation) -> None:
    """Let ``module`` say of itself what it has become."""
    if op.kind == "norm":
        module.num_features = outputs
    elif op.kind == "linear":
        module.in_features, module.out_features = inputs, outputs
    else:
        module.in_channels, module.out_channels = inputs, outputs
        if op.depthwise:
            module.groups = outputs


def _reselect(graph: fx.GraphModule, op: Operation, flags: np.ndarray) -> None:
    """Let a selection of channels pick from what was kept, for what was kept."""
    there = flags[op.inputs]
    position = np.where(there, np.cumsum(there) - 1, ZERO)
    assert op.taken is not None
    taken = op.taken[flags[op.outputs]]
    index = torch.from_numpy(np.where(taken == ZERO, ZERO, position[taken]))
    node = _node(graph, op)
    with graph.graph.inserting_before(node):
        constant = _constant(graph, f"taken_{op.name}", index)
        selected = graph.graph.call_function(select_channels, (node.args[0], constant))
    node.replace_all_uses_with(selected)
    graph.graph.erase_node(node)
    selected.name = op.name


def _node(graph: fx.GraphModule, op: Operation) -> fx.Node:
    return next(node for node in graph.graph.nodes if node.name == op.name)


def _constant(graph: fx.GraphModule, name: str, value: Tensor) -> fx.Node:
    """Insert ``value`` as a buffer that moves with the network but is not saved."""
    device = next(graph.parameters()).device
    graph.register_buffer(name, value.to(device), persistent=False)
    return graph.graph.get_attr(name)


def silence(
    network: nn.Module, groups: ChannelGroups, kept: Iterable[np.ndarray]
) -> fx.GraphModule:
    """Return a copy of ``network`` in which only ``kept`` channels are read."""
    flags = _flags(groups, kept)
    graph = copy.deepcopy(symbolic(network))
    dtype = next(graph.parameters()).dtype
    readers = [op for op in groups.operations if op.kind in ("conv", "linear", "select")]
    for op in readers:
        node = _node(graph, op)
        there = torch.from_numpy(flags[op.inputs]).to(dtype)
        shape = (-1,) if op.kind == "linear" else (-1, 1, 1)
        with graph.graph.inserting_before(node):
            constant = _constant(graph, f"mask_{op.name}", there.view(shape))
            masked = graph.graph.call_function(torch.mul, (node.args[0], constant))
        node.update_arg(0, masked)
    graph.recompile()
    return graph
