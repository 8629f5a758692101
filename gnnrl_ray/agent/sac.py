"""Soft actor-critic in DDPG's place: RLlib's loss, our encoders and episodes.

Haarnoja et al., https://arxiv.org/abs/1801.01290. An ablation: everything else of the agent
(m-GNN, warm-up, replay, gradient steps for each step) stays as it is.

Axis letters: B batch, G actions, D embedding dimension.
"""

from functools import partial
from typing import Any

import numpy as np
import torch
from ray.rllib.algorithms.sac.torch.default_sac_torch_rl_module import (
    DefaultSACTorchRLModule,
)
from ray.rllib.algorithms.sac.torch.sac_torch_learner import SACTorchLearner
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.distribution.torch.torch_distribution import TorchSquashedGaussian
from ray.rllib.core.models.base import ENCODER_OUT
from torch import Tensor, nn

from gnnrl_ray.agent.learner import StepsLearner
from gnnrl_ray.agent.mgnn import encoder_of, perceptron
from gnnrl_ray.agent.spaces import bounds_of, shaped

_OWN = "sac"  # of the state of a learner


class _Encoding(nn.Module):
    """An encoder as RLlib asks for one: observations [B, ...] -> embeddings [B, D]."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, batch: dict) -> dict[str, Tensor]:
        """Return the embeddings of the observations in ``batch``."""
        plan = self.encoder.plan(batch[Columns.OBS])
        return {ENCODER_OUT: self.encoder(plan)[plan.which]}


class SACModule(DefaultSACTorchRLModule):
    """RLlib's module for SAC, with our encoders; learns on actions in [-1, 1]."""

    def setup(self) -> None:
        """Build the networks; an env runner needs the policy alone."""
        settings = self.model_config
        low, high = bounds_of(self.action_space, self.observation_space)
        count, hidden, self.twin_q = len(low), settings["hidden"], True
        encoder = partial(encoder_of, self.observation_space, settings)
        self.pi_encoder = _Encoding(encoder())
        dim = self.pi_encoder.encoder.dim
        self.pi = perceptron(dim, hidden, 2 * count)
        if not self.inference_only:
            self.qf_encoder, self.qf_twin_encoder = (_Encoding(encoder()) for _ in "12")
            self.qf, self.qf_twin = (perceptron(dim + count, hidden, 1) for _ in "12")
        self.register_buffer("low", low, persistent=False)
        self.register_buffer("span", high - low, persistent=False)
        # Set anew for each episode by the env runner.
        self.episode = 0
        self.generator = np.random.default_rng(0)

    def get_train_action_dist_cls(self) -> type:
        """Return the distribution of actions: a normal one squashed into [-1, 1]."""
        return TorchSquashedGaussian

    @torch.no_grad()
    def _forward_inference(self, batch: dict, **_: Any) -> dict:
        return self._done(self._squashed(self._normal(batch)[0]))

    @torch.no_grad()
    def _forward_exploration(self, batch: dict, **_: Any) -> dict:
        mean, scale = self._normal(batch)
        if self.episode < self.model_config["warmup_episodes"]:
            drawn = torch.tensor(self.generator.random(mean.shape), dtype=torch.float32)
            return self._done(self.low + self.span * drawn)
        noise = self.generator.normal(size=mean.shape)
        noise = torch.tensor(noise, dtype=torch.float32, device=mean.device)
        return self._done(self._squashed(mean + scale * noise))

    def _done(self, actions: Tensor) -> dict[str, Tensor]:
        return {Columns.ACTIONS: shaped(actions, self.action_space)}

    def _forward_train(self, batch: dict) -> dict:
        inside = 2 * (batch[Columns.ACTIONS] - self.low) / self.span - 1
        return super()._forward_train(batch | {Columns.ACTIONS: inside})

    def _normal(self, batch: dict) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation [B, G] before they are squashed."""
        inputs = super()._forward_inference(batch)[Columns.ACTION_DIST_INPUTS]
        normal = self.get_train_action_dist_cls().from_logits(inputs)
        return normal.loc, normal._dist.scale

    def _squashed(self, values: Tensor) -> Tensor:
        return self.low + self.span * (values.tanh() + 1) / 2

    def _qf_forward_train_helper(
        self, batch: dict, encoder: nn.Module, head: nn.Module, squeeze: bool = True
    ) -> Tensor:
        """Return the values [B] of the observations and actions in ``batch``."""
        embedding = encoder(batch)[ENCODER_OUT]
        values = head(torch.cat([embedding, batch[Columns.ACTIONS]], 1))
        return values.squeeze(1) if squeeze else values


class SACLearner(StepsLearner, SACTorchLearner):
    """RLlib's loss and optimisers, our steps and targets; draws numbers of its own."""

    def build(self) -> None:
        """Build module and targets, and seed what actions are drawn with."""
        super().build()
        generator = torch.Generator().manual_seed(self.config.seed or 0)
        self._random = generator.get_state()

    def _update(self, batch: dict, **kwargs: Any) -> tuple:
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self._random)
            try:
                return super()._update(batch, **kwargs)
            finally:
                self._random = torch.get_rng_state()

    def compute_loss_for_module(
        self, *, module_id: str, config: Any, batch: dict, fwd_out: dict
    ) -> Any:
        """Return RLlib's loss of one-step transitions, all of the same weight."""
        ones = torch.ones_like(batch[Columns.REWARDS])
        return super().compute_loss_for_module(
            module_id=module_id, config=config, fwd_out=fwd_out,
            batch=batch | {"weights": ones, "n_step": ones},
        )  # fmt: skip

    # RLlib's checkpoints have the optimiser of the temperature, but not the temperature.

    def get_state(self, components=None, *, not_components=None, **kwargs) -> dict:
        """Return RLlib's state with the temperature, and that of the numbers drawn."""
        state = super().get_state(components, not_components=not_components, **kwargs)
        if self._check_component(_OWN, components, not_components):
            log_alpha = self.curr_log_alpha[DEFAULT_MODULE_ID].detach().clone()
            state[_OWN] = {"log_alpha": log_alpha, "random": self._random}
        return state

    def set_state(self, state: dict) -> None:
        """Take over what :meth:`get_state` returned."""
        super().set_state(state)
        if _OWN in state:
            self._random = state[_OWN]["random"]
            with torch.no_grad():
                log_alpha = self.curr_log_alpha[DEFAULT_MODULE_ID]
                log_alpha.copy_(state[_OWN]["log_alpha"])
