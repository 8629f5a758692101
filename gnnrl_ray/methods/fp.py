"""The method ``fp``."""

import numpy as np

from gnnrl_ray.methods.proposer import Rule
from gnnrl_ray.tracing.groups import ChannelGroups

# What is dropped of one group at a time, to see what that does.
DROPPED = (0.2, 0.4, 0.6, 0.8)


class FP(Rule):
    """Filter pruning by sensitivity (https://arxiv.org/abs/1608.08710): one candidate.

    Each group is pruned alone, four times, and scored as candidates are. Then all groups
    are pruned as far as each costs no more accuracy than one tolerance, which the budget
    determines; so what is sensitive stays.
    """

    @staticmethod
    def probes(groups: ChannelGroups) -> int:  # noqa: D102
        return len(DROPPED) * len(groups.widths) + 1

    def widths(self) -> np.ndarray:  # noqa: D102
        losses, dense = self.losses(), self.budget.groups.widths
        ratios = np.array([0.0, *DROPPED, 1.0])
        worst = losses.max()

        def path(place: float) -> np.ndarray:
            dropped = [np.interp(place * worst, loss, ratios) for loss in losses]
            return dense * (1 - np.array(dropped))

        return self.budget.along(path)

    def losses(self) -> np.ndarray:
        """Return float [G, 6]: accuracy that each group costs alone; it never falls.

        From nothing dropped over ``DROPPED`` to all, which is as bad as four fifths.
        """
        objective, dense = self.task.objective, self.budget.groups.widths
        before = objective.accuracy(dense)
        losses = np.zeros((len(dense), len(DROPPED) + 2))
        for g in range(len(dense)):
            for n, ratio in enumerate(DROPPED, 1):
                widths = dense.copy()
                widths[g] = self.budget.round(self.budget.drop(dense, ratio))[g]
                losses[g, n] = before - objective.accuracy(widths)
        losses = np.maximum.accumulate(losses, 1)
        # Interpolation needs it to rise; half an image of a million is nothing.
        return losses + np.linspace(0, 5e-7, losses.shape[1])
