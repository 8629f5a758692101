"""The method ``shallow``."""

import numpy as np

from gnnrl_ray.methods.proposer import Rule
from gnnrl_ray.tracing.groups import ChannelGroups


class Shallow(Rule):
    """Drop most where the network begins, less and less towards its end: one candidate.

    One of the hand-made rules of https://arxiv.org/abs/1802.03494, section 4.
    """

    def widths(self) -> np.ndarray:  # noqa: D102
        return self.budget.reach(1 - depths(self.budget.groups))


def depths(groups: ChannelGroups) -> np.ndarray:
    """Return float [G]: where the layers that make a group are, from 0 to 1."""
    last = max(len(groups.layers) - 1, 1)
    places: list[list[float]] = [[] for _ in groups.names]
    for i, op in enumerate(groups.layers):
        made = groups.group_of(op.outputs)
        for g in np.unique(made[made >= 0]).tolist():
            places[g].append(i / last)
    return np.array([np.mean(found) for found in places])
