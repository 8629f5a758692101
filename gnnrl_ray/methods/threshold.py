"""The method ``global``."""

import numpy as np

from gnnrl_ray.methods.proposer import Rule


class Global(Rule):
    """Drop the least important channels of the whole network: one candidate.

    Importances are divided by the mean of their group, so that one threshold serves all,
    as in https://github.com/VainF/Torch-Pruning.
    """

    def widths(self) -> np.ndarray:  # noqa: D102
        scores = [score / score.mean() for score in self.task.objective.scores]
        levels = np.sort(np.concatenate(scores))

        def above(share: float) -> np.ndarray:
            level = levels[min(int(share * len(levels)), len(levels) - 1)]
            return np.array([(score > level).sum() for score in scores])

        return self.budget.along(above)
