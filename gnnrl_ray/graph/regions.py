"""Regions of a traced network with one entry and one exit, and which of them repeat."""

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise

from gnnrl_ray.tracing.groups import ChannelGroups


@dataclass(frozen=True)
class Span:
    """Operations with a single hidden state as entry, and one as exit: their last."""

    start: int
    inside: tuple[int, ...]
    signature: Hashable
    weighted: bool = True
    branching: bool = False  # it has states that not everything passes through

    @property
    def stop(self) -> int:
        """The exit."""
        return self.inside[-1]


def _segments(groups: ChannelGroups) -> Iterator[Span]:
    """Cut the network wherever all of its dataflow passes through one state."""
    operations = groups.operations
    last_use = {-1: -1}
    for i, op in enumerate(operations):
        last_use.update(dict.fromkeys(op.parents, i))
    start, reach = -1, last_use[-1]
    for i in range(len(operations)):
        # Either nothing older is read later on, or there is no later.
        if reach <= i or i == len(operations) - 1:
            yield _span(groups, start, tuple(range(start + 1, i + 1)))
            start = i
        reach = max(reach, last_use.get(i, len(operations)))


def _span(groups: ChannelGroups, start: int, inside: tuple[int, ...]) -> Span:
    """Describe operations by what they do and how they are wired."""
    members = [groups.operations[i] for i in inside]
    local = {state: n for n, state in enumerate((start, *inside))}
    signature = tuple(
        (
            op.kind,
            op.kernel,
            0 if op.everywhere else stride(groups, i),
            op.depthwise,
            op.groups > 1,
            op.bias,
            *(local[p] for p in op.parents if p in local),
        )
        for i, op in zip(inside, members, strict=True)
    )
    weighted = any(op.weight is not None for op in members)
    return Span(start, inside, signature, weighted, len(members) > 1)


def find_blocks(groups: ChannelGroups) -> list[Span]:
    """Divide the network into blocks, in its order.

    A run is a segment with weights and those without that follow it, but for a pool after
    a segment with branches. Of each run, the longest beginning that other runs share is a
    block, and so is the rest; then neighbours are joined.
    """
    runs: list[list[Span]] = []
    for segment in _segments(groups):
        pools = groups.operations[segment.stop].kind == "pool"
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
    return _join(blocks)


def open_blocks(groups: ChannelGroups, blocks: list[Span]) -> list[Span]:
    """Divide blocks that occur once, but have chains in them that repeat.

    A dense block is such a block, and its layers are such chains. What else there is
    in it becomes a piece for each edge.
    """
    counts = Counter(block.signature for block in blocks)
    readers = Counter(p for op in groups.operations for p in op.parents)
    pieces: list[Span] = []
    for block in blocks:
        chains: list[Span] = []
        if block.branching and counts[block.signature] == 1:
            chains = _chains(groups, block, readers)
        repeated = Counter(c.signature for c in chains if c.weighted)
        opens = max(repeated.values(), default=0) > 1
        pieces += chains if opens else [block]
    return pieces


def _chains(groups: ChannelGroups, block: Span, readers: Counter[int]) -> list[Span]:
    """Divide a block into its longest chains and, where several states meet, edges."""
    operations = groups.operations
    chains: list[list[int]] = []  # an entry, and operations
    ends: dict[int, list[int]] = {}
    for i in block.inside:
        first, *others = operations[i].parents
        if operations[i].kind == "concat" or others:
            chains += [[parent, i] for parent in (first, *others)]
            continue
        if first in ends and readers[first] == 1:
            ends[i] = ends[first]
            ends[i].append(i)
        else:
            ends[i] = [first, i]
            chains.append(ends[i])
    return [_span(groups, entry, tuple(inside)) for entry, *inside in chains]


def stride(groups: ChannelGroups, i: int) -> float:
    """Return how much smaller operation ``i`` makes the image, along one side."""
    op, image = groups.operations[i], groups.input_size
    before = [image if p < 0 else groups.operations[p].size for p in op.parents]
    return max(1.0, (before[0] / op.size) ** 0.5)


def _joined(spans: Sequence[Span]) -> Span:
    """One span over several in a row."""
    return Span(
        spans[0].start,
        tuple(i for span in spans for i in span.inside),
        tuple(span.signature for span in spans),
        any(span.weighted for span in spans),
        any(span.branching for span in spans),
    )


def _join(spans: list[Span]) -> list[Span]:
    """Join neighbours that often are: the most frequent pair first, while any repeats.

    What has branches, or occurs next to itself, is a unit already: it is what repeats. Of
    equally frequent pairs, the one with the longer ends is joined: a row ends a sequence.
    """
    while True:
        twice = {a.signature for a, b in pairwise(spans) if a.signature == b.signature}
        counts: Counter[tuple[Hashable, Hashable]] = Counter()
        lengths: Counter[tuple[Hashable, Hashable]] = Counter()
        for first, second in pairwise(spans):
            pair = (first.signature, second.signature)
            if not (first.branching or second.branching or twice & set(pair)):
                counts[pair] += 1
                lengths[pair] += len(second.inside)
        pair = max(counts, key=lambda p: (counts[p], lengths[p]), default=None)
        if pair is None or counts[pair] == 1:
            return spans
        joined: list[Span] = []
        for span in spans:
            if joined and (joined[-1].signature, span.signature) == pair:
                span = _joined([joined.pop(), span])
            joined.append(span)
        spans = joined


def find_stages(blocks: list[Span]) -> list[Span]:
    """Join blocks to stages, if a sequence of several occurs more than once; else [].

    However often a block is repeated in a row, the sequence is the same; two stages are
    instances of one graph only if it is as often.
    """
    rows = [
        replace(_joined(list(same)), signature=block, branching=False)
        for block, same in groupby(blocks, key=lambda b: b.signature)
    ]
    joined = _join(rows)
    lone = {row.start for row in rows if row in joined}
    counts = Counter(span.signature for span in joined if span.start not in lone)
    if max(counts.values(), default=0) < 2:
        return []
    stages: list[Span] = []
    for repeated, spans in groupby(joined, key=lambda s: counts[s.signature] > 1):
        row = list(spans)
        stages += row if repeated else [_joined(row)]
    exact = [
        tuple(b.signature for b in blocks if stage.start <= b.start < stage.stop)
        for stage in stages
    ]
    return [replace(s, signature=e) for s, e in zip(stages, exact, strict=True)]


def by_signature(spans: list[Span]) -> tuple[dict[Span, int], list[list[Span]]]:
    """Sort spans into motifs; number their instances, motif by motif."""
    motifs: dict[Hashable, list[Span]] = {}
    for span in spans:
        motifs.setdefault(span.signature, []).append(span)
    every = [span for same in motifs.values() for span in same]
    return {span: i for i, span in enumerate(every)}, list(motifs.values())
