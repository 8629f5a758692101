"""Channel pruning of CNNs, searched by a graph network and DDPG on Ray RLlib.

What is asked for is imported then: torch takes seconds, which ``--help`` does without.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gnnrl_ray.agent.env import PruningEnv
    from gnnrl_ray.data import Data, Split, load_data
    from gnnrl_ray.errors import GnnrlError
    from gnnrl_ray.graph.hierarchy import HierarchicalGraph
    from gnnrl_ray.jobs.result import Result
    from gnnrl_ray.jobs.searching import search
    from gnnrl_ray.pruning.budget import Budget
    from gnnrl_ray.pruning.costs import Costs
    from gnnrl_ray.pruning.removal import mask, prune
    from gnnrl_ray.run.winner import load_pruned
    from gnnrl_ray.scoring.metric import Metric
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
    "Data",
    "GnnrlError",
    "HierarchicalGraph",
    "Metric",
    "Objective",
    "Outcome",
    "PruningEnv",
    "Result",
    "SearchSettings",
    "Source",
    "Split",
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

_HOMES = {
    "Budget": "pruning.budget",
    "ChannelGroups": "tracing.groups",
    "Costs": "pruning.costs",
    "Data": "data",
    "GnnrlError": "errors",
    "HierarchicalGraph": "graph.hierarchy",
    "Metric": "scoring.metric",
    "Objective": "scoring.objective",
    "Outcome": "scoring.outcome",
    "PruningEnv": "agent.env",
    "Result": "jobs.result",
    "SearchSettings": "settings",
    "Source": "source",
    "Split": "data",
    "accuracy": "scoring.training",
    "load_data": "data",
    "load_network": "zoo",
    "load_pruned": "run.winner",
    "mask": "pruning.removal",
    "prune": "pruning.removal",
    "search": "jobs.searching",
    "trace": "tracing.groups",
    "train": "scoring.training",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
