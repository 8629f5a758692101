"""What a candidate is worth: widths -> outcome. Every method of search asks here.

Axis letter: G prunable groups.
"""

import copy
import time
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import fx, nn

from gnnrl_ray.costs import Costs
from gnnrl_ray.data import Data
from gnnrl_ray.evaluation import TOLERANCE, Evaluator, Format, Score, choose
from gnnrl_ray.groups import ChannelGroups
from gnnrl_ray.importance import rank
from gnnrl_ray.masking import MaskedEvaluator
from gnnrl_ray.pruner import keep, remove
from gnnrl_ray.symbolic import symbolic
from gnnrl_ray.training import recalibrate, steps_per_epoch, train

_EPISODE_LR = 0.01
_TAYLOR_BATCH = 256
# With an early stop, candidates worse than so many others need not be scored to the end.
_BEST_FEW = 3


@dataclass(frozen=True)
class Outcome:
    """What one candidate scored.

    Attributes:
        widths: [G], channels kept.
        macs: multiply-accumulates of one image.
        params: trainable parameters.
        accuracy: top-1 on the validation split, in [0, 1].
        reward: minus the error, in [-1, 0] (GNN-RL Eq. 8).
        seconds: that pruning, fine-tuning and evaluation took.
        images: how many were scored, where an early stop spared the others; the accuracy
            is an estimate then, and too low to be among the best.
    """

    widths: tuple[int, ...]
    macs: int
    params: int
    accuracy: float
    reward: float
    seconds: float
    images: int | None = None

    def to_dict(self) -> dict:
        """Return the fields, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict) -> "Outcome":
        """Return the outcome whose fields are among ``fields``."""
        known = {
            name: fields[name] for name in cls.__dataclass_fields__ if name != "images"
        }
        known["images"] = fields.get("images")  # not in older journals
        return cls(**known | {"widths": tuple(known["widths"])})


def parse_finetune(text: str) -> str | int:
    """Return ``text`` if it is ``none``, ``recalibrate`` or ``epoch``, else steps.

    Raises:
        ValueError: none of these.
    """
    if text in ("none", "recalibrate", "epoch"):
        return text
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise ValueError(
        f"--finetune {text!r} is not none, recalibrate, epoch or a number of steps."
    )


class Objective:
    """Prunes, fine-tunes and scores candidates; identical ones only once.

    Args:
        network: the trained, dense network.
        groups: of that network.
        data: fine-tunes on ``data.train``, scores on ``data.validation``.
        budget: allowed share of the dense network's multiply-accumulates, in (0, 1).
        finetune: before scoring: ``none``; ``recalibrate`` the normalisation
            statistics; a number of training steps; or one ``epoch``.
        min_keep: smallest share of a group's channels that may be kept.
        round_to: widths are multiples of it, unless a group stays whole.
        importance: one of :data:`~gnnrl_ray.importance.IMPORTANCES`.
        seed: of fine-tuning, of random importance and of the batch for ``taylor``.
        early_stop: stop scoring candidates that cannot be among the best few.

    Attributes:
        form: how candidates are evaluated; :meth:`choose` finds the fastest.

    Raises:
        BudgetError: the budget is out of reach.
    """

    def __init__(
        self,
        network: nn.Module,
        groups: ChannelGroups,
        data: Data,
        *,
        budget: float,
        finetune: str | int = "recalibrate",
        min_keep: float = 0.1,
        round_to: int = 1,
        importance: str = "l2",
        seed: int = 0,
        early_stop: bool = False,
    ) -> None:
        self.form = Format()
        self.costs = Costs(groups, round_to)
        self.groups = groups
        self.budget = self.costs.check_budget(budget, min_keep)
        self.floor = self.costs.floor(min_keep)
        # A copy: it moves between devices, and the caller's network stays where it is.
        self._network = copy.deepcopy(network).eval()
        self._data = data
        self._finetune = parse_finetune(str(finetune))
        self._seed = seed
        self._early_stop = early_stop
        batch = None
        if importance == "taylor":
            generator = torch.Generator().manual_seed(seed)
            batch = next(data.train.batches(_TAYLOR_BATCH, generator))
        self._ranking = rank(network, groups, importance, seed, batch)
        self._known: dict[tuple[int, ...], Outcome] = {}

    @cached_property
    def _graph(self) -> fx.GraphModule:
        # Once; it shares the network's weights.
        return symbolic(self._network, self.groups.closed)

    @cached_property
    def _evaluator(self) -> Evaluator:
        return Evaluator(self._data.validation, self.form)

    @cached_property
    def _masked_evaluator(self) -> MaskedEvaluator:
        return MaskedEvaluator(
            self._network, self.groups, self._data, self.form,
            self._finetune == "recalibrate", self._seed,
        )  # fmt: skip

    def to(self, device: torch.device | str) -> "Objective":
        """Move network and data to ``device``; returns itself."""
        self._network.to(device, memory_format=torch.channels_last)
        self._data = self._data.to(device)
        return self

    def choose(self, precision: str = "auto") -> Format:
        """Set ``form`` to the fastest that is right here, and return it.

        Args:
            precision: see :func:`~gnnrl_ray.evaluation.choose`.
        """
        dense = self.groups.widths
        typical = self.costs.fit(dense, self.floor, self.budget)
        network = remove(self._graph, self.groups, self.kept(typical))
        recalibrate(network, self._data.train, self._seed)
        self.form = choose(network.eval(), self._data.validation, precision)
        shapes_matter = self._early_stop or self._finetune not in ("none", "recalibrate")
        on_gpu = self._data.validation.labels.device.type == "cuda"
        if on_gpu and not shapes_matter and self.form.precision != "plain":
            self.form = self._choose_masks(typical)
        return self.form

    def _choose_masks(self, typical: np.ndarray) -> Format:
        """Return ``form``, with masks if they are as right as removal, and faster."""
        removed, masked = self.form, replace(self.form, masked=True)
        scores, seconds = {}, {}
        for form in (removed, masked):
            self.form, times = form, []
            for _ in range(6):  # of masks, the first ones are not captured yet
                start = time.perf_counter()
                scores[form] = self._score(typical).accuracy
                times.append(time.perf_counter() - start)
            seconds[form] = min(times)
        if abs(scores[masked] - scores[removed]) > TOLERANCE:
            warnings.warn(
                f"masks give {scores[masked]:.2%} where {scores[removed]:.2%} is right; "
                "removing channels instead.",
                stacklevel=3,
            )
            return removed
        return min(seconds, key=seconds.__getitem__)

    def learn(self, outcomes: Iterable[Outcome]) -> None:
        """Take over outcomes of an earlier run; they will not be evaluated again."""
        self._known.update((outcome.widths, outcome) for outcome in outcomes)

    def satisfied(self, widths: np.ndarray) -> bool:
        """Say whether ``widths`` int [G] meet the budget."""
        return bool(self.costs.macs(widths) <= self.budget * self.costs.dense)

    def kept(self, widths: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return which channels of each group a candidate keeps."""
        return keep(self._ranking, self.groups.check_widths(widths))

    def build(self, widths: np.ndarray) -> fx.GraphModule:
        """Return the candidate's network, pruned and fine-tuned as for scoring."""
        network = remove(self._graph, self.groups, self.kept(widths))
        if self._finetune == "recalibrate":
            recalibrate(network, self._data.train, self._seed)
        elif self._finetune != "none":
            steps = self._finetune
            if steps == "epoch":
                steps = steps_per_epoch(self._data.train)
            train(
                network, self._data.train, steps=steps, lr=_EPISODE_LR, seed=self._seed,
                precision=self.form.precision,
            )  # fmt: skip
        return network

    def __call__(self, widths: np.ndarray) -> Outcome:
        """Score the candidate with ``widths`` int [G]."""
        key = tuple(int(width) for width in widths)
        if key not in self._known:
            start = time.perf_counter()
            score = self._score(widths)
            complete = score.images == len(self._data.validation)
            self._known[key] = Outcome(
                key,
                int(self.costs.macs(widths)),
                int(self.costs.params(widths)),
                accuracy=score.accuracy,
                reward=score.accuracy - 1,
                seconds=round(time.perf_counter() - start, 3),
                images=None if complete else score.images,
            )
        return self._known[key]

    def _score(self, widths: np.ndarray) -> Score:
        if self.form.masked:
            return self._masked_evaluator(self.kept(widths))
        return self._evaluator(self.build(widths), self._worth())

    def _worth(self) -> float:
        """Return the accuracy below which a candidate is not among the best few."""
        known = (o.accuracy for o in self._known.values() if o.images is None)
        best = sorted(known, reverse=True)[:_BEST_FEW]
        return best[-1] if self._early_stop and len(best) == _BEST_FEW else 0.0
