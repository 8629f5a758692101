"""What a candidate may cost, and the way of any widths to a candidate that costs no more.

Axis letters: G prunable groups.
"""

import math
import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from gnnrl_ray.errors import InputError
from gnnrl_ray.pruning.costs import Costs
from gnnrl_ray.pruning.latency import LatencyTable
from gnnrl_ray.settings import BUDGETS, SearchSettings, flag, unknown_setting
from gnnrl_ray.tracing.groups import ChannelGroups

# Of each kind of cost: what counts it, and what is counted.
_Counted = tuple[Callable[[Costs, np.ndarray], np.ndarray], str]
_COSTS: dict[str, _Counted] = {
    "flops": (Costs.macs, "multiply-accumulates"),
    "params": (Costs.params, "parameters"),
    "activations": (Costs.activations, "numbers in the largest hidden state"),
}

_REASONS = 3  # why nothing can be pruned, at most
_HALVINGS = 40  # of a path, until its ends are alike


class BudgetError(InputError):
    """A budget that no candidate can meet, or that none has met."""


@dataclass(frozen=True)
class Limit:
    """One cost that is limited.

    Attributes:
        name: of the setting.
        unit: what is counted.
        cost: from widths int [..., G] to numbers [...], never more for narrower widths.
        allowed: the most of it.
        dense: what the dense network costs.
    """

    name: str
    unit: str
    cost: Callable[[np.ndarray], np.ndarray]
    allowed: float
    dense: float


