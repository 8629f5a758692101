"""What a network is for, where that is not to tell classes apart."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from gnnrl_ray.errors import InputError
from gnnrl_ray.pruning.importance import Loss
from gnnrl_ray.scoring.metric import Metric, ScoreError, ScoreFunction

# What ``finetune`` is where a function of the user's trains candidates.
OWN = "own"
# (network, training data as it was given); trains the network in place.
TrainFunction = Callable[[nn.Module, Any], object]


@dataclass(frozen=True)
class OwnTask:
    """A score, a loss and a training of the user's own; by default, those of classes.

    Attributes:
        metric: what a network is worth; default: top-1 accuracy.
        loss: of what the network returns and the targets: what training makes small, and
            the agent and ``taylor`` ask how sensitive it is to each group.
        training: what a candidate gets before it is scored, where ``finetune`` is ``own``.
    """

    metric: Metric | None = None
    loss: Loss = F.cross_entropy
    training: TrainFunction | None = None

    @classmethod
    def of(
        cls,
        score: Metric | ScoreFunction | None = None,
        loss: Loss | None = None,
        training: TrainFunction | None = None,
    ) -> "OwnTask":
        """Return what ``search`` was given, what was not by default."""
        if score is not None and not isinstance(score, Metric):
            score = Metric(score)
        if loss is not None and not callable(loss):
            raise InputError(f"`loss` {loss!r} is no function.")
        return cls(score, loss or F.cross_entropy, training)

    @property
    def names(self) -> dict[str, str]:
        """What ``run.json`` keeps, so that a search goes on with the same."""
        names = {}
        if self.metric is not None:
            names["score"] = f"{self.metric.name} {self.metric.low:g}..{self.metric.high:g}"
        if self.loss is not F.cross_entropy:
            names["loss"] = _name(self.loss)
        if self.training is not None:
            names["finetune"] = _name(self.training)
        return names

    def check(self, finetune: str | int) -> None:
        """Raise if candidates are to be trained by a function that there is not."""
        if finetune == OWN and self.training is None:
            raise InputError(
                "--finetune own is a function of yours: search in Python, with "
                "search(..., finetune=FUNCTION), which trains a network in place."
            )

    def train(self, network: nn.Module, train: Any, seed: int) -> None:
        """Let the user's function train ``network`` in place.

        Args:
            network: a candidate, put into training mode.
            train: the training data as they were given.
            seed: of what the function draws by torch's generators, so that the winner can
                be made again.

        Raises:
            ScoreError: it raised.
        """
        assert self.training is not None
        try:
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                self.training(network.train(), train)
        except Exception as error:
            raise ScoreError(
                f"the function given as `finetune` raised {type(error).__name__}: {error}"
            ) from error
        network.eval()


def _name(function: Callable) -> str:
    return getattr(function, "__qualname__", type(function).__qualname__)
