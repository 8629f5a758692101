"""What a candidate costs, in closed form from its widths.

Axis letters: G prunable groups, L layers (convolutions and linear layers), O operations.
"""

from collections.abc import Sequence

import numpy as np

from gnnrl_ray.errors import InputError
from gnnrl_ray.tracing.groups import ChannelGroups
from gnnrl_ray.tracing.operations import FIXED, Operation


class Costs:
    """Counts of the pruned network as functions of ``widths`` int [..., G].

    A layer's input and output channels are linear in the widths, so multiply-accumulates
    and weights are sums of products of two linear forms: exact, without building anything.

    Args:
        groups: of the network.

    Attributes:
        groups: of the network.
        dense: multiply-accumulates of the dense network.

    Raises:
        InputError: of each method: ``widths`` of another number of groups.
    """

    def __init__(self, groups: ChannelGroups) -> None:
        self.groups = groups
        layers = groups.layers
        self._inputs = self._forms([None if op.depthwise else op.inputs for op in layers])
        self._outputs = self._forms([op.outputs for op in layers])
        self._divisors = np.array([1 if op.depthwise else op.groups for op in layers], int)
        self._scales = np.array([op.kernel * op.uses for op in layers], int)
        trained = [layout for layout in groups.layouts.values() if layout.trained]
        rows = self._forms([layout.rows for layout in trained])
        columns = self._forms([layout.columns for layout in trained])
        sizes = np.array([layout.size / layout.groups for layout in trained])
        self._channels = self._forms([op.outputs for op in groups.operations])
        # Sums over layers, made once: widths' @ form @ widths.
        scales = self._scales / self._divisors
        self._macs = (self._inputs * scales[:, None]).T @ self._outputs
        self._params = (rows * sizes[:, None]).T @ columns
        # Of outputs whose channels are alike, only the largest matters.
        areas = np.array([op.size for op in groups.operations])
        forms, like = np.unique(self._channels, axis=0, return_inverse=True)
        largest = np.zeros(len(forms))
        np.maximum.at(largest, like.ravel(), areas)
        self._activations = forms * largest[:, None]
        self._elements = areas @ self._channels
        held = _alive(groups.operations) @ (areas[:, None] * self._channels)
        self._held = np.unique(held, axis=0)
        self.dense = int(self.macs(groups.widths))

    def _forms(self, channels: Sequence[np.ndarray | None]) -> np.ndarray:
        """float64 [L, G + 1]: channels per kept channel of each group; last, the fixed.

        ``None`` stands for a constant one. Products of such forms with widths are whole
        numbers below 2^53, hence exact, and matrix products of floats are far faster.
        """
        form = np.zeros((len(channels), len(self.groups.widths) + 1), np.int64)
        for row, numbers in zip(form, channels, strict=True):
            if numbers is None:
                row[-1] = 1
                continue
            group = self.groups.group_of(numbers)
            row[:-1] = np.bincount(group[group >= 0], minlength=len(row) - 1)
            row[:-1] //= self.groups.widths
            row[-1] = (numbers == FIXED).sum()
        return form.astype(np.float64)

    def _ones(self, widths: np.ndarray) -> np.ndarray:
        """float64 [..., G + 1]: widths, and a one for what is fixed."""
        shape, count = np.shape(widths), len(self.groups.widths)
        if shape[-1:] != (count,):
            raise InputError(f"`widths` are {count} numbers of channels, got {widths!r}.")
        ones = np.ones((*shape[:-1], count + 1))
        ones[..., :-1] = widths
        return ones

    def layer_macs(self, widths: np.ndarray) -> np.ndarray:
        """Return int64 [..., L]: multiply-accumulates of each layer for one image."""
        ones = self._ones(widths)
        products = (ones @ self._inputs.T) * (ones @ self._outputs.T) / self._divisors
        return _whole(products * self._scales)

    def macs(self, widths: np.ndarray) -> np.ndarray:
        """Return int64 [...]: multiply-accumulates of one image, without biases."""
        ones = self._ones(widths)
        return _whole((ones @ self._macs * ones).sum(-1)) + self.groups.fixed_macs

    def params(self, widths: np.ndarray) -> np.ndarray:
        """Return int64 [...]: trainable parameters, each once however often it is used."""
        ones = self._ones(widths)
        return _whole((ones @ self._params * ones).sum(-1)) + self.groups.fixed_params

    def channels(self, widths: np.ndarray) -> np.ndarray:
        """Return int64 [..., O]: output channels of each of the O operations."""
        return _whole(self._ones(widths) @ self._channels.T)

    def paper_share(self, widths: np.ndarray) -> float:
        """Return the share of FLOPs as the paper's authors count it, of ``widths`` [G].

        The sum of f_i r_i r_(i-1) over convolutions in their order, by that of f_i: what a
        layer keeps times what the layer before it keeps, be it the one that it reads or
        not; f_i counts multiplications and additions. For comparison with their figures.
        """
        total = counted = 0.0
        before = 1.0
        channels = self._ones(np.asarray(widths)) @ self._outputs.T
        dense = self._ones(self.groups.widths) @ self._outputs.T
        for op, ratio in zip(self.groups.layers, channels / dense, strict=True):
            if op.kind != "conv":
                continue
            inputs = 1 if op.depthwise else len(op.inputs) // op.groups
            flops = (inputs * (2 * op.kernel - 1) + 1) * len(op.outputs) * op.uses
            total += flops
            counted += flops * ratio * before
            before = ratio
        return counted / total

    def activations(self, widths: np.ndarray) -> np.ndarray:
        """Return int64 [...]: numbers in the largest of all outputs, for one image."""
        return _whole((self._ones(widths) @ self._activations.T).max(-1))

    def layer_widths(self, widths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return float64 [..., L] twice: channels that each layer reads, and makes.

        Of a depth-wise layer, those that it reads for each that it makes: one.
        """
        ones = self._ones(widths)
        return ones @ self._inputs.T, ones @ self._outputs.T

    def elements(self, widths: np.ndarray) -> np.ndarray:
        """Return float64 [...]: numbers that all operations return, for one image."""
        return self._ones(widths) @ self._elements

    def memory(self, widths: np.ndarray, images: int = 1) -> np.ndarray:
        """Return int64 [...]: bytes of float32 that are held at once, for some images.

        All weights, and at some operation what it reads and makes, and what later ones will
        read; in the order of the network's own code, each result in memory of its own.
        """
        held = (self._ones(widths) @ self._held.T).max(-1)
        return 4 * (images * _whole(held) + self.params(widths))


def _alive(operations: Sequence[Operation]) -> np.ndarray:
    """Bool [O, O]: whose results are held while each of the operations is done."""
    last = np.arange(len(operations))
    for number, op in enumerate(operations):
        for parent in op.parents:
            if parent >= 0:
                last[parent] = number
    each = np.arange(len(operations))
    return (each <= each[:, None]) & (each[:, None] <= last)


def _whole(numbers: np.ndarray) -> np.ndarray:
    return np.rint(numbers).astype(np.int64)
