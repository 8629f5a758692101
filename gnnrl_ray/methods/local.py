"""The method ``local``."""

from collections.abc import Sequence

import numpy as np

from gnnrl_ray.methods.proposer import Proposer, best_of
from gnnrl_ray.scoring.outcome import Outcome

_RANDOM = 20  # candidates before the first step
_MOVED = 0.25  # share of the groups that a step moves
_STEP = 0.2  # standard deviation of a ratio


class Local(Proposer):
    """Local search: move some groups of the best candidate, and keep what is better."""

    def propose(  # noqa: D102
        self, history: Sequence[Outcome], generator: np.random.Generator
    ) -> np.ndarray:
        count = len(self.budget.groups.widths)
        if len(history) < _RANDOM:
            return self.budget.reach(generator.random(count))
        (best,) = self.ratios(best_of(history, 1))
        moved = generator.random(count) < _MOVED
        moved[generator.integers(count)] = True
        return self.budget.reach(best + moved * generator.normal(0, _STEP, count))
