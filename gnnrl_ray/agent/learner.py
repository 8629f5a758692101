"""The learner of DDPG: gradient steps in a row, and targets that follow after each."""

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.learner import POLICY_LOSS_KEY
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.core.rl_module.apis import TargetNetworkAPI
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim.swa_utils import get_ema_multi_avg_fn

from gnnrl_ray.agent.module import Q_NEXT, Q_OF_ACTOR, Q
from gnnrl_ray.errors import Notice

QF_LOSS_KEY, QF_MEAN_KEY = "qf_loss", "qf_mean"


class StepsLearner(TorchLearner):
    """Takes gradient steps in a row, and lets the targets follow after each."""

    def build(self) -> None:
        """Build the module, and targets for it."""
        super().build()
        self._pairs = []  # of all parameters, targets and what they follow
        for module_id, module in self.module.items():
            if not isinstance(module.unwrapped(), TargetNetworkAPI):
                continue
            module.unwrapped().make_target_networks()
            tau = self.config.get_config_for_module(module_id).tau
            for online, target in module.unwrapped().get_target_network_pairs():
                pair = list(target.parameters()), list(online.parameters())
                if pair[0]:  # what encodes plain vectors has none
                    self._pairs.append((*pair, tau))

    def apply_gradients(self, gradients_dict: dict) -> None:
        """Take the step, and let the targets follow by tau.

        A gradient that is not a finite number is no step.
        """
        if not get_total_norm(gradients_dict.values()).isfinite():
            warnings.warn(
                "a gradient is not finite; nothing is learnt from this batch.",
                Notice,
                stacklevel=2,
            )
            return
        for optimizer in self._named_optimizers.values():
            optimizer.step()
        for targets, parameters, tau in self._pairs:
            get_ema_multi_avg_fn(1 - tau)(targets, parameters, None)

    def _update(self, batch: dict, **kwargs: Any) -> tuple:
        """Take one gradient step for each train batch that ``batch`` holds in a row."""
        size, result = self.config.train_batch_size_per_learner, ({}, {}, {})
        for module_id, columns in batch.items():
            parts = [columns[name].split(size) for name in columns]
            for part in zip(*parts, strict=True):
                one = {module_id: dict(zip(columns, part, strict=True))}
                result = super()._update(one, **kwargs)
        return result


class DDPGLearner(StepsLearner):
    """One gradient step for critic and actor; then the targets follow."""

    optimizer: type[torch.optim.Optimizer] = torch.optim.Adam

    def configure_optimizers_for_module(self, module_id, config=None) -> None:
        """Give actor and critic an Adam each."""
        module = self.module[module_id].unwrapped()
        for name, network, lr, decay in (
            ("actor", module.actor, config.actor_lr, 0.0),
            ("critic", module.critic, config.critic_lr, config.critic_weight_decay),
        ):
            parameters = self.get_parameters(network)
            self.register_optimizer(
                module_id=module_id,
                optimizer_name=name,
                optimizer=self.optimizer(parameters, weight_decay=decay, fused=True),
                params=parameters,
                lr_or_lr_schedule=lr,
            )

    def after_gradient_based_update(self, *, timesteps: dict) -> None:
        """Log the losses, of the last step only: logging takes as long as a step."""
        super().after_gradient_based_update(timesteps=timesteps)
        self.metrics.log_dict(self._losses, key=DEFAULT_MODULE_ID, window=1)

    def compute_loss_for_module(self, *, module_id, config, batch, fwd_out) -> Tensor:
        """Return (y - Q(s, a))^2 - Q(s, mu(s)), averaged over the batch."""
        target = batch[Columns.REWARDS] + config.gamma * fwd_out[Q_NEXT]
        critic_loss = F.mse_loss(fwd_out[Q], target)
        actor_loss = -fwd_out[Q_OF_ACTOR].mean()
        return self._total(critic_loss, actor_loss, fwd_out[Q])

    def _total(self, critic_loss: Tensor, actor_loss: Tensor, q: Tensor) -> Tensor:
        """Return the sum of both losses, whose values are to be logged beside mean Q."""
        self._losses = {
            QF_LOSS_KEY: critic_loss, POLICY_LOSS_KEY: actor_loss, QF_MEAN_KEY: q.mean(),
        }  # fmt: skip
        return critic_loss + actor_loss
