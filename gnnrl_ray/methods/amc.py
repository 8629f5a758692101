"""The method ``amc``."""

from typing import Any, ClassVar

from gnnrl_ray.agent.layerwise import LayerwiseEnv
from gnnrl_ray.agent.method import Agent


class AMC(Agent):
    """DDPG that goes from layer to layer, https://arxiv.org/abs/1802.03494."""

    environment = LayerwiseEnv
    defaults: ClassVar[dict[str, Any]] = {
        "algorithm": "ddpg", "updates_per_step": 1, "gamma": 1.0, "noise_decay": 0.95,
    }  # fmt: skip
