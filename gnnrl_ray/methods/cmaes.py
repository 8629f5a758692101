"""The method ``cmaes``."""

from collections.abc import Sequence

import numpy as np

from gnnrl_ray.methods.proposer import Proposer, required
from gnnrl_ray.scoring.outcome import Outcome
from gnnrl_ray.settings import SearchSettings

_STEP = 0.3  # standard deviation of a ratio, at first


class CMAES(Proposer):
    """Covariance matrix adaptation, https://arxiv.org/abs/1604.00772.

    By the package ``cmaes``, which Optuna's sampler is made of; it is told the ratios that
    candidates really have. Each generation is what was scored next, so that a run goes on
    from its journal, and actors need not wait for each other.
    """

    @staticmethod
    def check(settings: SearchSettings) -> None:  # noqa: D102
        Proposer.check(settings)
        required("cmaes", settings.method)

    def propose(  # noqa: D102
        self, history: Sequence[Outcome], generator: np.random.Generator
    ) -> np.ndarray:
        from cmaes import CMA

        count = len(self.budget.groups.widths)
        bounds = np.tile([0.0, 1.0], (count, 1))
        # One group alone has no covariance; the package asks for two.
        optimizer = CMA(np.full(count, 0.5), _STEP, bounds=bounds)
        size, ratios = optimizer.population_size, self.ratios(history)
        losses = [-outcome.accuracy for outcome in history]
        for start in range(0, len(history) - size + 1, size):
            rows = range(start, start + size)
            optimizer.tell([(ratios[row], losses[row]) for row in rows])
        optimizer.reseed_rng(int(generator.integers(2**32)))
        return self.budget.reach(optimizer.ask())
