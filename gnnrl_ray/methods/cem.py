"""The method ``cem``."""

from collections.abc import Sequence

import numpy as np

from gnnrl_ray.methods.proposer import Proposer, best_of
from gnnrl_ray.scoring.outcome import Outcome

_RANDOM = 30  # candidates before the first elite
_ELITE = 10
_NOISE = 0.2  # at the beginning; then it decays with the candidates


class CEM(Proposer):
    """Cross-entropy method: draw where the best ten were, a normal for each group.

    https://doi.org/10.1007/s10479-005-5724-z, with an elite of all candidates so far in
    place of generations, so that actors need not wait for each other.
    """

    def propose(  # noqa: D102
        self, history: Sequence[Outcome], generator: np.random.Generator
    ) -> np.ndarray:
        if len(history) < _RANDOM:
            return self.budget.reach(generator.random(len(self.budget.groups.widths)))
        elite = self.ratios(best_of(history, _ELITE))
        spread = elite.std(0) + _NOISE * _RANDOM / len(history)
        return self.budget.reach(generator.normal(elite.mean(0), spread))