class Budget:
    """Which widths a candidate may have: their bounds, their multiples and their costs.

    Args:
        groups: of the network.
        limits: by the kind of cost (``flops``, ``params``, ``activations``, ``memory``,
            ``latency``) how much is allowed: a share of the dense network's if below 1,
            else a number.
        latency: what ``latency`` is counted by, if that is limited.
        memory_batch: how many images ``memory`` is of.
        min_keep: smallest share of a group's channels that may be kept.
        round_to: widths are multiples of it, unless a group stays whole.

    Attributes:
        groups: of the network.
        costs: in closed form.
        latency: what that is counted by, if it is known.
        limits: everything that is limited, at least one.
        multiple_of: int64 [G], what the widths of each group are multiples of.
        min_widths: int64 [G], the narrowest that are allowed.

    Raises:
        BudgetError: out of reach; names the smallest that is not.
        InputError: a kind of cost that is not known, or a value that cannot be.
    """

    def __init__(
        self,
        groups: ChannelGroups,
        limits: Mapping[str, float],
        *,
        latency: LatencyTable | None = None,
        memory_batch: int = 1,
        min_keep: float = 0.1,
        round_to: int = 1,
    ) -> None:
        if not isinstance(limits, Mapping) or not limits:
            raise InputError(
                'a budget has its limits by kind, {"flops": 0.5}; there are: '
                f"{', '.join(BUDGETS)}."
            )
        for name in limits.keys() - set(BUDGETS):
            raise unknown_setting(name, BUDGETS, "a budget")
        SearchSettings(  # checks the values
            memory_batch=memory_batch, min_keep=min_keep, round_to=round_to
        )
        self.groups = groups
        self.costs = Costs(groups)
        self.latency = latency
        self.multiple_of = np.lcm(groups.multiple_of, round_to)
        least = np.maximum(1, np.ceil(groups.widths * min_keep / self.multiple_of))
        least = least.astype(np.int64) * self.multiple_of
        self.min_widths = np.minimum(least, groups.widths)
        if not groups.names:
            reasons = dict.fromkeys(reason.rstrip(".") for reason in groups.whole.values())
            raise BudgetError(
                "nothing can be pruned: all channels of the network are whole: "
                f"{'; '.join([*reasons][:_REASONS])}."
            )
        memory = partial(Costs.memory, images=memory_batch)
        counted = _COSTS | {"memory": (memory, "bytes held at once")}
        if latency is not None:
            counted |= {"latency": (latency, latency.unit)}
        self.limits = tuple(self._limit(*limit, counted) for limit in limits.items())
        rounding = f" and --round-to {round_to}" if round_to > 1 else ""
        for limit in self.limits:
            _check(limit, limits[limit.name], self.min_widths,
                   f"--min-keep {min_keep:g}{rounding}")  # fmt: skip

    @classmethod
    def of(
        cls,
        groups: ChannelGroups,
        settings: SearchSettings,
        latency: LatencyTable | None = None,
    ) -> "Budget":
        """Return the budget of a search."""
        return cls(
            groups,
            settings.budgets,
            latency=latency,
            memory_batch=settings.memory_batch,
            min_keep=settings.min_keep,
            round_to=settings.round_to,
        )

    def _limit(self, name: str, given: float, counted: Mapping[str, _Counted]) -> Limit:
        if not isinstance(given, numbers.Real) or math.isnan(given):
            raise InputError(f"{flag(name)} {given!r} is not a number.")
        if name not in counted:
            raise InputError(f"a limit of `{name}` needs the table that it is counted by.")
        count, unit = counted[name]
        cost = partial(count, self.costs)
        dense = float(cost(self.groups.widths))
        return Limit(name, unit, cost, _allowed(given, dense), dense)

    def meets(self, widths: np.ndarray) -> np.ndarray:
        """Return bool [...]: whether ``widths`` int [..., G] cost no more than allowed."""
        found = [limit.cost(widths) <= limit.allowed for limit in self.limits]
        return np.logical_and.reduce(found)

    def round(self, widths: np.ndarray) -> np.ndarray:
        """Return the nearest allowed widths int64 [..., G] of float [..., G]."""
        widths, dense = np.asarray(widths), self.groups.widths
        rounded = np.maximum(np.rint(widths / self.multiple_of), 1) * self.multiple_of
        # The dense width is allowed, multiple or not.
        whole = (rounded > dense) | (dense - widths < np.abs(rounded - widths))
        return np.where(whole, dense, rounded).astype(np.int64)

    def drop(self, widths: np.ndarray, ratios: np.ndarray) -> np.ndarray:
        """Return float [..., G]: ``widths`` int [G] less the ``ratios``, not rounded.

        It stays between the narrowest widths and ``widths``, which rounding may have put
        below them.
        """
        ratios = np.clip(np.asarray(ratios, np.float64), 0, 1)
        return np.minimum(np.maximum(widths * (1 - ratios), self.min_widths), widths)

    def step(
        self, widths: np.ndarray, ratios: np.ndarray, fit: bool
    ) -> tuple[np.ndarray, bool]:
        """Drop the shares ``ratios`` [G] of what is left, ``widths`` int [G].

        Args:
            widths: over the budget.
            ratios: what to drop.
            fit: whether a step that meets the budget is scaled back to use all of it.

        Returns:
            The widths int64 [G] after it, and whether they meet the budget.
        """
        target = self.drop(widths, ratios)
        rounded = self.round(target)
        met = bool(self.meets(rounded))
        return self.project(widths, target) if met and fit else rounded, met

    def reach(self, ratios: np.ndarray) -> np.ndarray:
        """Return the candidate int64 [G] that dropping ``ratios`` of all channels leads to.

        Where they drop too much, the rest of the budget is used; where too little, all
        groups are scaled down further.
        """
        dense = self.groups.widths
        target = self.drop(dense, ratios)
        if self.meets(self.round(target)):
            return self.project(dense, target)
        return self.project(target, self.min_widths)

    def reach_all(self, ratios: np.ndarray) -> np.ndarray:
        """Return candidates int64 [N, G] near those that :meth:`reach` finds.

        All at once, and to a thousandth of the way; what rounding leaves of the budget is
        not given back.

        Args:
            ratios: float [N, G].
        """
        dense, least = self.groups.widths, self.min_widths
        target = self.drop(dense, ratios)
        met = self.meets(self.round(target))[:, None]
        start, end = np.where(met, dense, target), np.where(met, target, least)
        low, high = np.zeros((len(ratios), 1)), np.ones((len(ratios), 1))
        for _ in range(10):
            middle = (low + high) / 2
            fits = self.meets(self.round(start + middle * (end - start)))[:, None]
            low, high = np.where(fits, low, middle), np.where(fits, middle, high)
        return self.round(start + high * (end - start))

    def slopes(self, widths: np.ndarray) -> np.ndarray:
        """Return float [..., G]: what one more channel of each group costs.

        As shares of what is allowed, summed over all limits.

        Args:
            widths: int [..., G].
        """
        wider = widths[..., None, :] + np.eye(widths.shape[-1], dtype=np.int64)
        each = [
            (limit.cost(wider) - limit.cost(widths)[..., None]) / limit.allowed
            for limit in self.limits
        ]
        return np.sum(each, axis=0)

    def project(self, start: np.ndarray, end: np.ndarray) -> np.ndarray:
        """Return the widest widths on the way from ``start`` to ``end`` in the budget.

        Groups shrink together, as far as rounding allows; what is left of the budget
        then goes back to the groups that rounding cost most.

        Args:
            start: float [G], over the budget.
            end: float [G] <= start; rounded, it is within the budget.

        Returns:
            int64 [G] between ``end`` and ``start``, rounded.
        """
        dense = self.groups.widths
        low, high = 0.0, 1.0  # ``high`` always meets the budget
        for _ in range(5):
            shares = low + (high - low) / 64 * np.arange(1, 65)
            met = self.meets(self.round(start + shares[:, None] * (end - start)))
            high = shares[met.argmax()]
            low = high - (shares[1] - shares[0])
        exact = start + high * (end - start)
        widths = self.round(exact)
        lost = exact - widths
        order = np.argsort(-lost, kind="stable")[: (lost > 0).sum()]
        while len(order):
            wider = np.tile(widths, (len(order), 1))
            rows = np.arange(len(order))
            wider[rows, order] = np.minimum(widths + self.multiple_of, dense)[order]
            met = self.meets(wider)
            if not met.any():
                break
            first = met.argmax()
            widths, order = wider[first], order[first + 1 :]
        return widths

    def along(self, path: Callable[[float], np.ndarray]) -> np.ndarray:
        """Return the widest candidate int64 [G] on a path that only narrows.

        Args:
            path: from 0 .. 1 to float [G], which may jump. What it leaves narrower than is
                allowed is not; where its end costs too much, all groups shrink further.
        """

        def at(place: float) -> np.ndarray:
            return np.clip(path(place), self.min_widths, self.groups.widths)

        low, high = 0.0, 1.0
        if not self.meets(self.round(at(high))):
            return self.project(at(high), self.min_widths)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            met = self.meets(self.round(at(middle)))
            low, high = (low, middle) if met else (middle, high)
        start = self.groups.widths if low == 0 else at(low)
        return self.project(start, at(high))

    def usage(self, widths: np.ndarray) -> dict[str, dict[str, float | str]]:
        """Return what ``widths`` int [G] cost, beside the dense network, by limit."""
        return {
            limit.name: {
                "cost": float(limit.cost(widths)),
                "allowed": limit.allowed,
                "dense": limit.dense,
                "unit": limit.unit,
            }
            for limit in self.limits
        }


def _allowed(given: float, dense: float) -> float:
    """Return the number that a share, or a number, stands for."""
    if given >= 1:
        return given
    number = given * dense
    nearest = round(number)  # costs are whole, and shares of them round a little
    return nearest if abs(number - nearest) < 1e-9 * dense else number


def _check(limit: Limit, given: object, narrowest: np.ndarray, bounds: str) -> None:
    least = float(limit.cost(narrowest))
    if least <= limit.allowed < limit.dense:
        return
    share = math.ceil(1e4 * least / limit.dense) / 1e4
    raise BudgetError(
        f"{flag(limit.name)} {given} cannot be reached: with {bounds} it must be a share "
        f"from {share:.4f} up to, but not, 1, or a number of {limit.unit} from "
        f"{least:,.0f} up to, but not, {limit.dense:,.0f} (the dense network)."
    )
