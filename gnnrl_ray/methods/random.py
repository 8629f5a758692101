"""The method ``random``."""

from collections.abc import Sequence

import numpy as np

from gnnrl_ray.methods.proposer import Proposer
from gnnrl_ray.scoring.outcome import Outcome


class Random(Proposer):
    """Drop a random share of each group, scaled to the budget.

    It is what the environment makes of a uniformly random action, and so of the agent's
    warm-up.
    """

    def propose(  # noqa: D102
        self, history: Sequence[Outcome], generator: np.random.Generator
    ) -> np.ndarray:
        return self.budget.reach(generator.random(len(self.budget.groups.widths)))
