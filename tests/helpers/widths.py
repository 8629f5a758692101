"""Candidates at random."""

from gnnrl_ray import Budget
from gnnrl_ray.pruning.importance import rank
from gnnrl_ray.pruning.removal import keep, remove


def random_widths(groups, rng):
    """Return int [G], any that are multiples of what they have to be."""
    most = groups.widths // groups.multiple_of
    return rng.integers(1, most, endpoint=True) * groups.multiple_of


def scaled(groups, flops, min_keep=0.0, **bounds):
    """Return the widths int [G] of all groups scaled down together to ``flops``."""
    budget = Budget(groups, {"flops": flops}, min_keep=min_keep, **bounds)
    return budget.project(groups.widths, budget.min_widths)


def cut(network, groups, widths):
    """The graph that a search works with, of ``widths`` channels."""
    ranking = rank(network, groups)
    return remove(network, groups, keep(ranking, groups.check_widths(widths)))
