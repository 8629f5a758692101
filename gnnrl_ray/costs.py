"""What a candidate costs, in closed form from its widths, and how to meet a budget.

Axis letters: G prunable groups, L layers (convolutions and linear layers), O operations.
"""

from collections.abc import Sequence

import numpy as np

from gnnrl_ray.groups import ChannelGroups
from gnnrl_ray.operations import FIXED


class BudgetError(ValueError):
    """A budget that no candidate can meet."""


class Costs:
    """Counts of the pruned network as functions of ``widths`` int [..., G].

    A layer's input and output channels are linear in the widths, so multiply-accumulates
    and weights are sums of products of two linear forms: exact, without building anything.

    Args:
        groups: of the network.
        round_to: candidates' widths are multiples of it, unless a group stays whole.
    """

    def __init__(self, groups: ChannelGroups, round_to: int = 1) -> None:
        if round_to < 1:
            raise ValueError(f"--round-to {round_to} must be at least 1.")
        self.groups = groups
        self.round_to = round_to
        self.steps = np.lcm(groups.steps, round_to)
        layers = groups.layers
        self._inputs = self._forms([None if op.depthwise else op.inputs for op in layers])
        self._outputs = self._forms([op.outputs for op in layers])
        self._divisors = np.array([1 if op.depthwise else op.groups for op in layers], int)
        self._scales = np.array([op.kernel * op.uses for op in layers], int)
        trained = [layout for layout in groups.layouts.values() if layout.trained]
        self._rows = self._forms([layout.rows for layout in trained])
        self._columns = self._forms([layout.columns for layout in trained])
        self._parts = np.array([layout.groups for layout in trained], int)
        self._numbers = np.array([layout.size for layout in trained], int)
        self._channels = self._forms([op.outputs for op in groups.operations])
        self._areas = np.array([op.size for op in groups.operations], int)

    def _forms(self, channels: Sequence[np.ndarray | None]) -> np.ndarray:
        """int64 [L, G + 1]: channels per kept channel of each group; last, the fixed.

        ``None`` stands for a constant one.
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
        return form

    def _ones(self, widths: np.ndarray) -> np.ndarray:
        widths = np.asarray(widths)
        return np.concatenate([widths, np.ones((*widths.shape[:-1], 1), np.int64)], -1)

    def layer_macs(self, widths: np.ndarray) -> np.ndarray:
        """Return int64 [..., L]: multiply-accumulates of each layer for one image."""
        ones = self._ones(widths)
        products = (ones @ self._inputs.T) * (ones @ self._outputs.T) // self._divisors
        return products * self._scales

    def macs(self, widths: np.ndarray) -> np.ndarray:
        """Return int64 [...]: multiply-accumulates of one image, without biases."""
        return self.layer_macs(widths).sum(-1) + self.groups.macs

    def params(self, widths: np.ndarray) -> np.ndarray:
        """Return int64 [...]: trainable parameters, each once however often it is used."""
        ones = self._ones(widths)
        products = (ones @ self._rows.T) * (ones @ self._columns.T) // self._parts
        return (products * self._numbers).sum(-1) + self.groups.parameters

    def channels(self, widths: np.ndarray) -> np.ndarray:
        """Return int64 [..., O]: output channels of each of the O operations."""
        return self._ones(widths) @ self._channels.T

    def activations(self, widths: np.ndarray) -> np.ndarray:
        """Return int64 [...]: numbers in the largest of all outputs, for one image."""
        return (self.channels(widths) * self._areas).max(-1)

    def round(self, widths: np.ndarray) -> np.ndarray:
        """Return the nearest allowed widths int64 [..., G] of float [..., G]."""
        widths, dense = np.asarray(widths), self.groups.widths
        rounded = np.maximum(np.rint(widths / self.steps), 1) * self.steps
        # The dense width is allowed, multiple or not.
        whole = (rounded > dense) | (dense - widths < np.abs(rounded - widths))
        return np.where(whole, dense, rounded).astype(np.int64)

    def floor(self, min_keep: float) -> np.ndarray:
        """Return int64 [G]: the narrowest allowed widths, a step or more each."""
        steps = np.maximum(1, np.ceil(self.groups.widths * min_keep / self.steps))
        return np.minimum(steps.astype(np.int64) * self.steps, self.groups.widths)

    def check_budget(self, budget: object, min_keep: float) -> float:
        """Return ``budget`` if it is a share that some widths meet.

        Raises:
            BudgetError: it is not; names the smallest that is.
        """
        if not 0 <= min_keep < 1:
            raise BudgetError(f"--min-keep {min_keep:g} must lie in [0, 1).")
        if not self.groups.names:
            raise BudgetError(
                "nothing can be pruned: all channels of the network are whole."
            )
        least = self.macs(self.floor(min_keep)) / self.macs(self.groups.widths)
        if not isinstance(budget, float) or not least <= budget < 1:
            rounding = f" and --round-to {self.round_to}" if self.round_to > 1 else ""
            raise BudgetError(
                f"--flops {budget} cannot be reached: with --min-keep {min_keep:g}"
                f"{rounding} it must be a number from {least:.4f} up to, but not, 1 (the "
                "dense network)."
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
            fits = self.macs(self.round(at(middle))) <= allowed
            low, high = (low, middle) if fits else (middle, high)
        widths = self.round(at(high))
        lost = at(high) - widths
        dense = self.groups.widths
        for g in np.argsort(-lost, kind="stable"):
            wider = np.minimum(widths + self.steps * (np.arange(len(dense)) == g), dense)
            if lost[g] > 0 and self.macs(wider) <= allowed:
                widths = wider
        return widths
