"""DDPG whose critics choose: an actor proposes, and the best of much that is near is done.

The Wolpertinger policy (https://arxiv.org/abs/1512.07679), where candidates are few enough
to be told apart: the actor's action is no candidate before it is projected to the budget.
What critics think of candidates counts as much as what they promise by kriging.
Actor and critics have one head for all groups, so that what is learnt of one block is known
of the next, and of those of another network.

Axis letters: B batch, G groups, N candidates, S distinct states, D embedding dimension,
F facts, H hidden, K critics.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis import InferenceOnlyAPI
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule
from torch import Tensor, nn

from gnnrl_ray.agent.candidates import Candidates, History
from gnnrl_ray.agent.kriging import promise
from gnnrl_ray.agent.learner import DDPGLearner
from gnnrl_ray.agent.mgnn import GraphEncoder, Plan, encoder_of, perceptron
from gnnrl_ray.agent.module import Q_OF_ACTOR, Q
from gnnrl_ray.agent.transfer import apply, start_from
from gnnrl_ray.errors import InputError
from gnnrl_ray.graph.facts import GroupFacts

_CRITICS, _HIDDEN = 5, 32
_CURIOSITY = 0.5  # standard deviations of the critics
_AT_ONCE = 2**15  # groups of candidates that critics look at at once
_FROM_ANYWHERE = 1000  # candidates to choose among while little is known
_TRIED = 200  # of the most promising, until one is new
_BACK = 10.0  # times the step size: how far critics are drawn to where they began
_LEAST_KEPT = 0.03  # below which shares look alike
_BESIDE = "beside"  # by how much the actor's shares are not what the budget leaves of them


class GroupEncoder(nn.Module):
    """Embeds every group: facts of it, the motifs it is of, and the network.

    Args:
        encoder: of observations.
        facts: of the groups.

    Attributes:
        dim: D, of the embedding of a group.
    """

    values: Tensor
    touched: Tensor

    def __init__(self, encoder: nn.Module, facts: GroupFacts) -> None:
        super().__init__()
        self.encoder = encoder
        self.register_buffer("values", torch.tensor(facts.values), persistent=False)
        self.register_buffer("touched", torch.tensor(facts.touched), persistent=False)
        self._motifs = isinstance(encoder, GraphEncoder)
        self.dim = facts.values.shape[1] + encoder.dim * (1 + self._motifs)

    def forward(self, plan: Plan) -> Tensor:
        """Return the embeddings in the distinct states, [S, G, D]."""
        groups = len(self.values)
        parts = [self.values.expand(len(plan.observations), -1, -1)]
        if self._motifs:
            motifs, network = self.encoder.levels(plan)
            parts.append(self.touched @ motifs[plan.instances])
        else:
            network = self.encoder(plan)
        parts.append(network[:, None].expand(-1, groups, -1))
        return torch.cat(parts, 2)


class GroupActor(nn.Module):
    """Observation -> a ratio for every group, by one perceptron for all of them.

    Args:
        encoder: of the groups.
        hidden: widths of the hidden layers.
    """

    def __init__(self, encoder: GroupEncoder, hidden: Sequence[int]) -> None:
        super().__init__()
        self.encoder = encoder
        self.mlp = perceptron(encoder.dim, hidden, 1)

    def forward(self, plan: Plan) -> Tensor:
        """Return the ratios in the distinct states, [S, G] in [0, 1]."""
        return self.mlp(self.encoder(plan)).squeeze(2).sigmoid()


class _Linear(nn.Module):
    """K linear layers side by side: [K, R, inputs] -> [K, R, outputs]."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        bound = inputs**-0.5
        self.weight = nn.Parameter(torch.empty(_CRITICS, inputs, outputs))
        self.bias = nn.Parameter(torch.empty(_CRITICS, 1, outputs))
        for parameter in (self.weight, self.bias):
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1, -2)
        y = torch.baddbmm(self.bias, flat, self.weight)
        return y.view(*x.shape[:-1], y.shape[-1])


