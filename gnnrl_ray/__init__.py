"""Channel pruning of CNNs, searched by a graph network and DDPG on Ray RLlib."""

from gnnrl_ray.costs import Costs
from gnnrl_ray.data import load_data
from gnnrl_ray.env import PruningEnv
from gnnrl_ray.graph import HierarchicalGraph
from gnnrl_ray.groups import ChannelGroups, trace
from gnnrl_ray.objective import Objective, Outcome
from gnnrl_ray.pruner import mask, prune
from gnnrl_ray.run import load_pruned
from gnnrl_ray.search import search
from gnnrl_ray.training import accuracy, train
from gnnrl_ray.zoo import load_network

__version__ = "0.1.0"

__all__ = [
    "ChannelGroups",
    "Costs",
    "HierarchicalGraph",
    "Objective",
    "Outcome",
    "PruningEnv",
    "accuracy",
    "load_data",
    "load_network",
    "load_pruned",
    "mask",
    "prune",
    "search",
    "trace",
    "train",
]
