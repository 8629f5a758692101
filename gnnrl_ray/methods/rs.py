"""The method ``rs``."""

from collections.abc import Sequence

import numpy as np

from gnnrl_ray.methods.proposer import Proposer
from gnnrl_ray.scoring.outcome import Outcome


class RS(Proposer):
    """The paper's random search: the environment under uniformly random actions.

    Unlike ``random``, it takes steps until one meets the budget, at most ``--max-steps``.
    """

    def propose(  # noqa: D102
        self, history: Sequence[Outcome], generator: np.random.Generator
    ) -> np.ndarray:
        settings, budget = self.task.settings, self.budget
        widths = budget.groups.widths
        for _ in range(settings.max_steps):
            widths, met = budget.step(widths, generator.random(len(widths)), settings.fit)
            if met:
                return widths
        return budget.project(widths, budget.min_widths)
