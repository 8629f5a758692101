"""What a group of channels is within its network, whatever network that is.

Axis letters: G groups, F facts, I instances of the motifs of level 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gnnrl_ray.graph.hierarchy import HierarchicalGraph
from gnnrl_ray.graph.regions import find_blocks, open_blocks
from gnnrl_ray.tracing.groups import ChannelGroups


@dataclass(frozen=True, eq=False)
class GroupFacts:
    """Facts of the groups of one network, that those of another have, too.

    Attributes:
        values: float32 [G, F]: channels (log2), whether a block passes them on, how many
            layers make and read them (log), where in the network these are on average,
            their share of the multiply-accumulates, the side of the images (log2); and by
            how much the most important quarter, half and three quarters of the channels
            have more than that share of all importance; and how sensitive the loss is to
            the group as a whole (log, standardised).
        stages: int64 [G], numbers of the sides of the images.
        streams: int64 [G], 1 where blocks pass the channels on to each other, else 0.
        sensitivity: float64 [G], the last of the values.
        touched: float32 [G, I], in equal shares the instances that make or read them.
    """

    values: np.ndarray
    stages: np.ndarray
    streams: np.ndarray
    sensitivity: np.ndarray
    touched: np.ndarray

    @classmethod
    def of(
        cls,
        graph: HierarchicalGraph,
        scores: Sequence[np.ndarray] | None = None,
        sensitivities: np.ndarray | None = None,
    ) -> "GroupFacts":
        """Return the facts of the groups of ``graph``.

        Args:
            graph: of the network.
            scores: G arrays, how important each channel is; default: all alike.
            sensitivities: float [G], how much the loss changes with each; likewise.
        """
        groups = graph.groups
        streams = ~inside_blocks(groups)
        layers = groups.layers
        macs = graph.costs.layer_macs(groups.widths) / graph.costs.dense
        alike = np.ones(len(groups.widths))
        sensitivity = _standardised(alike if sensitivities is None else sensitivities)
        rows = []
        for group, (width, stream) in enumerate(zip(groups.widths, streams, strict=True)):
            made, read = (
                [j for j, op in enumerate(layers) if group in groups.group_of(channels(op))]
                for channels in (lambda op: op.outputs, lambda op: op.inputs)
            )
            both = made + read
            size = max((layers[j].size for j in made), default=1)
            rows.append([
                np.log2(width) / 6, stream, np.log1p(len(made)) / 3,
                np.log1p(len(read)) / 3, np.mean(both) / len(layers) if both else 0,
                macs[sorted(set(both))].sum(), np.log2(size) / 10,
                *_concentration(np.ones(width) if scores is None else scores[group]),
                sensitivity[group],
            ])  # fmt: skip
        values = np.array(rows, np.float32)
        _, stages = np.unique(values[:, 6], return_inverse=True)
        streams = streams.astype(np.int64)
        return cls(values, stages, streams, sensitivity, _touched(graph))


def _concentration(scores: np.ndarray) -> np.ndarray:
    """Return what a quarter, half and three quarters have of all, beyond their share."""
    ranked = np.sort(np.asarray(scores, float))[::-1]
    ranked = ranked - min(0.0, ranked[-1])
    shares = np.arange(len(ranked) + 1) / len(ranked)
    mass = np.append(0, ranked.cumsum()) / max(ranked.sum(), 1e-12)
    looks = np.array([0.25, 0.5, 0.75])
    return np.interp(looks, shares, mass) - looks


def _standardised(sensitivities: np.ndarray) -> np.ndarray:
    """Return the logarithms, of mean 0 and deviation 1; zeros where all are alike."""
    sensitivities = np.nan_to_num(sensitivities)  # of a network that has lost itself
    logs = np.log(np.maximum(sensitivities, 1e-12 * np.max(sensitivities) + 1e-300))
    return (logs - logs.mean()) / max(logs.std(), 1e-6)


def _touched(graph: HierarchicalGraph) -> np.ndarray:
    """Return float32 [G, I]: in equal shares, the instances that touch each group."""
    groups, columns = graph.groups, []
    for motif in graph.motifs:
        for edges in motif.children:
            found = [groups.operations[graph.edges[edge]] for edge in edges]
            channels = [c for op in found for c in (op.inputs, op.outputs)]
            here = groups.group_of(np.concatenate(channels))
            columns.append(np.isin(np.arange(len(groups.widths)), here))
    touched = np.stack(columns, 1).astype(np.float32)
    return touched / np.maximum(touched.sum(1, keepdims=True), 1)


def inside_blocks(groups: ChannelGroups) -> np.ndarray:
    """Return bool [G]: which groups are made and read within one block of the network."""
    touched = np.zeros((len(groups.widths), 0), bool)
    for block in open_blocks(groups, find_blocks(groups)):
        here = np.zeros((len(groups.widths), 1), bool)
        for i in block.inside:
            op = groups.operations[i]
            found = groups.group_of(np.concatenate([op.inputs, op.outputs]))
            here[found[found >= 0]] = True
        touched = np.concatenate([touched, here], 1)
    return touched.sum(1) == 1