class Critics(nn.Module):
    """An ensemble: embeddings of groups, and what is kept of each -> values.

    Every group is looked at by itself, then beside the mean of its stage and that of the
    network; the value is of the mean and the least of all.

    Args:
        encoder: of the groups, shared by all critics.
        stages: int64 [G].
        dim: H.
    """

    stages: Tensor
    pool: Tensor

    def __init__(self, encoder: GroupEncoder, stages: np.ndarray, dim: int) -> None:
        super().__init__()
        self.encoder = encoder
        members = torch.tensor(np.arange(stages.max() + 1)[:, None] == stages).float()
        pool = members / members.sum(1, keepdim=True)
        self.register_buffer("stages", torch.tensor(stages), persistent=False)
        self.register_buffer("pool", pool, persistent=False)
        self.group, self.kept = _Linear(encoder.dim, dim), _Linear(3, dim)
        self.alone, self.beside = _Linear(dim, dim), _Linear(dim, dim)
        self.of_stage, self.of_network = _Linear(dim, dim), _Linear(dim, dim)
        self.joined, self.value = _Linear(2 * dim, dim), _Linear(dim, 1)

    def forward(self, groups: Tensor, kept: Tensor) -> Tensor:
        """Return the values [K, B].

        Args:
            groups: float32 [1 or B, G, D], the encoder's embeddings.
            kept: float32 [B, G], shares.
        """
        shares = torch.stack([kept, kept**2, kept.clamp(min=_LEAST_KEPT).log()], -1)
        each = self.group(groups.expand(_CRITICS, *groups.shape))
        each = each + self.kept(shares.expand(_CRITICS, *shares.shape))  # [K, B, G, H]
        each = F.silu(self.alone(F.silu(each)))
        stage = self.of_stage(self.pool @ each).index_select(2, self.stages)
        network = self.of_network(each.mean(2, keepdim=True))
        each = F.silu(self.beside(each) + stage + network)
        joined = torch.cat([each.mean(2), each.amin(2)], -1)
        return self.value(F.silu(self.joined(joined))).squeeze(2)


