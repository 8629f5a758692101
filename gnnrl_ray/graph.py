"""The hierarchical computational graph of a network, and its state under pruning.

GNN-RL section 3.1: nodes are hidden states, edges are operations; sub-graphs that repeat
are motifs, and at the next level each of their occurrences is a single edge. The topology
of a network is fixed; pruning changes the features of the primitive operations.

Axis letters: E primitive edges, F features of one, G groups, I instances of a motif.
"""

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise

import numpy as np

from gnnrl_ray.costs import Costs
from gnnrl_ray.groups import ChannelGroups
from gnnrl_ray.operations import KINDS

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
class _Span:
    """Operations between two hidden states through which everything passes."""

    start: int
    stop: int
    signature: Hashable
    weighted: bool = True
    branching: bool = False  # it has states that not everything passes through


class HierarchicalGraph:
    """Levels of computational graphs over the operations of a network.

    Args:
        groups: of the network.
        levels: at most so many: 1 leaves the network flat; 2 finds motifs; 3 also finds
            sequences of motifs that repeat, such as the stages of a ResNet, if there are.

    Attributes:
        levels: the motifs of each level, lowest first; the top one holds one graph.
        edges: int64 [E], the operation that each primitive edge is.
        shape: (E, F) of the features.
    """

    def __init__(self, groups: ChannelGroups, levels: int = 2) -> None:
        if levels not in (1, 2, 3):
            raise ValueError(f"`levels` must be 1, 2 or 3, got {levels}.")
        self.groups = groups
        self._costs = Costs(groups)
        operations = groups.operations
        pairs = [(p, i) for i, op in enumerate(operations) for p in op.parents]
        self._sources, self.edges = np.array(pairs).T
        column = {id(op): j for j, op in enumerate(groups.layers)}
        self._layers = np.array([column.get(id(operations[i]), -1) for i in self.edges])
        self._row_of = {pair: row for row, pair in enumerate(pairs)}
        everything = _Span(-1, len(operations) - 1, "network")
        self.levels: tuple[tuple[Motif, ...], ...] = ((self._motif([everything]),),)
        if levels > 1:
            blocks = _join(self._blocks())
            instances, motifs = _by_signature(blocks)
            self.levels = (tuple(map(self._motif, motifs)),)
            stages = _stages(blocks) if levels == 3 else []
            if stages:
                below = instances
                instances, motifs = _by_signature(stages)
                self.levels += (
                    tuple(
                        self._chain(
                            spans,
                            [
                                [below[b] for b in blocks if s.start <= b.start < s.stop]
                                for s in spans
                            ],
                        )
                        for spans in motifs
                    ),
                )
            chain = stages or blocks
            self.levels += ((self._chain([everything], [[instances[s] for s in chain]]),),)
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
        return np.stack([out[..., self._sources], out[..., self.edges]], -1)

    def _edge_macs(self, widths: np.ndarray) -> np.ndarray:
        """[..., E]: share of the dense network's multiply-accumulates; 0 off layers."""
        macs = self._costs.layer_macs(widths) / self._costs.macs(self.groups.widths)
        macs = np.concatenate([macs, np.zeros_like(macs[..., :1])], -1)
        return macs[..., self._layers]

    def _fixed_features(self) -> np.ndarray:
        rows = []
        for i in self.edges:
            op, stride = self.groups.operations[i], self.stride(i)
            sides = np.log2([op.kernel**0.5, stride, op.size**0.5]) / _LOG_SCALE
            rows.append([*(op.kind == kind for kind in KINDS), *sides])
        return np.array(rows, float)

    def stride(self, i: int) -> float:
        """Return how much smaller operation ``i`` makes the image, along one side."""
        op = self.groups.operations[i]
        image = int(np.prod(self.groups.input_shape[1:]))
        before = [image if p < 0 else self.groups.operations[p].size for p in op.parents]
        return max(1.0, (before[0] / op.size) ** 0.5)

    def _segments(self) -> Iterator[_Span]:
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

    def _segment(self, start: int, stop: int) -> _Span:
        inside = range(start + 1, stop + 1)
        members = [self.groups.operations[i] for i in inside]
        signature = tuple(
            (
                op.kind,
                op.kernel,
                self.stride(i),
                op.depthwise,
                op.groups > 1,
                op.bias,
                *tuple(p - start for p in op.parents),
            )
            for i, op in zip(inside, members, strict=True)
        )
        weighted = any(op.weight is not None for op in members)
        return _Span(start, stop, signature, weighted, len(members) > 1)

    def _blocks(self) -> list[_Span]:
        """Divide the network into runs, and these where other runs begin alike.

        A run is a segment with weights and those without that follow it, but for a pool
        after a segment with branches; of each run, the longest beginning that other runs
        share is a block, and so is the rest.
        """
        runs: list[list[_Span]] = []
        for segment in self._segments():
            pools = self.groups.operations[segment.stop].kind == "pool"
            ends = bool(runs) and pools and any(s.branching for s in runs[-1])
            if segment.weighted or not runs or (ends and not segment.branching):
                runs.append([])
            runs[-1].append(segment)
        beginnings = Counter(
            tuple(s.signature for s in run[:length])
            for run in runs
            for length in range(1, len(run) + 1)
        )
        blocks = []
        for run in runs:
            signature = tuple(s.signature for s in run)
            shared = [n for n in range(1, len(run) + 1) if beginnings[signature[:n]] > 1]
            cut = max(shared, default=len(run))
            blocks += [_joined(part) for part in (run[:cut], run[cut:]) if part]
        return blocks

    def _motif(self, spans: list[_Span]) -> Motif:
        """The graph of the operations within a span, for spans of equal signatures."""
        entry, leave = spans[0].start, spans[0].stop
        operations = self.groups.operations
        local = [
            (p - entry, i - entry)
            for i in range(entry + 1, leave + 1)
            for p in operations[i].parents
        ]
        children = [
            [self._row_of[span.start + source, span.start + end] for source, end in local]
            for span in spans
        ]
        return Motif(
            "-".join(op.kind for op in operations[entry + 1 : leave + 1]),
            leave - entry + 1,
            np.array(local).T,
            np.array(children),
            self._places(spans),
        )

    def _chain(self, spans: list[_Span], children: list[list[int]]) -> Motif:
        """A sequence of instances of the level below, for spans of equal signatures."""
        nodes = np.arange(len(children[0]) + 1)
        edges = np.array([nodes[:-1], nodes[1:]])
        label = "network" if spans[0].signature == "network" else "stage"
        return Motif(label, len(nodes), edges, np.array(children), self._places(spans))

    def _places(self, spans: list[_Span]) -> tuple[tuple[str, str], ...]:
        names = self.groups.operations
        return tuple((names[s.start + 1].name, names[s.stop].name) for s in spans)


