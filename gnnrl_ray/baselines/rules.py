"""Rules that propose widths without learning anything.

Each takes the costs, the narrowest widths int64 [G], the budget and a generator, and
returns widths int64 [G] that use the budget as far as rounding allows.
"""

import numpy as np

from gnnrl_ray.costs import Costs


def uniform(
    costs: Costs, floor: np.ndarray, budget: float, _: np.random.Generator
) -> np.ndarray:
    """Keep the same share of every group."""
    return costs.fit(costs.groups.widths, floor, budget)


def random(
    costs: Costs, floor: np.ndarray, budget: float, generator: np.random.Generator
) -> np.ndarray:
    """Drop a random share of each group, scaled to the budget.

    It is what the environment makes of a uniformly random action, and so of the agent's
    warm-up.
    """
    dense = costs.groups.widths
    target = np.maximum(dense * (1 - generator.random(len(dense))), floor)
    if costs.macs(costs.round(target)) <= budget * costs.macs(dense):
        return costs.fit(dense, target, budget)
    return costs.fit(target, floor, budget)
