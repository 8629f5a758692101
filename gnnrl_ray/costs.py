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

    Attributes:
        dense: multiply-accumulates of the dense network.
        steps: int64 [G], what candidates' widths are multiples of.
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
        ones = np.ones((*np.shape(widths)[:-1], len(self.groups.widths) + 1))
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
        return _whole((ones @ self._macs * ones).sum(-1)) + self.groups.macs

    def params(self, widths: np.ndarray) -> np.ndarray:
        """Return int64 [...]: trainable parameters, each once however often it is used."""
        ones = self._ones(widths)
        return _whole((ones @ self._params * ones).sum(-1)) + self.groups.parameters

    def channels(self, widths: np.ndarray) -> np.ndarray:
        """Return int64 [..., O]: output channels of each of the O operations."""
        return _whole(self._ones(widths) @ self._channels.T)

    def activations(self, widths: np.ndarray) -> np.ndarray:
        """Return int64 [...]: numbers in the largest of all outputs, for one image."""
        return _whole((self._ones(widths) @ self._activations.T).max(-1))

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
        least = self.macs(self.floor(min_keep)) / self.dense
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
        allowed, dense = budget * self.dense, self.groups.widths
        low, high = 0.0, 1.0  # ``high`` always fits
        for _ in range(5):
            shares = low + (high - low) / 64 * np.arange(1, 65)
            fits = self.macs(self.round(start + shares[:, None] * (end - start))) <= allowed
            high = shares[fits.argmax()]
            low = high - (shares[1] - shares[0])
        exact = start + high * (end - start)
        widths = self.round(exact)
        lost = exact - widths
        order = np.argsort(-lost, kind="stable")[: (lost > 0).sum()]
        while len(order):
            wider = np.tile(widths, (len(order), 1))
            rows = np.arange(len(order))
            wider[rows, order] = np.minimum(widths + self.steps, dense)[order]
            fits = self.macs(wider) <= allowed
            if not fits.any():
                break
            first = fits.argmax()
            widths, order = wider[first], order[first + 1 :]
        return widths


def _whole(numbers: np.ndarray) -> np.ndarray:
    return np.rint(numbers).astype(np.int64)
