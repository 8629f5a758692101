"""Candidates that an agent chooses among: at random in the levels of the graph, and near.

Axis letters: G groups, N candidates, H candidates that have been scored.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from gnnrl_ray.graph.facts import GroupFacts
from gnnrl_ray.pruning.budget import Budget

# Of noise before it is squashed into [0, 1]: what all groups share, those that blocks pass
# on or not, those of a stage, and each for itself; and where its middle is.
_NETWORK, _STREAM, _STAGE, _GROUP, _MIDDLE = 0.8, 0.8, 0.5, 0.6, -0.5
# How much more of what the loss is sensitive to is kept: mean and deviation, and of a rule.
_SENSITIVITY, _VARIED, _RULE = 0.8, 0.4, 1.2
_BEST = 5  # candidates to look around: scores are of chance, and the best was lucky
# How many candidates are near those, as near with groups of a stage moved together or all
# as the loss is sensitive to them, near the actor's action, and anywhere.
_NEAR, _TOGETHER, _TILTED, _PROPOSED, _ANYWHERE = 600, 250, 50, 150, 150
_STEP = 1.5  # channels that the box lets every group move by
_MOVED = 6  # groups that are moved on average, or a quarter of them if that is more
_LEAST_WRONG = 1e-3  # below which errors are alike
# The box: half its side, as a ratio; its factor after so many successes in a row, or as
# many failures as a share of the groups.
_BOX, _LARGEST, _FACTOR = 0.3, 1.0, 1.6
_SUCCESSES, _FAILURES = 3, 1 / 3
_SMALLEST = 0.06  # of an agent's


@dataclass(frozen=True, eq=False)
class History:
    """What has been scored, in its order.

    Attributes:
        ratios: float [H, G], shares of the channels that were dropped.
        scores: float [H], larger is better.
        under_way: how many are being scored meanwhile, of which nobody knows.
    """

    ratios: np.ndarray
    scores: np.ndarray
    under_way: int = 0

    def __len__(self) -> int:
        return len(self.scores)

    @cached_property
    def worths(self) -> np.ndarray:
        """What is learnt of the scores, float64 [H]: see :func:`worths`."""
        return worths(self.scores)


def worths(scores: ArrayLike) -> np.ndarray:
    """Return what ``scores`` [H] are worth, float64 [H] of mean 0 and deviation 1.

    How little is wrong, on a logarithmic scale: a point is much among the best, and little
    among the worst; and by how much one is better stays visible, unlike in ranks.

    Args:
        scores: 0 less the share that is wrong.
    """
    found = -np.log(np.maximum(-np.asarray(scores, np.float64), _LEAST_WRONG))
    return (found - found.mean()) / max(found.std(), 1e-6)


class Candidates:
    """Draws candidates of one network that meet a budget.

    Args:
        budget: they are to meet.
        facts: of the groups.
    """

    def __init__(self, budget: Budget, facts: GroupFacts) -> None:
        self.budget = budget
        self._facts = facts
        _, self._together = np.unique(2 * facts.stages + facts.streams, return_inverse=True)

    @cached_property
    def rules(self) -> tuple[np.ndarray, ...]:
        """The first of a warm-up, [G] each.

        What the loss is sensitive to stays wide; blocks are hollow; all groups are alike.
        """
        dense, least = self.budget.groups.widths, self.budget.min_widths
        hollow = np.where(self._facts.streams, dense, least)
        ends = [hollow, least] if self.budget.meets(hollow) else [least]
        starts = [self.budget.reach(_squashed(-_RULE * self._facts.sensitivity))]
        starts += [self.budget.project(dense, end) for end in ends]
        return tuple(map(self._full, starts))

    def warm_up(self, number: int, generator: np.random.Generator) -> np.ndarray:
        """Return the widths [G] of an episode by its number: rules first, then anywhere."""
        if number < len(self.rules):
            return self.rules[number]
        return self._full(self.budget.reach(self.anywhere(1, generator)[0]))

    def anywhere(self, count: int, generator: np.random.Generator) -> np.ndarray:
        """Return ratios float [N, G], N = ``count``: noise of all levels of the graph."""

        def noise(deviation: float, which: np.ndarray) -> np.ndarray:
            drawn = generator.normal(0, deviation, (count, which.max() + 1))
            return drawn[:, which]

        each = np.arange(len(self._facts.stages))
        total = noise(_NETWORK, 0 * each) + noise(_STREAM, self._facts.streams)
        total += noise(_STAGE, self._facts.stages) + noise(_GROUP, each)
        follows = generator.normal(_SENSITIVITY, _VARIED, (count, 1))
        return _squashed(total + _MIDDLE - follows * self._facts.sensitivity)

    def around(
        self, history: History, action: np.ndarray, generator: np.random.Generator
    ) -> np.ndarray:
        """Return widths int64 [N, G]: around the best few so far, the action, and anywhere.

        They need not use all of the budget.

        Args:
            history: not empty.
            action: float [G], ratios that the actor proposes.
            generator: of the draws.
        """
        count = len(action)
        best = history.ratios[np.argsort(-history.scores, kind="stable")[:_BEST]]
        side = box_of(history.scores, count, smallest=_SMALLEST)
        # Of narrow groups, less than a channel would be no move at all.
        box = np.maximum(side, _STEP / self.budget.groups.widths)
        share = max(0.25, _MOVED / count)

        def near(middles: np.ndarray) -> np.ndarray:
            many = len(middles)
            moved = generator.random((many, count)) < share
            moved[np.arange(many), generator.integers(count, size=many)] = True
            return middles + moved * generator.uniform(-box, box, (many, count))

        def among(many: int) -> np.ndarray:
            return best[generator.integers(len(best), size=many)]

        kinds = self._together.max() + 1
        shifts = generator.normal(0, side, (_TOGETHER, kinds))
        shifts *= generator.random(shifts.shape) < 0.5
        tilted = generator.normal(0, side, (_TILTED, 1)) * self._facts.sensitivity
        drawn = np.concatenate([
            near(among(_NEAR)), among(_TOGETHER) + shifts[:, self._together],
            among(_TILTED) + tilted, near(np.tile(action, (_PROPOSED, 1))), action[None],
            self.anywhere(_ANYWHERE, generator),
        ])  # fmt: skip
        return np.unique(self.budget.reach_all(drawn), axis=0)

    def first_new(
        self, widths: np.ndarray, history: History, generator: np.random.Generator
    ) -> np.ndarray:
        """Return the first of ``widths`` int [N, G] that is not known, all budget used.

        As many are left out as are under way, which the same history led to. Using what
        rounding has left of the budget makes some of them the same. If all are known, it is
        one from anywhere.
        """
        left_out = 0
        dense = self.budget.groups.widths
        known = {tuple(row) for row in np.rint(dense * (1 - history.ratios)).astype(int)}
        for row in widths:
            if tuple(row) in known:
                continue
            found = self._full(row)
            if tuple(found) in known:
                continue
            if left_out == history.under_way:
                return found
            known.add(tuple(found))
            left_out += 1
        return self._full(self.budget.reach(self.anywhere(1, generator)[0]))

    def _full(self, widths: np.ndarray) -> np.ndarray:
        """Return the candidate [G] that the environment makes of ``widths`` [G]."""
        while True:
            wider = self.budget.project(self.budget.groups.widths, widths)
            if np.array_equal(wider, widths):
                return widths
            widths = wider


def _squashed(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-values))


def box_of(
    scores: np.ndarray, groups: int, first: int = 20, smallest: float = 0.02
) -> float:
    """Return half the side of the box, from all scores in their order.

    It grows after successes and shrinks after failures: TuRBO,
    https://arxiv.org/abs/1910.01739.

    Args:
        scores: float [H].
        groups: G.
        first: how many of them count for nothing, but that they are to be surpassed.
        smallest: what it does not fall below.
    """
    box, successes, failures = _BOX, 0, 0
    best = scores[:first].max()
    for score in scores[first:]:
        better = score > best
        best = max(best, score)
        successes, failures = (successes + 1, 0) if better else (0, failures + 1)
        if successes == _SUCCESSES:
            box, successes = min(box * _FACTOR, _LARGEST), 0
        elif failures >= groups * _FAILURES:
            box, failures = max(box / _FACTOR, smallest), 0
    return box