def _joined(spans: Sequence[_Span]) -> _Span:
    """One span over several in a row."""
    return _Span(
        spans[0].start,
        spans[-1].stop,
        tuple(span.signature for span in spans),
        any(span.weighted for span in spans),
        any(span.branching for span in spans),
    )


def _join(spans: list[_Span]) -> list[_Span]:
    """Join neighbours that often are: the most frequent pair first, while any repeats.

    What has branches, or occurs next to itself, is a unit already: it is what repeats.
    """
    while True:
        twice = {a.signature for a, b in pairwise(spans) if a.signature == b.signature}
        counts: Counter[tuple[Hashable, Hashable]] = Counter()
        for first, second in pairwise(spans):
            if not (first.branching or second.branching):
                counts[first.signature, second.signature] += 1
        counts = Counter({p: n for p, n in counts.items() if not twice & set(p) and n > 1})
        if not counts:
            return spans
        ((pair, _),) = counts.most_common(1)
        joined: list[_Span] = []
        for span in spans:
            if joined and (joined[-1].signature, span.signature) == pair:
                span = _joined([joined.pop(), span])
            joined.append(span)
        spans = joined


def _stages(blocks: list[_Span]) -> list[_Span]:
    """Join blocks to stages, if a sequence of several occurs more than once; else []."""
    rows = [_joined(list(same)) for _, same in groupby(blocks, key=lambda b: b.signature)]
    joined = _join([replace(row, branching=False) for row in rows])
    counts = Counter(span.signature for span in joined)
    lone = {(row.start, row.stop) for row in rows}

    def repeats(span: _Span) -> bool:
        return counts[span.signature] > 1 and (span.start, span.stop) not in lone

    if not any(map(repeats, joined)):
        return []
    stages: list[_Span] = []
    for repeated, spans in groupby(joined, key=repeats):
        row = list(spans)
        stages += row if repeated else [_joined(row)]
    return stages


def _by_signature(spans: list[_Span]) -> tuple[dict[_Span, int], list[list[_Span]]]:
    """Sort spans into motifs; number their instances, motif by motif."""
    motifs: dict[Hashable, list[_Span]] = {}
    for span in spans:
        motifs.setdefault(span.signature, []).append(span)
    every = [span for same in motifs.values() for span in same]
    return {span: i for i, span in enumerate(every)}, list(motifs.values())
