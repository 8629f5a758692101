"""The method ``uniform``."""

import numpy as np

from gnnrl_ray.methods.proposer import Rule


class Uniform(Rule):
    """Keep the same share of every group: one candidate."""

    def widths(self) -> np.ndarray:  # noqa: D102
        return self.budget.project(self.budget.groups.widths, self.budget.min_widths)
