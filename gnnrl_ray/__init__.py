"""Channel pruning of CNNs, searched by a graph network and DDPG on Ray RLlib."""

from gnnrl_ray.agent.env import PruningEnv
from gnnrl_ray.data import load_data
from gnnrl_ray.errors import GnnrlError
from gnnrl_ray.graph.hierarchy import HierarchicalGraph
from gnnrl_ray.jobs.searching import search
from gnnrl_ray.pruning.budget import Budget
from gnnrl_ray.pruning.costs import Costs
from gnnrl_ray.pruning.removal import mask, prune
from gnnrl_ray.run.directory import load_pruned
from gnnrl_ray.scoring.objective import Objective
from gnnrl_ray.scoring.outcome import Outcome
from gnnrl_ray.scoring.training import accuracy, train
from gnnrl_ray.settings import SearchSettings
from gnnrl_ray.source import Source
from gnnrl_ray.tracing.groups import ChannelGroups, trace
from gnnrl_ray.zoo import load_network

__version__ = "0.1.0"

__all__ = [
    "Budget",
    "ChannelGroups",
    "Costs",
    "GnnrlError",
    "HierarchicalGraph",
    "Objective",
    "Outcome",
    "PruningEnv",
    "SearchSettings",
    "Source",
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
