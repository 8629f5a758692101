"""The method ``spp``."""

import numpy as np
import torch

from gnnrl_ray.methods.proposer import Rule
from gnnrl_ray.pruning.importance import filters


class SPP(Rule):
    """Structured probabilistic pruning's place in the comparison: one candidate.

    https://arxiv.org/abs/1709.06994 prunes while it trains, at ratios that it is told. Here
    all methods are fine-tuned alike, and principal components tell the ratios: every group
    keeps as many filters as leave the same share of their variance unexplained, a share
    that the budget determines.
    """

    def widths(self) -> np.ndarray:  # noqa: D102
        objective = self.task.objective
        errors = [_errors(rows) for rows in filters(objective.network, objective.groups)]
        levels = np.unique(np.concatenate(errors))

        def path(place: float) -> np.ndarray:
            level = levels[min(int(place * len(levels)), len(levels) - 1)]
            return np.array([(error > level).sum() for error in errors])

        return self.budget.along(path)


def _errors(rows: torch.Tensor) -> np.ndarray:
    """Return [C]: the share of variance that the first 0 .. C - 1 components leave."""
    values = torch.linalg.svdvals((rows - rows.mean(0)).double()).square()
    left = values.flip(0).cumsum(0).flip(0)
    errors = torch.zeros(len(rows), dtype=torch.float64)  # with fewer numbers than filters
    errors[: len(left)] = left / left[0].clamp_min(1e-30)
    return errors.numpy()
