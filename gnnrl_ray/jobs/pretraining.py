"""An agent that knows what many searches have found, before it searches itself."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from torch import Tensor, nn

from gnnrl_ray.agent.candidates import worths
from gnnrl_ray.agent.choosing import ChoosingModule, loss_of
from gnnrl_ray.agent.env import PruningEnv
from gnnrl_ray.agent.method import Agent
from gnnrl_ray.agent.transfer import knowledge
from gnnrl_ray.data import Data
from gnnrl_ray.errors import InputError
from gnnrl_ray.pruning.budget import Budget
from gnnrl_ray.run.directory import Run
from gnnrl_ray.scoring.objective import Objective
from gnnrl_ray.settings import SearchSettings
from gnnrl_ray.tracing.groups import trace

# RLlib warns, of every module, of what it does itself.
logging.getLogger("ray._common.deprecation").setLevel(logging.ERROR)
_BATCH = 64
_FEWEST = 10  # candidates of a search that something can be learnt from


@dataclass(frozen=True, eq=False)
class Lesson:
    """What has been scored of one network within one budget.

    Attributes:
        module: an agent for it.
        observation: float32 [E, F], of the dense network.
        actions: float32 [H, G], shares of the channels that were dropped.
        scores: float32 [H], what came of it is worth.
    """

    module: ChoosingModule
    observation: Tensor
    actions: Tensor
    scores: Tensor

    @classmethod
    def of(cls, runs: Sequence[Run], network: nn.Module, data: Data) -> "Lesson":
        """Return what ``runs``, all of ``network`` and with one budget, have found.

        Raises:
            InputError: that is too little.
        """
        settings = runs[0].settings
        groups = trace(network, data.input_shape, **settings.tracing)
        budget = Budget.of(groups, settings, runs[0].latency)
        objective = Objective.of(network, data, budget, settings)
        for run in runs:
            run.check_journal(budget)
        outcomes = {o.widths: o for run in runs for _, o in run.journal if o.images is None}
        if len(outcomes) < _FEWEST:
            raise InputError(
                f"{runs[0].storage} holds {len(outcomes)} candidates; the agent needs at "
                f"least {_FEWEST} to learn from."
            )
        env = PruningEnv(Agent.env_config(settings, lambda: objective))
        config = Agent.config(settings, lambda: objective)
        module = RLModuleSpec(
            module_class=ChoosingModule, observation_space=env.observation_space,
            action_space=env.action_space, model_config=config.model_config,
            inference_only=False,
        ).build()  # fmt: skip
        widths = np.array(list(outcomes))
        scores = worths([outcome.reward for outcome in outcomes.values()])
        return cls(
            module,
            torch.from_numpy(env.reset()[0]),
            torch.from_numpy(1 - widths / groups.widths).float(),
            torch.from_numpy(scores).float(),
        )

    def batch(self, generator: np.random.Generator) -> dict[str, Tensor]:
        """Draw some of it."""
        drawn = torch.from_numpy(generator.integers(len(self.scores), size=_BATCH))
        return {
            Columns.OBS: self.observation.expand(_BATCH, -1, -1),
            Columns.ACTIONS: self.actions[drawn],
            Columns.REWARDS: self.scores[drawn],
        }


def pretrain(
    lessons: Sequence[Lesson],
    *,
    steps: int = 500,
    seed: int = 0,
    on_step: Callable[[int, float], None] | None = None,
) -> bytes:
    """Learn from all ``lessons`` in turn, and return an ``agent.safetensors``.

    Args:
        lessons: of any networks.
        steps: of learning, from each lesson.
        seed: of the drawing.
        on_step: called with the number of steps done and the last loss.
    """
    first, *others = [lesson.module for lesson in lessons]
    for other in others:
        _share(first, other)
    config = Agent.config(SearchSettings(), lambda: None)
    actor = [p for lesson in lessons for p in lesson.module.actor.parameters()]
    critic = [p for lesson in lessons for p in lesson.module.critic.parameters()]
    optimizer = torch.optim.AdamW(
        [
            {"params": list(dict.fromkeys(actor)), "lr": config.actor_lr,
             "weight_decay": 0.0},
            {"params": list(dict.fromkeys(critic)), "lr": config.critic_lr,
             "weight_decay": config.critic_weight_decay},
        ]
    )  # fmt: skip
    generator = np.random.default_rng(seed)
    for number, lesson in enumerate(_turns(lessons, steps), start=1):
        batch = lesson.batch(generator)
        losses = loss_of(lesson.module.forward_train(batch), batch)
        optimizer.zero_grad()
        sum(losses).backward()
        optimizer.step()
        if on_step is not None:
            on_step(number, losses[0].item())
    return knowledge(first)


def _turns(lessons: Sequence[Lesson], steps: int) -> Iterator[Lesson]:
    for _ in range(steps):
        yield from lessons


def _share(first: nn.Module, other: nn.Module) -> None:
    """Let ``other`` have the parameters of ``first``, where they are of the same shape."""
    own = dict(first.named_parameters())
    for name, parameter in list(other.named_parameters()):
        if name in own and own[name].shape == parameter.shape:
            owner, _, attribute = name.rpartition(".")
            setattr(other.get_submodule(owner), attribute, own[name])
