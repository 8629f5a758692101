"""The method ``deep``."""

import numpy as np

from gnnrl_ray.methods.proposer import Rule
from gnnrl_ray.methods.shallow import depths


class Deep(Rule):
    """Drop most where the network ends, less and less towards its beginning: one candidate.

    One of the hand-made rules of https://arxiv.org/abs/1802.03494, section 4.
    """

    def widths(self) -> np.ndarray:  # noqa: D102
        return self.budget.reach(depths(self.budget.groups))
