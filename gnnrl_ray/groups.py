"""Channel groups: which channels of a network live and die together.

Channels that the same layers make are one group. No names of networks or layers are looked
at: what is tied follows from one trace and the labels sent through it.

Axis letters: G prunable groups, C channels of one operation.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import nn
from torch.fx.passes.shape_prop import ShapeProp

from gnnrl_ray.labels import FIXED, Labels, Operation, TraceError, symbolic


@dataclass(frozen=True, eq=False)
class ChannelGroups:
    """The pruning space of a network; holds no tensor of it and pickles.

    Attributes:
        names: of the G groups in trace order, after the module that first makes them.
        widths: int64 [G], channels of each group in the dense network.
        operations: the whole dataflow, in execution order.
        input_shape: (C, H, W) of one image.
    """

    names: tuple[str, ...]
    widths: np.ndarray
    operations: tuple[Operation, ...]
    input_shape: tuple[int, ...]

    @cached_property
    def offsets(self) -> np.ndarray:
        """int64 [G + 1]: where each group's channel numbers begin."""
        return np.concatenate([[0], np.cumsum(self.widths)])

    @property
    def layers(self) -> tuple[Operation, ...]:
        """The convolutions and linear layers: what has multiply-accumulates."""
        return tuple(op for op in self.operations if op.kind in ("conv", "linear"))

    def group_of(self, channels: np.ndarray) -> np.ndarray:
        """Map channel numbers int [C] to group indices int [C]; -1 for none."""
        group = np.searchsorted(self.offsets, channels, side="right") - 1
        return np.where(channels >= 0, group, -1)

    def check_widths(self, widths: np.ndarray) -> np.ndarray:
        """Return ``widths`` as int64 [..., G].

        Raises:
            ValueError: wrong number of groups, or a width outside 1 .. dense.
        """
        widths = np.asarray(widths)
        if widths.shape[-1:] != self.widths.shape:
            raise ValueError(
                f"`widths` needs {len(self.widths)} entries, got shape {widths.shape}."
            )
        wrong = (widths < 1) | (widths > self.widths) | (widths != np.rint(widths))
        if wrong.any():
            g = int(np.argwhere(wrong)[0, -1])
            raise ValueError(
                f"width of {self.names[g]!r} must be an integer in 1..{self.widths[g]}, "
                f"got {widths[..., g].ravel()[wrong[..., g].ravel().argmax()]}."
            )
        return widths.astype(np.int64)


def trace(network: nn.Module, input_shape: tuple[int, ...]) -> ChannelGroups:
    """Find the channel groups of ``network``.

    Args:
        network: any CNN that ``torch.fx`` can trace; left as it is.
        input_shape: (C, H, W) of one image.

    Raises:
        TraceError: names the module, the operation and the line that is not understood.
    """
    graph = symbolic(network)
    weights = next(graph.parameters())
    example = torch.zeros(1, *input_shape, device=weights.device, dtype=weights.dtype)
    training = graph.training
    graph.eval()
    with torch.no_grad():
        ShapeProp(graph).propagate(example)
    graph.train(training)
    labels = Labels(graph)
    labels.run(example)
    return _describe(labels, input_shape)


def _describe(labels: Labels, input_shape: tuple[int, ...]) -> ChannelGroups:
    """Turn labels into groups, and the operations' labels into channel numbers."""
    makers = [
        op for op in labels.operations if op.kind in ("conv", "linear") and not op.depthwise
    ]
    channel = _components(labels.minted, labels.ties)
    # Channels made by the same layers are ranked against each other: one group.
    made = np.zeros((channel.max() + 1, len(makers)), bool)
    for column, op in enumerate(makers):
        made[channel[op.outputs], column] = True
    made[channel[list(labels.frozen)]] = False
    _, group = np.unique(made, axis=0, return_inverse=True)
    number = np.full(labels.minted + 1, FIXED)  # its last entry serves label FIXED
    names: list[str] = []
    widths: list[int] = []
    for op in makers:
        for which in dict.fromkeys(group[channel[op.outputs]].tolist()):
            first = op.outputs[group[channel[op.outputs]] == which][0]
            if not made[channel[first]].any() or number[first] >= 0:
                continue
            members = np.flatnonzero(group[channel] == which)
            _, position = np.unique(channel[members], return_inverse=True)
            number[members] = sum(widths) + position
            name = op.module or op.name
            repeated = sum(n.split(":")[0] == name for n in names)
            names.append(f"{name}:{repeated}" if repeated else name)
            widths.append(int(position.max()) + 1)
    operations = tuple(
        replace(op, inputs=number[op.inputs], outputs=number[op.outputs])
        for op in labels.operations
    )
    groups = ChannelGroups(tuple(names), np.array(widths), operations, tuple(input_shape))
    for op in operations:
        _check_even(groups, op)
    return groups


def _components(count: int, pairs: list[np.ndarray]) -> np.ndarray:
    """Return int [count]: the connected component of each label."""
    rows, columns = np.concatenate([np.empty((0, 2), int), *pairs]).T
    graph = coo_array((np.ones(len(rows)), (rows, columns)), shape=(count, count))
    return connected_components(graph, directed=False)[1]


def _check_even(groups: ChannelGroups, op: Operation) -> None:
    """Costs follow from widths alone if a layer meets all of a group's channels alike."""
    for channels in (op.inputs, op.outputs):
        counts = np.bincount(channels[channels >= 0], minlength=groups.offsets[-1])
        for g in np.unique(groups.group_of(channels[channels >= 0])):
            if np.ptp(counts[groups.offsets[g] : groups.offsets[g + 1]]):
                raise TraceError(
                    f"{op.module or op.name} uses only some channels of group "
                    f"{groups.names[g]!r}, which share one fate with the others."
                )