class ChoosingModule(TorchRLModule, InferenceOnlyAPI):
    """Actor and critics on a ``GraphBox`` with facts and a budget; one step an episode."""

    def setup(self) -> None:
        """Build the networks; an env runner needs them all."""
        space, settings = self.observation_space, self.model_config
        if getattr(space, "facts", None) is None:
            raise InputError(
                "--agent algorithm=wolpertinger chooses among candidates of a network, "
                "whose environment has `facts`; in this one use ddpg or sac."
            )
        self._candidates = Candidates(space.budget, space.facts)
        self._dense = space.budget.groups.widths

        def encoder() -> GroupEncoder:
            return GroupEncoder(encoder_of(space, settings), space.facts)

        self.actor = GroupActor(encoder(), settings["hidden"])
        self.critic = Critics(encoder(), space.facts.stages, _HIDDEN)
        self.initial: dict[str, Tensor] = {}
        if settings["initial"] and not self.inference_only:
            taken = start_from(self, settings["initial"])
            self.initial = {n: t for n, t in taken.items() if n.startswith("critic.")}
        # Set anew for each episode by the env runner.
        self.episode = 0
        self.generator = np.random.default_rng(0)
        self.history: History | None = None

    def train(self, mode: bool = True) -> "ChoosingModule":
        """Change the mode if it is another: RLlib asks before each step."""
        return self if self.training == mode else super().train(mode)

    def get_non_inference_attributes(self) -> list[str]:  # noqa: D102
        return []

    @torch.no_grad()
    def _forward_inference(self, batch: dict, **_: Any) -> dict:
        plan = self.actor.encoder.encoder.plan(batch[Columns.OBS])
        return {Columns.ACTIONS: self.actor(plan)[plan.which]}

    @torch.no_grad()
    def _forward_exploration(self, batch: dict, **_: Any) -> dict:
        plan = self.actor.encoder.encoder.plan(batch[Columns.OBS])
        known = 0 if self.history is None else len(self.history)
        if known >= self._least_known and self._judges:
            widths = self._choose(plan)
        else:
            widths = self._candidates.warm_up(self.episode, self.generator)
        ratios = torch.tensor(1 - widths / self._dense, dtype=torch.float32)
        return {Columns.ACTIONS: ratios.expand(len(plan.which), -1)}

    @property
    def _is_early(self) -> bool:
        return self.episode < self.model_config["warmup_episodes"]

    @property
    def _least_known(self) -> int:
        """How many candidates have to be known to tell others apart."""
        return 1 if self.model_config["initial"] else len(self._candidates.rules)

    @property
    def _judges(self) -> set[str]:
        """Who has something to say of candidates: critics after they have learnt."""
        asked = self.model_config["judges"]
        judges = {"critics", "kriging"} if asked == "both" else {asked}
        learnt = self.model_config["initial"] or not self._is_early
        return judges if learnt else judges - {"critics"}

    def _choose(self, plan: Plan) -> np.ndarray:
        """Return the widths [G] that promise most: on average, or in one critic's eyes.

        What critics and kriging say counts alike. Candidates are from anywhere at first:
        what is near the best would not tell how this network differs.
        """
        if self._is_early:
            drawn = self._candidates.anywhere(_FROM_ANYWHERE, self.generator)
            near = np.unique(self._candidates.budget.reach_all(drawn), axis=0)
        else:
            action = self.actor(plan)[0].double().cpu().numpy()
            near = self._candidates.around(self.history, action, self.generator)
        kept = near / self._dense
        worth = np.zeros(len(near))
        if "kriging" in self._judges:
            worth += promise(self.history, 1 - kept)
        if "critics" in self._judges:
            worth += self._judged(plan, kept)
        promising = near[worth.argsort()[::-1][:_TRIED]]
        return self._candidates.first_new(promising, self.history, self.generator)

    def _judged(self, plan: Plan, kept: np.ndarray) -> np.ndarray:
        """Return what critics think of ``kept`` [N, G]: all, how sure; or one of them."""
        groups = self.critic.encoder(plan)[:1]
        shares = torch.tensor(kept, dtype=torch.float32, device=groups.device)
        parts = shares.split(max(1, _AT_ONCE // shares.shape[1]))
        values = torch.cat([self.critic(groups, part) for part in parts], 1)
        if self.episode % 2:
            judged = values[int(self.generator.integers(_CRITICS))]
        else:
            judged = values.mean(0) + _CURIOSITY * values.std(0)
        return judged.double().cpu().numpy()

    def _forward_train(self, batch: dict, **_: Any) -> dict:
        plan = self.actor.encoder.encoder.plan(batch[Columns.OBS])
        groups = self.critic.encoder(plan)
        states = groups if len(groups) == 1 else groups[plan.which]
        kept = 1 - self.actor(plan)
        proposed = self._projected(kept)
        # Held constant for the actor's loss, as in DDPG.
        self.critic.requires_grad_(False)
        judged = self.critic(groups.detach(), proposed)
        self.critic.requires_grad_(True)
        return {
            Q: self.critic(states, 1 - batch[Columns.ACTIONS]),
            Q_OF_ACTOR: judged,
            _BESIDE: (kept - proposed.detach()) ** 2,
        }

    def _projected(self, kept: Tensor) -> Tensor:
        """Return what the budget leaves of ``kept`` [S, G], with a gradient along it.

        Critics have seen nothing that costs more or less; what they think of that would
        only drive the actor to its bounds.
        """
        budget = self._candidates.budget
        widths = budget.reach_all(1 - kept.detach().double().cpu().numpy())
        normal = budget.slopes(widths) * self._dense
        normal = torch.tensor(normal / np.linalg.norm(normal, axis=1, keepdims=True)).to(
            kept
        )
        change = kept - kept.detach()
        along = change - normal * (normal * change).sum(1, keepdim=True)
        return torch.tensor(widths / self._dense).to(kept) + along


class ChoosingLearner(DDPGLearner):
    """Critics learn the scores of what was done, the actor what they think most of."""

    optimizer = torch.optim.AdamW

    def apply_gradients(self, gradients_dict: dict) -> None:
        """Take the step; critics that began elsewhere are drawn back there a little.

        A few scores of this network are soon learnt by heart, and what holds for all
        networks forgotten: L2-SP, https://arxiv.org/abs/1802.01483.
        """
        super().apply_gradients(gradients_dict)
        for module_id, module in self.module.items():
            if initial := module.unwrapped().initial:
                rate = self.config.get_config_for_module(module_id).critic_lr
                apply(module.unwrapped(), initial, rate * _BACK)

    def compute_loss_for_module(self, *, module_id, config, batch, fwd_out) -> Tensor:
        """Return the sum over critics of (y - Q(s, a))^2, less the mean of Q(s, mu(s))."""
        return self._total(*loss_of(fwd_out, batch), fwd_out[Q])


def loss_of(fwd_out: Mapping, batch: Mapping) -> tuple[Tensor, Tensor]:
    """Return what critics and actor have to make small.

    Of what an actor says beside the budget, critics say nothing, and it would drift to
    where a sigmoid has no slope: it is drawn to what is made of it.
    """
    missed = (fwd_out[Q] - batch[Columns.REWARDS]) ** 2
    return missed.mean(1).sum(), fwd_out[_BESIDE].mean() - fwd_out[Q_OF_ACTOR].mean()
