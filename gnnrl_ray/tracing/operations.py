"""A traced network as operations on numbered channels.

Axis letters: C channels of one operation.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, fx

FIXED = -1  # a channel that is always there, as those of input and output
ZERO = -1  # no channel to take from: zeros instead
NO_CHANNELS = np.empty(0, int)

KINDS = (
    "conv", "linear", "norm", "activation", "pool", "add", "multiply", "concat",
    "select", "reshape",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Operation:
    """One operation of the traced network, in execution order.

    Channels are numbered over all groups: group ``g`` owns the numbers from
    ``offsets[g]`` to ``offsets[g + 1]``; ``FIXED`` and ``ZERO`` belong to none.

    Attributes:
        name: node of the ``torch.fx`` graph.
        kind: one of ``KINDS``, or ``other``.
        module: qualified name of the module that was called, or None.
        parents: indices of the operations it reads; -1 is the network's input.
        inputs: int [C_in], channels of the first parent.
        outputs: int [C_out], channels written.
        size: positions of one output channel (height x width; 1 for vectors).
        axis: of the channels in the output.
        weight: of a layer, the qualified name of its filters.
        bias: whether every output channel has a parameter beside the filters.
        kernel: weights of one filter and input channel (kernel height x width).
        uses: how often each weight is used for one image.
        groups: equal parts of a convolution's channels, each with filters of its own.
        depthwise: a convolution whose groups have one input channel each.
        transposed: a convolution whose filters' first axis is that of its inputs.
        everywhere: a pool over all positions, at whatever resolution.
        taken: of a ``select``, int [C_out]: the position among the inputs that each
            output is taken from, or ``ZERO``.
        source: of a ``select``, the node that returned what it takes from.
        padded: a ``select`` whose outputs are channels of their own, not its inputs moved:
            one may stay where that which it is taken from goes, and is zero then.
    """

    name: str
    kind: str
    module: str | None
    parents: tuple[int, ...]
    inputs: np.ndarray
    outputs: np.ndarray
    size: int
    axis: int = 1
    weight: str | None = None
    bias: bool = False
    kernel: int = 1
    uses: int = 1
    groups: int = 1
    depthwise: bool = False
    transposed: bool = False
    everywhere: bool = False
    taken: np.ndarray | None = None
    source: str | None = None
    padded: bool = False

    @property
    def macs(self) -> int:
        """Multiply-accumulates of a layer of the dense network for one image."""
        inputs = 1 if self.depthwise else len(self.inputs) // self.groups
        return inputs * len(self.outputs) * self.kernel * self.uses


@dataclass(frozen=True, eq=False)
class Layout:
    """Which channels lie along the axes of a parameter or buffer.

    Attributes:
        rows: int [C], along ``axis``.
        columns: int [C'], along the axis after it, if that one has channels too; of a
            convolution in groups, those of all groups in a row.
        axis: of the rows.
        groups: of the convolution.
        size: numbers for each pair of row and column, or for each row.
        trained: a parameter, not a buffer.
    """

    rows: np.ndarray
    columns: np.ndarray | None = None
    axis: int = 0
    groups: int = 1
    size: int = 1
    trained: bool = True


def select_channels(x: Tensor, index: Tensor) -> Tensor:
    """Gather channels of ``x`` [B, C, ...] by ``index`` int64 [C']; ``ZERO`` gives zeros.

    What becomes of padding with channels of zeros once channels are removed.
    """
    padded = torch.cat([x, torch.zeros_like(x[:, :1])], 1)
    return padded[:, torch.where(index == ZERO, x.shape[1], index)]


fx.wrap("select_channels")

# What spells out a shape.
RESHAPES = ("view", "reshape", torch.reshape)
