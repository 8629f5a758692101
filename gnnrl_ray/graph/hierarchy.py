"""The hierarchical computational graph of a network, and its state under pruning.

GNN-RL section 3.1: nodes are hidden states, edges are operations; sub-graphs that repeat
are motifs, and at the next level each of their occurrences is a single edge. The topology
of a network is fixed; pruning changes the features of the primitive operations.

Axis letters: E primitive edges, F features of one, G groups, I instances of a motif.
"""

from dataclasses import dataclass

import numpy as np

from gnnrl_ray.errors import InputError
from gnnrl_ray.graph.regions import (
    Span,
    by_signature,
    find_blocks,
    find_stages,
    open_blocks,
    stride,
)
from gnnrl_ray.pruning.costs import Costs
from gnnrl_ray.tracing.groups import ChannelGroups
from gnnrl_ray.tracing.operations import KINDS

# log2 of any channel count, kernel side or image side stays below this.
_LOG_SCALE = 16.0
KEPT = -2  # of the features of an edge, the share of channels left behind it


@dataclass(frozen=True, eq=False)
class Motif:
    """A computational graph ``G_i^t`` and where it occurs.

    Attributes:
        label: the kinds of its operations, for people.
        nodes: number of hidden states; the first is the entry, the last the exit.
        edges: int64 [2, e], from and to node.
        children: int64 [I, e]: what each edge of each instance is at the level below,
            where instances are numbered motif by motif (at level 1: a primitive edge).
        places: what each instance spans, from operation to operation.
    """

    label: str
    nodes: int
    edges: np.ndarray
    children: np.ndarray
    places: tuple[tuple[str, str], ...]


