"""The method ``global``."""

from collections.abc import Sequence

import numpy as np

from gnnrl_ray.methods.proposer import Proposer
from gnnrl_ray.scoring.outcome import Outcome
from gnnrl_ray.settings import SearchSettings


class Global(Proposer):
    """Drop the least important channels of the whole network: one candidate.

    Importances are divided by the mean of their group, so that one threshold serves all,
    as in https://github.com/VainF/Torch-Pruning.
    """

    @staticmethod
    def candidates(settings: SearchSettings) -> int:  # noqa: D102
        return 1

    def propose(  # noqa: D102
        self, history: Sequence[Outcome], generator: np.random.Generator
    ) -> np.ndarray:
        scores = [score / score.mean() for score in self.task.objective.scores]
        levels = np.sort(np.concatenate(scores))

        def above(share: float) -> np.ndarray:
            level = levels[min(int(share * len(levels)), len(levels) - 1)]
            return np.array([(score > level).sum() for score in scores])

        return self.budget.along(above)
