"""The method ``deep``."""

from collections.abc import Sequence

import numpy as np

from gnnrl_ray.methods.proposer import Proposer
from gnnrl_ray.methods.shallow import depths
from gnnrl_ray.scoring.outcome import Outcome
from gnnrl_ray.settings import SearchSettings


class Deep(Proposer):
    """Drop most where the network ends, less and less towards its beginning: one candidate.

    One of the hand-made rules of https://arxiv.org/abs/1802.03494, section 4.
    """

    @staticmethod
    def candidates(settings: SearchSettings) -> int:  # noqa: D102
        return 1

    def propose(  # noqa: D102
        self, history: Sequence[Outcome], generator: np.random.Generator
    ) -> np.ndarray:
        return self.budget.reach(depths(self.budget.groups))
