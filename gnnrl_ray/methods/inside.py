"""The method ``inside``."""

import numpy as np

from gnnrl_ray.graph.facts import inside_blocks
from gnnrl_ray.methods.proposer import Rule


class Inside(Rule):
    """Keep what blocks pass on to each other, and shrink all else evenly: one candidate.

    If the budget is out of reach so, what they pass on shrinks, too.
    """

    def widths(self) -> np.ndarray:  # noqa: D102
        groups, least = self.budget.groups, self.budget.min_widths
        hollow = np.where(inside_blocks(groups), least, groups.widths)
        if self.budget.meets(hollow):
            return self.budget.project(groups.widths, hollow)
        return self.budget.project(hollow, least)