class HierarchicalGraph:
    """Levels of computational graphs over the operations of a network.

    Args:
        groups: of the network.
        levels: at most so many: 1 leaves the network flat; 2 finds motifs; 3 also finds
            sequences of motifs that repeat, such as the stages of a ResNet, if there are.

    Attributes:
        levels: the motifs of each level, lowest first; the top one holds one graph.
        edges: int64 [E], the operation that each primitive edge is.
        costs: in closed form.
        shape: (E, F) of the features.
    """

    def __init__(self, groups: ChannelGroups, levels: int = 2) -> None:
        if levels not in (1, 2, 3):
            raise InputError(f"`levels` must be 1, 2 or 3, got {levels}.")
        self.groups = groups
        self.costs = Costs(groups)
        operations = groups.operations
        pairs = [(p, i) for i, op in enumerate(operations) for p in op.parents]
        self._sources, self.edges = np.array(pairs).T
        column = {id(op): j for j, op in enumerate(groups.layers)}
        self._layers = np.array([column.get(id(operations[i]), -1) for i in self.edges])
        self._row_of = {pair: row for row, pair in enumerate(pairs)}
        everything = Span(-1, tuple(range(len(operations))), "network")
        self.levels: tuple[tuple[Motif, ...], ...]
        if levels == 1:
            self.levels = ((self._motif([everything]),),)
        else:
            blocks = find_blocks(groups)
            pieces = open_blocks(groups, blocks)
            instances, motifs = by_signature(pieces)
            self.levels = (tuple(map(self._motif, motifs)),)
            stages = find_stages(blocks) if levels == 3 else []
            if stages:
                numbers, same = by_signature(stages)
                self.levels += (
                    tuple(self._assemble(spans, pieces, instances) for spans in same),
                )
                pieces, instances = stages, numbers
            self.levels += ((self._assemble([everything], pieces, instances),),)
        self._fixed = self._fixed_features()
        self._dense = self._edge_channels(groups.widths)
        self.shape = (len(pairs), self._fixed.shape[1] + 5)

    @property
    def motifs(self) -> tuple[Motif, ...]:
        """The graphs of level 1."""
        return self.levels[0]

    def features(self, widths: np.ndarray) -> np.ndarray:
        """Return E_0, float32 [..., E, F] in [0, 1]: the state of every primitive edge.

        One-hot kind, kernel side, stride and image side; and what pruning changes:
        channels in and out (log2), kept share in and out, share of the dense network's
        multiply-accumulates (square root).

        Args:
            widths: int [..., G].
        """
        now = self._edge_channels(widths)
        logs = np.log2(1 + now) / _LOG_SCALE
        kept = now / self._dense
        share = np.sqrt(self._edge_macs(widths))
        changing = np.concatenate([logs, kept, share[..., None]], -1)
        fixed = np.broadcast_to(self._fixed, (*changing.shape[:-1], self._fixed.shape[1]))
        return np.concatenate([fixed, changing], -1).astype(np.float32)

    def _edge_channels(self, widths: np.ndarray) -> np.ndarray:
        """[..., E, 2]: channels of the state that an edge leaves and of its end."""
        out = self.costs.channels(widths)
        # Entry -1 is what the network is given, be it one image or several.
        given = sum(shape[0] for shape in self.groups.input_shapes)
        out = np.concatenate([out, np.full((*out.shape[:-1], 1), given)], -1)
        return np.stack([out[..., self._sources], out[..., self.edges]], -1)

    def _edge_macs(self, widths: np.ndarray) -> np.ndarray:
        """[..., E]: share of the dense network's multiply-accumulates; 0 off layers."""
        macs = self.costs.layer_macs(widths) / self.costs.dense
        macs = np.concatenate([macs, np.zeros_like(macs[..., :1])], -1)
        return macs[..., self._layers]

    def _fixed_features(self) -> np.ndarray:
        rows = []
        for i in self.edges:
            op, shrinks = self.groups.operations[i], stride(self.groups, i)
            sides = np.log2([op.kernel**0.5, shrinks, op.size**0.5]) / _LOG_SCALE
            rows.append([*(op.kind == kind for kind in KINDS), *sides])
        return np.array(rows, float)

    def _motif(self, spans: list[Span]) -> Motif:
        """The graph of the operations within a span, for spans of equal signatures."""
        operations = self.groups.operations

        def pairs(span: Span) -> list[tuple[int, int]]:
            states = {span.start, *span.inside}
            each = ((p, i) for i in span.inside for p in operations[i].parents)
            return [(p, i) for p, i in each if p in states]

        return self._graph(
            "-".join(operations[i].kind for i in spans[0].inside),
            spans,
            pairs(spans[0]),
            [[self._row_of[pair] for pair in pairs(span)] for span in spans],
        )

    def _assemble(
        self, spans: list[Span], pieces: list[Span], numbers: dict[Span, int]
    ) -> Motif:
        """The graph of pieces within a span, for spans of equal signatures.

        Args:
            spans: instances of one graph of this level.
            pieces: all of the level below, in the network's order.
            numbers: of the pieces.
        """

        def parts(span: Span) -> list[Span]:
            inside = set(span.inside)
            return [piece for piece in pieces if piece.stop in inside]

        return self._graph(
            "network" if spans[0].signature == "network" else "stage",
            spans,
            [(piece.start, piece.stop) for piece in parts(spans[0])],
            [[numbers[piece] for piece in parts(span)] for span in spans],
        )

    def _graph(
        self,
        label: str,
        spans: list[Span],
        pairs: list[tuple[int, int]],
        children: list[list[int]],
    ) -> Motif:
        """One graph: its edges as pairs of states in the first of its instances."""
        states = sorted({state for pair in pairs for state in pair})
        local = {state: n for n, state in enumerate(states)}
        edges = np.array([(local[a], local[b]) for a, b in pairs]).T
        return Motif(label, len(states), edges, np.array(children), self._places(spans))

    def _places(self, spans: list[Span]) -> tuple[tuple[str, str], ...]:
        names = self.groups.operations
        return tuple((names[s.inside[0]].name, names[s.stop].name) for s in spans)
