"""The network without the channels that are not kept: removed, or silenced.

Axis letters: G prunable groups, C channels of one group.
"""

import operator
from collections.abc import Callable, Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from gnnrl_ray.data.loader import InputShape
from gnnrl_ray.process import torch_as_it_starts
from gnnrl_ray.pruning.importance import Batch, rank
from gnnrl_ray.tracing.check import SAME, Reference, trains
from gnnrl_ray.tracing.groups import ChannelGroups
from gnnrl_ray.tracing.network import TraceError, copied, get_tensor, unwrapped
from gnnrl_ray.tracing.operations import (
    FIXED,
    RESHAPES,
    ZERO,
    Layout,
    Operation,
    select_channels,
)
from gnnrl_ray.tracing.proxies import set_item
from gnnrl_ray.tracing.shapes import ShapeRun
from gnnrl_ray.tracing.symbolic import describe_node, makes_record, symbolic


def keep(ranking: Iterable[np.ndarray], widths: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return the ``widths`` best channels of each group, G sorted int64 arrays."""
    return tuple(
        np.sort(order[:width]) for order, width in zip(ranking, widths, strict=True)
    )


@torch_as_it_starts()
def prune(
    network: nn.Module,
    groups: ChannelGroups,
    widths: np.ndarray,
    importance: str = "l2",
    seed: int = 0,
    batch: Batch | None = None,
) -> nn.Module:
    """Return a physically smaller copy of ``network`` with ``widths`` channels.

    It is of the network's own class wherever its code works with smaller layers, and a
    ``torch.fx`` graph where that spells out numbers of channels, or channels have to be
    selected. Either has been run, beside ``network`` with the same channels silenced.

    Args:
        network: the dense network; left as it is.
        groups: of that network.
        widths: int [G], channels to keep.
        importance: of :data:`~gnnrl_ray.settings.IMPORTANCES`: which those are.
        seed: for ``random`` importance.
        batch: images [B, C, H, W] and labels [B], for ``taylor`` importance.

    Raises:
        InputError: widths out of range, or an unknown importance.
        TraceError: what is left does not return what it should.
    """
    return deliver(network, groups, _kept(network, groups, widths, importance, seed, batch))


def _kept(
    network: nn.Module, groups: ChannelGroups, widths: np.ndarray, *ranked_by: object
) -> tuple[np.ndarray, ...]:
    widths = groups.check_widths(widths)
    return keep(rank(network, groups, *ranked_by), widths)


@torch_as_it_starts()
def mask(
    network: nn.Module,
    groups: ChannelGroups,
    widths: np.ndarray,
    importance: str = "l2",
    seed: int = 0,
    batch: Batch | None = None,
) -> fx.GraphModule:
    """Return a copy of ``network`` with the same channels silenced: equal outputs.

    Takes what :func:`prune` takes. Shapes stay; every layer reads zeros from dropped
    channels, after normalisation and activation, as if they were not there.
    """
    return silence(network, groups, _kept(network, groups, widths, importance, seed, batch))


def flags_of(groups: ChannelGroups, kept: Iterable[np.ndarray]) -> np.ndarray:
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
    dict has the dense network's keys, and ``taken_NAME`` where channels are selected.
    """
    flags, graph = flags_of(groups, kept), groups.graph_of(network)
    result = copied(graph, _parts(graph, groups, flags))
    _rewrite(result, groups, flags)
    return result


def deliver(
    network: nn.Module,
    groups: ChannelGroups,
    kept: Iterable[np.ndarray],
    load: Callable[[nn.Module, nn.Module], None] | None = None,
) -> nn.Module:
    """Return what :func:`prune` does, with the channels ``kept`` (see :func:`keep`).

    Args:
        network: the dense network; left as it is.
        groups: of that network.
        kept: of each group.
        load: is given the graph and the network, which share their tensors, to load other
            weights and statistics into them.

    Raises:
        TraceError: what is left does not return what it should.
    """
    kept = tuple(kept)
    flags, graph = flags_of(groups, kept), groups.graph_of(network)
    parts = _parts(graph, groups, flags)
    result, smaller = copied((graph, unwrapped(network)), parts)
    _rewrite(result, groups, flags)
    for op in groups.operations:
        if op.module is not None and op.kind not in ("select", "reshape"):
            module = smaller.get_submodule(op.module)
            if module is not result.get_submodule(op.module):
                _resize(module, *_change(op, flags), op)
    macs = _silent(network, groups, kept, flags).check(result, "the pruned graph")
    if load is not None:
        load(result, smaller)
    expected = Reference.of(result, groups.input_shapes)
    try:
        own = "the network's own code on fewer channels"
        alike = expected.check(smaller, own, SAME) == macs
    except TraceError:
        alike = False
    # What is there for training alone, as auxiliary classifiers are, has not been traced.
    more = len(list(smaller.parameters())) > len(list(result.parameters()))
    if alike and more and trains(unwrapped(network), expected):
        alike = trains(smaller, expected)
    return smaller if alike else _without_us(result, groups.input_shapes)


def _silent(
    network: nn.Module, groups: ChannelGroups, kept: tuple[np.ndarray, ...],
    flags: np.ndarray,
) -> Reference:  # fmt: skip
    """Return what the dense network makes of images if only ``kept`` channels are read.

    That is the network's own code, with zeros among its weights, unless channels that are
    padded with others must be zero themselves.
    """
    if any(op.padded and not flags[op.inputs].all() for op in groups.operations):
        return Reference.of(silence(network, groups, kept), groups.input_shapes)
    graph, zeroed = groups.graph_of(network), {}
    for op in groups.layers:
        layout = groups.layouts[op.weight]
        if layout.columns is None:
            continue
        weight = get_tensor(graph, op.weight).detach().clone()
        rows, columns = (
            torch.from_numpy(flags[channels]).to(weight.device).chunk(layout.groups)
            for channels in (layout.rows, layout.columns)
        )
        blocks = weight.chunk(layout.groups)
        for block, there, read in zip(blocks, rows, columns, strict=True):
            block[~there] = 0
            block[:, ~read] = 0
        zeroed[op.weight] = weight
    return Reference.of(unwrapped(network), groups.input_shapes, zeroed)


def standing_alone(network: nn.Module, input_shape: InputShape) -> fx.GraphModule:
    """Return ``network`` as a graph that is unpickled where torch is, and nothing else.

    Args:
        network: pruned or not, in evaluation mode; left as it is.
        input_shape: (C, H, W) of one image, or one such for each that it takes.

    Raises:
        TraceError: it cannot be followed.
    """
    expected = Reference.of(network, input_shape)
    graph = _without_us(copied(symbolic(network, input_shape)), input_shape)
    graph.meta.clear()
    for node in graph.graph.nodes:
        node.meta.clear()
    expected.check(graph, "the network as a graph of torch alone")
    return graph


def _without_us(graph: fx.GraphModule, input_shape: InputShape) -> fx.GraphModule:
    """Let ``graph`` do with torch alone, to be loaded where we are not.

    It returns dictionaries and tuples in place of records, whose classes may not be there.
    """
    _spell_out_records(graph.graph)
    values = ShapeRun(graph).run_on(input_shape).values
    for node in list(graph.graph.nodes):
        if node.target is set_item:
            raise TraceError(
                describe_node(node, "torch alone has no operation for this assignment")
            )
        if node.target is not select_channels:
            continue
        source, index = node.args
        pad = (0, 0) * (values[source].dim() - 2) + (0, 1)
        with graph.graph.inserting_before(node):
            padded = graph.graph.call_function(F.pad, (source, pad))
            # ``ZERO`` is the last one, and zero now.
            taken = (padded, (slice(None), index))
            selected = graph.graph.call_function(operator.getitem, taken)
        values[selected] = values[node]  # what is padded may be padded again
        node.replace_all_uses_with(selected)
        graph.graph.erase_node(node)
    graph.recompile()
    return graph


def _spell_out_records(graph: fx.Graph) -> None:
    plain: dict[fx.Node, object] = {}
    for node in graph.nodes:
        given, named = fx.node.map_arg((node.args, node.kwargs), lambda n: plain.get(n, n))
        if makes_record(node):
            plain[node] = named or (given[-1] if issubclass(node.target, dict) else given)
        elif node.op == "output":
            node.args = given
    for node in reversed(plain):
        graph.erase_node(node)


def _parts(graph: fx.GraphModule, groups: ChannelGroups, flags: np.ndarray) -> dict:
    """Return kept parts of tensors by their ids, where ``deepcopy`` looks for copies."""
    smaller: dict[int, object] = {}
    for name, layout in groups.layouts.items():
        tensor = get_tensor(graph, name)
        part = part_of(tensor.detach(), layout, flags)
        if isinstance(tensor, nn.Parameter):
            part = nn.Parameter(part, tensor.requires_grad)
        smaller[id(tensor)] = part
    return smaller


def _change(op: Operation, flags: np.ndarray) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return how many channels ``op`` reads and writes, before and after."""
    before = (len(op.inputs), len(op.outputs))
    return before, (int(flags[op.inputs].sum()), int(flags[op.outputs].sum()))


def _rewrite(result: fx.GraphModule, groups: ChannelGroups, flags: np.ndarray) -> None:
    """Let modules and code of ``result`` say what they have become."""
    nodes = {node.name: node for node in result.graph.nodes}
    for op in groups.operations:
        before, after = _change(op, flags)
        if before == after:
            continue
        node = nodes[op.name]
        if op.kind == "select":
            nodes[op.name] = _reselect(result, node, nodes[op.source], op, flags)
        elif op.kind == "reshape":
            _reshape(node, op, after[1])
        elif node.op == "call_module":
            _resize(result.get_submodule(str(node.target)), before, after, op)
        elif op.depthwise:
            _regroup(node, after[0])
    result.recompile()


def part_of(tensor: Tensor, layout: Layout, flags: np.ndarray) -> Tensor:
    """Return the part of ``tensor`` that belongs to kept channels."""
    rows = torch.from_numpy(flags[layout.rows]).to(tensor.device)
    if layout.columns is None:
        return tensor.index_select(layout.axis, rows.nonzero()[:, 0])
    columns = torch.from_numpy(flags[layout.columns]).to(tensor.device)
    blocks = zip(*(t.chunk(layout.groups) for t in (tensor, rows, columns)), strict=True)
    return torch.cat([block[r][:, c] for block, r, c in blocks])


def _resize(
    module: nn.Module, before: tuple[int, int], after: tuple[int, int], op: Operation
) -> None:
    """Let ``module`` say of itself what it has become."""
    inputs, outputs = after
    match op.kind, module:
        case "conv", _:
            module.in_channels, module.out_channels = inputs, outputs
            if op.depthwise:
                module.groups = inputs
        case "linear", _:
            module.in_features, module.out_features = inputs, outputs
        case "norm", nn.GroupNorm():
            module.num_groups = module.num_groups * outputs // before[1]
            module.num_channels = outputs
        case "norm", _:
            module.num_features = outputs
        case "activation", nn.PReLU() if module.num_parameters > 1:
            module.num_parameters = outputs


def _regroup(node: fx.Node, channels: int) -> None:
    """Rewrite the number of groups where a depth-wise convolution spells it out."""
    at = 6  # of ``groups`` in F.conv2d and F.conv_transpose2d alike
    if len(node.args) > at and isinstance(node.args[at], int):
        node.update_arg(at, channels)
    elif isinstance(node.kwargs.get("groups"), int):
        node.update_kwarg("groups", channels)


def _reshape(node: fx.Node, op: Operation, channels: int) -> None:
    """Rewrite the number of channels where a shape spells it out."""
    if node.target not in (*RESHAPES, "expand"):
        return
    flat = not isinstance(node.args[1], tuple | list)
    sizes = list(node.args[1:] if flat else node.args[1])
    if isinstance(sizes[op.axis], int) and sizes[op.axis] != -1:
        sizes[op.axis] = channels
        node.args = (node.args[0], *(sizes if flat else [tuple(sizes)]))


def _reselect(
    graph: fx.GraphModule, node: fx.Node, source: fx.Node, op: Operation, flags: np.ndarray
) -> fx.Node:
    """Let a selection of channels pick from what was kept, for what was kept."""
    there = flags[op.inputs]
    position = np.where(there, np.cumsum(there) - 1, ZERO)
    assert op.taken is not None
    taken = op.taken[flags[op.outputs]]
    index = np.where(taken == ZERO, ZERO, position[taken])
    with graph.graph.inserting_before(node):
        if not op.padded and (np.diff(index) == 1).all():
            arguments = (source, op.axis, int(index[0]), len(index))
            selected = graph.graph.call_method("narrow", arguments)
        else:
            constant = _constant(graph, f"taken_{op.name}", torch.from_numpy(index), True)
            if op.padded:
                arguments = (source, constant)
                selected = graph.graph.call_function(select_channels, arguments)
            else:
                arguments = (source, op.axis, constant)
                selected = graph.graph.call_method("index_select", arguments)
    node.replace_all_uses_with(selected)
    _erase(node)
    selected.name = op.name
    return selected


def _erase(node: fx.Node) -> None:
    """Erase ``node`` and what only it has read: splits into sizes that are no more."""
    unused = [node]
    while unused:
        gone = unused.pop()
        sources = gone.all_input_nodes
        gone.graph.erase_node(gone)
        unused += [n for n in sources if not n.users and n.op != "placeholder"]


def _constant(
    graph: fx.GraphModule, name: str, value: Tensor, saved: bool = False
) -> fx.Node:
    """Insert ``value`` as a buffer, which moves with the network."""
    device = next(graph.parameters()).device
    graph.register_buffer(name, value.to(device), persistent=saved)
    return graph.graph.get_attr(name)


def silence(
    network: nn.Module, groups: ChannelGroups, kept: Iterable[np.ndarray]
) -> fx.GraphModule:
    """Return a copy of ``network`` in which only ``kept`` channels are read."""
    flags = flags_of(groups, kept)
    graph = copied(groups.graph_of(network))
    readers = [op for op in groups.operations if op.weight is not None or op.padded]
    for op, mask in insert_masks(graph, readers):
        mask.copy_(torch.from_numpy(flags[op.inputs]).view(mask.shape))
    return graph


def insert_masks(
    graph: fx.GraphModule, readers: Iterable[Operation], flags: np.ndarray | None = None
) -> list[tuple[Operation, Tensor]]:
    """Let ``readers`` read their inputs times a mask; return each with its own, of ones.

    Args:
        graph: changed in place.
        readers: operations of it.
        flags: of the channels that it has, if some have been removed.
    """
    nodes = {node.name: node for node in graph.graph.nodes}
    dtype = next(graph.parameters()).dtype
    masks = []
    for op in readers:
        node = nodes[op.name]
        sources = node.all_input_nodes
        if op.padded:  # beside zeros, or not at all: from what another has padded
            sources = [n for n in sources if n.name == op.source]
        if not sources:
            continue
        source = sources[0]
        # As many axes follow a layer's inputs as its kernel has.
        kernel = 2 if op.weight is None else get_tensor(graph, op.weight).dim() - 2
        count = len(op.inputs) if flags is None else int(flags[op.inputs].sum())
        ones, name = torch.ones(count, *[1] * kernel, dtype=dtype), op.name
        with graph.graph.inserting_before(node):
            constant = _constant(graph, f"mask_{name}", ones)
            masked = graph.graph.call_function(torch.mul, (source, constant))
        node.replace_input_with(source, masked)
        masks.append((op, graph.get_buffer(f"mask_{name}")))
    graph.recompile()
    return masks
