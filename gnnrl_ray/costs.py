"""What a candidate costs, in closed form from its widths, and how to meet a budget.

Axis letters: G prunable groups, L layers (convolutions and linear layers), O operations.
"""

import numpy as np

from gnnrl_ray.groups import ChannelGroups
from gnnrl_ray.labels import FIXED, Operation


class BudgetError(ValueError):
    """A budget that no candidate can meet."""


class Costs:
    """Counts of the pruned network as functions of ``widths`` int [..., G].

    A layer's input and output channels are linear in the widths, so multiply-accumulates
    and weights are sums of products of two linear forms: exact, without building anything.
    """

    def __init__(self, groups: ChannelGroups) -> None:
        self.groups = groups
        layers = groups.layers
        sources = [np.zeros(0) if op.depthwise else op.inputs for op in layers]
        self._inputs = self._linear(sources)
        self._inputs[:, -1] += [op.depthwise for op in layers]
        self._outputs = self._linear([op.outputs for op in layers])
        self._sizes = np.array([op.size for op in layers])
        self._kernels = np.array([op.kernel for op in layers])
        self._channels = self._linear([op.outputs for op in groups.operations])
        self._areas = np.array([op.size for op in groups.operations])
        self._vectors = np.array([_per_channel(op) for op in groups.operations])

    def _linear(self, channels: list[np.ndarray]) -> np.ndarray:
        """int64 [L, G + 1]: channels per kept channel of each group; last, the fixed."""
        form = np.zeros((len(channels), len(self.groups.widths) + 1), np.int64)
        for row, numbers in zip(form, channels, strict=True):
            group = self.groups.group_of(numbers)
            row[:-1] = np.bincount(group[group >= 0], minlength=len(row) - 1)
            row[:-1] //= self.groups.widths
            row[-1] = (numbers == FIXED).sum()
        return form

    def _ones(self, widths: np.ndarray) -> np.ndarray:
        widths = np.asarray(widths)
        return np.concatenate([widths, np.ones_like(widths[..., :1])], -1)

    def layer_macs(self, widths: np.ndarray) -> np.ndarray:
        """Return int64 [..., L]: multiply-accumulates of each layer for one image."""
        with_one = self._ones(widths)
        products = (with_one @ self._inputs.T) * (with_one @ self._outputs.T)
        return products * self._kernels * self._sizes

    def macs(self, widths: np.ndarray) -> np.ndarray:
        """Return int64 [...]: multiply-accumulates of one image, without biases."""
        return self.layer_macs(widths).sum(-1)

    def params(self, widths: np.ndarray) -> np.ndarray:
        """Return int64 [...]: trainable parameters."""
        with_one = self._ones(widths)
        products = (with_one @ self._inputs.T) * (with_one @ self._outputs.T)
        vectors = (self.channels(widths) * self._vectors).sum(-1)
        return (products * self._kernels).sum(-1) + vectors

    def channels(self, widths: np.ndarray) -> np.ndarray:
        """Return int64 [..., O]: output channels of each of the O operations."""
        return self._ones(widths) @ self._channels.T

    def activations(self, widths: np.ndarray) -> np.ndarray:
        """Return int64 [...]: numbers in the largest of all outputs, for one image."""
        return (self.channels(widths) * self._areas).max(-1)

    def floor(self, min_keep: float) -> np.ndarray:
        """Return int64 [G]: the narrowest allowed widths, at least 1 each."""
        return np.maximum(1, np.ceil(self.groups.widths * min_keep)).astype(np.int64)

    def check_budget(self, budget: object, min_keep: float) -> float:
        """Return ``budget`` if it is a share that some widths meet.

        Raises:
            BudgetError: it is not; names the smallest that is.
        """
        if not 0 <= min_keep < 1:
            raise BudgetError(f"--min-keep {min_keep:g} must lie in [0, 1).")
        least = self.macs(self.floor(min_keep)) / self.macs(self.groups.widths)
        if not isinstance(budget, float) or not least <= budget < 1:
            raise BudgetError(
                f"--flops {budget} cannot be reached: with --min-keep {min_keep:g} it "
                f"must be a number from {least:.4f} up to, but not, 1 (the dense network)."
            )
        return budget

    def fit(self, start: np.ndarray, end: np.ndarray, budget: float) -> np.ndarray:
        """Return the widest widths on the way from ``start`` to ``end`` in the budget.

        Groups shrink together, as far as rounding allows; what is left of the budget
        then goes back to the groups that rounding cost most.

        Args:
            start: float [G], over the budget.
            end: float [G] <= start; rounded, it is within the budget.
            budget: allowed share of the dense network's multiply-accumulates.

        Returns:
            int64 [G] between ``end`` and ``start``, rounded.
        """
        allowed = budget * self.macs(self.groups.widths)

        def at(share: float) -> np.ndarray:
            return start + share * (end - start)

        low, high = 0.0, 1.0  # ``high`` always fits
        for _ in range(30):
            middle = (low + high) / 2
            fits = self.macs(np.rint(at(middle)).astype(np.int64)) <= allowed
            low, high = (low, middle) if fits else (middle, high)
        widths = np.rint(at(high)).astype(np.int64)
        lost = at(high) - widths
        for g in np.argsort(-lost, kind="stable"):
            wider = widths + (np.arange(len(widths)) == g)
            if lost[g] > 0 and self.macs(wider) <= allowed:
                widths = wider
        return widths


def _per_channel(op: Operation) -> int:
    """Weights beside the products: biases, and scale and shift of normalisation."""
    if op.kind == "norm":
        return 2 if op.bias else 0
    return int(op.bias)
