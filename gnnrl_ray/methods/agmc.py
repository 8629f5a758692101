"""The method ``agmc``."""

from dataclasses import replace
from typing import Any

from gnnrl_ray.agent.method import Agent
from gnnrl_ray.settings import SearchSettings


class AGMC(Agent):
    """One graph network on the flat graph, all ratios in one step: GNN-RL's predecessor.

    Yu et al., Auto Graph Encoder-Decoder for Neural Network Pruning, ICCV 2021.
    """

    defaults = Agent.defaults | {"algorithm": "ddpg", "pooling": "mean"}

    @classmethod
    def env_config(cls, settings: SearchSettings, objective: Any) -> dict:
        """Return the configuration of the environment: a flat graph, and one step."""
        return super().env_config(replace(settings, levels=1, max_steps=1), objective)
