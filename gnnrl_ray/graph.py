"""The hierarchical computational graph of a network, and its state under pruning.

GNN-RL section 3.1: nodes are hidden states, edges are operations; sub-graphs that repeat
are motifs, and at the next level each of their occurrences is a single edge. The topology
of a network is fixed; pruning changes the features of the primitive operations.

Axis letters: E primitive edges, F features of one, G groups, I instances of a motif.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from gnnrl_ray.costs import Costs
from gnnrl_ray.groups import ChannelGroups
from gnnrl_ray.labels import KINDS

# log2 of any channel count, kernel side or image side stays below this.
_LOG_SCALE = 16.0


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


@dataclass(frozen=True)
class _Segment:
    """The operations between two hidden states through which everything passes."""

    start: int
    stop: int
    signature: tuple
    weighted: bool


class HierarchicalGraph:
    """Levels of computational graphs over the operations of a network.

    Args:
        groups: of the network.
        levels: 2 finds motifs; 1 leaves the network flat.

    Attributes:
        levels: the motifs of each level, lowest first; the top one holds one graph.
        shape: (E, F) of the features.
    """

    def __init__(self, groups: ChannelGroups, levels: int = 2) -> None:
        if levels not in (1, 2):
            raise ValueError(f"`levels` must be 1 or 2, got {levels}.")
        self.groups = groups
        self._costs = Costs(groups)
        operations = groups.operations
        pairs = [(p, i) for i, op in enumerate(operations) for p in op.parents]
        self._sources, self._operations = np.array(pairs).T
        column = {id(op): j for j, op in enumerate(groups.layers)}
        self._layers = np.array(
            [column.get(id(operations[i]), -1) for i in self._operations]
        )
        self._row_of = {pair: row for row, pair in enumerate(pairs)}
        if levels == 1:
            self.levels = ((self._motif([(-1, len(operations) - 1)]),),)
        else:
            instances = self._instances()
            occurrences: dict[tuple, list[tuple[int, int]]] = {}
            for signature, start, stop in instances:
                occurrences.setdefault(signature, []).append((start, stop))
            order = [span for spans in occurrences.values() for span in spans]
            motifs = tuple(map(self._motif, occurrences.values()))
            edges = [order.index((start, stop)) for _, start, stop in instances]
            self.levels = (motifs, (self._chain(edges),))
        self._fixed = self._fixed_features()
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
        now, dense = (
            self._edge_channels(widths),
            self._edge_channels(self.groups.widths),
        )
        logs = np.log2(1 + now) / _LOG_SCALE
        kept = now / dense
        share = np.sqrt(self._edge_macs(widths))
        changing = np.concatenate([logs, kept, share[..., None]], -1)
        fixed = np.broadcast_to(self._fixed, (*changing.shape[:-1], self._fixed.shape[1]))
        return np.concatenate([fixed, changing], -1).astype(np.float32)

    def _edge_channels(self, widths: np.ndarray) -> np.ndarray:
        """[..., E, 2]: channels of the state that an edge leaves and of its end."""
        out = self._costs.channels(widths)
        image = np.full((*out.shape[:-1], 1), self.groups.input_shape[0])
        out = np.concatenate([out, image], -1)  # entry -1 is the network's input
        return np.stack([out[..., self._sources], out[..., self._operations]], -1)

    def _edge_macs(self, widths: np.ndarray) -> np.ndarray:
        """[..., E]: share of the dense network's multiply-accumulates; 0 off layers."""
        macs = self._costs.layer_macs(widths) / self._costs.macs(self.groups.widths)
        macs = np.concatenate([macs, np.zeros_like(macs[..., :1])], -1)
        return macs[..., self._layers]

    def _fixed_features(self) -> np.ndarray:
        rows = []
        for i in self._operations:
            op, stride = self.groups.operations[i], self._stride(i)
            sides = np.log2([op.kernel**0.5, stride, op.size**0.5]) / _LOG_SCALE
            rows.append([*(op.kind == kind for kind in KINDS), *sides])
        return np.array(rows, float)

    def _stride(self, i: int) -> float:
        """How much smaller an operation's output is than its input, along one side."""
        op = self.groups.operations[i]
        image = int(np.prod(self.groups.input_shape[1:]))
        before = [image if p < 0 else self.groups.operations[p].size for p in op.parents]
        return max(1.0, (before[0] / op.size) ** 0.5)

    def _segments(self) -> Iterator[_Segment]:
        """Cut the network wherever all of its dataflow passes through one state."""
        operations = self.groups.operations
        last_use = {-1: -1}
        for i, op in enumerate(operations):
            last_use.update(dict.fromkeys(op.parents, i))
        start, reach = -1, last_use[-1]
        for i in range(len(operations)):
            # Either nothing older is read later on, or there is no later.
            if reach <= i or i == len(operations) - 1:
                yield self._segment(start, i)
                start = i
            reach = max(reach, last_use.get(i, len(operations)))

    def _segment(self, start: int, stop: int) -> _Segment:
        inside = range(start + 1, stop + 1)
        members = [self.groups.operations[i] for i in inside]
        signature = tuple(
            (
                op.kind,
                op.kernel,
                self._stride(i),
                op.depthwise,
                op.bias,
                *tuple(p - start for p in op.parents),
            )
            for i, op in zip(inside, members, strict=True)
        )
        weighted = any(op.kind in ("conv", "linear") for op in members)
        return _Segment(start, stop, signature, weighted)

    def _instances(self) -> list[tuple[tuple, int, int]]:
        """Divide the network into motif instances: (signature, entry, exit) in order.

        A run is a segment with weights and those without that follow it; of each run,
        the longest beginning that other runs share is an instance, and so is the rest.
        """
        runs: list[list[_Segment]] = []
        for segment in self._segments():
            if segment.weighted or not runs:
                runs.append([])
            runs[-1].append(segment)
        beginnings = Counter(
            tuple(s.signature for s in run[:length])
            for run in runs
            for length in range(1, len(run) + 1)
        )
        instances = []
        for run in runs:
            signature = tuple(s.signature for s in run)
            shared = [n for n in range(1, len(run) + 1) if beginnings[signature[:n]] > 1]
            cut = max(shared, default=len(run))
            for part in (run[:cut], run[cut:]):
                if part:
                    key = tuple(s.signature for s in part)
                    instances.append((key, part[0].start, part[-1].stop))
        return instances

    def _motif(self, spans: list[tuple[int, int]]) -> Motif:
        """The graph of the operations after ``start`` up to ``stop``, for each span."""
        entry, leave = spans[0]
        operations = self.groups.operations
        local = [
            (p - entry, i - entry)
            for i in range(entry + 1, leave + 1)
            for p in operations[i].parents
        ]
        children = [
            [self._row_of[start + source, start + end] for source, end in local]
            for start, _ in spans
        ]
        return Motif(
            "-".join(op.kind for op in operations[entry + 1 : leave + 1]),
            leave - entry + 1,
            np.array(local).T,
            np.array(children),
            tuple((operations[a + 1].name, operations[b].name) for a, b in spans),
        )

    def _chain(self, children: list[int]) -> Motif:
        """The top level: its edges are the instances, in the network's order."""
        nodes, names = np.arange(len(children) + 1), self.groups.operations
        edges = np.array([nodes[:-1], nodes[1:]])
        place = (names[0].name, names[-1].name)
        return Motif("network", len(nodes), edges, np.array([children]), (place,))
