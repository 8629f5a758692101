"""The method ``inside``."""

import numpy as np

from gnnrl_ray.graph.regions import find_blocks, open_blocks
from gnnrl_ray.methods.proposer import Rule
from gnnrl_ray.tracing.groups import ChannelGroups


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


def inside_blocks(groups: ChannelGroups) -> np.ndarray:
    """Return bool [G]: which groups are made and read within one block of the network."""
    touched = np.zeros((len(groups.widths), 0), bool)
    for block in open_blocks(groups, find_blocks(groups)):
        here = np.zeros((len(groups.widths), 1), bool)
        for i in block.inside:
            op = groups.operations[i]
            found = groups.group_of(np.concatenate([op.inputs, op.outputs]))
            here[found[found >= 0]] = True
        touched = np.concatenate([touched, here], 1)
    return touched.sum(1) == 1
