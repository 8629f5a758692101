"""The module of DDPG: actor and critic, and how it explores.

Axis letters: B batch, G actions.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.utils import make_target_network
from ray.rllib.core.rl_module.apis import InferenceOnlyAPI, TargetNetworkAPI
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule
from scipy.stats import truncnorm
from torch import Tensor, nn

from gnnrl_ray.agent.mgnn import Actor, Critic, encoder_of
from gnnrl_ray.agent.spaces import bounds_of, shaped

Q, Q_OF_ACTOR, Q_NEXT = "q", "q_of_actor", "q_next"


def noise_of(episode: int, settings: Mapping[str, Any]) -> float:
    """Return the standard deviation of the noise, as a share of the action range.

    Args:
        episode: its number, after warm-up.
        settings: of :class:`~gnnrl_ray.agent.settings.AgentSettings`.
    """
    after = episode - settings["warmup_episodes"]
    decayed = settings["noise"] * settings["noise_decay"] ** after
    return max(decayed, settings["noise_floor"])


class DDPGModule(TorchRLModule, InferenceOnlyAPI, TargetNetworkAPI):
    """Actor and critic: with the m-GNN on a ``GraphBox``, plain on any other ``Box``."""

    def setup(self) -> None:
        """Build the networks; an env runner needs the actor alone."""
        settings = self.model_config
        low, high = bounds_of(self.action_space, self.observation_space)
        encoder = partial(encoder_of, self.observation_space, settings)
        self.actor = Actor(encoder(), low, high, settings["hidden"])
        if not self.inference_only:
            self.critic = Critic(encoder(), len(low), settings["hidden"])
        # Set anew for each episode by the env runner.
        self.episode = 0
        self.generator = np.random.default_rng(0)

    def train(self, mode: bool = True) -> "DDPGModule":
        """Change the mode if it is another: RLlib asks before each step."""
        return self if self.training == mode else super().train(mode)

    def get_non_inference_attributes(self) -> list[str]:  # noqa: D102
        return ["critic", "target_actor", "target_critic"]

    def make_target_networks(self) -> None:  # noqa: D102
        self.target_actor = make_target_network(self.actor)
        self.target_critic = make_target_network(self.critic)

    def get_target_network_pairs(self) -> list[tuple[nn.Module, nn.Module]]:  # noqa: D102
        return [(self.actor, self.target_actor), (self.critic, self.target_critic)]

    @torch.no_grad()
    def forward_target(self, batch: dict) -> Tensor:
        """Return Q'(s', mu'(s')) of the target networks, [B]; 0 where s' is the end."""
        values = torch.zeros_like(batch[Columns.REWARDS])
        goes_on = ~batch[Columns.TERMINATEDS]
        if goes_on.any():
            actor, critic = self.target_actor, self.target_critic
            plan = actor.encoder.plan(batch[Columns.NEXT_OBS][goes_on])
            values[goes_on] = critic(critic.encoder(plan), actor(plan))[plan.which]
        return values

    @torch.no_grad()
    def _forward_inference(self, batch: dict, **_) -> dict:
        actions = self._act(batch[Columns.OBS])
        return {Columns.ACTIONS: shaped(actions, self.action_space)}

    @torch.no_grad()
    def _forward_exploration(self, batch: dict, **_) -> dict:
        actions = self._explore(self._act(batch[Columns.OBS]).cpu().numpy())
        return {Columns.ACTIONS: shaped(actions, self.action_space)}

    def _act(self, observations: Tensor) -> Tensor:
        plan = self.actor.encoder.plan(observations)
        return self.actor(plan)[plan.which]

    def _explore(self, action: np.ndarray) -> Tensor:
        """Draw around ``action`` float32 [B, G], within the action range."""
        settings = self.model_config
        low, span = self.actor.low.cpu().numpy(), self.actor.span.cpu().numpy()
        if self.episode < settings["warmup_episodes"]:
            drawn = low + span * self.generator.random(action.shape)
        else:
            sigma = span * max(noise_of(self.episode, settings), 1e-6)
            bounds = (low - action) / sigma, (low + span - action) / sigma
            drawn = truncnorm.rvs(
                *bounds, action, sigma, action.shape, random_state=self.generator
            )
        return torch.tensor(drawn, dtype=torch.float32)

    def _forward_train(self, batch: dict, **_) -> dict:
        critic, plan = self.critic, self.actor.encoder.plan(batch[Columns.OBS])
        embedding = critic.encoder(plan)
        # With the critic held constant for the actor's loss, a single backward pass gives
        # actor and critic each its own gradient.
        critic.mlp.requires_grad_(False)
        judged = critic(embedding.detach(), self.actor(plan))
        critic.mlp.requires_grad_(True)
        return {
            Q: critic(embedding[plan.which], batch[Columns.ACTIONS]),
            Q_NEXT: self.forward_target(batch),
            Q_OF_ACTOR: judged[plan.which],
        }
