"""The method ``uniform``."""

from collections.abc import Sequence

import numpy as np

from gnnrl_ray.methods.proposer import Proposer
from gnnrl_ray.scoring.outcome import Outcome
from gnnrl_ray.settings import SearchSettings


class Uniform(Proposer):
    """Keep the same share of every group: one candidate."""

    @staticmethod
    def candidates(settings: SearchSettings) -> int:  # noqa: D102
        return 1

    def propose(  # noqa: D102
        self, history: Sequence[Outcome], generator: np.random.Generator
    ) -> np.ndarray:
        return self.budget.project(self.budget.groups.widths, self.budget.min_widths)
