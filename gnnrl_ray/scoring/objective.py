"""What a candidate is worth: widths -> outcome. Every method of search asks here.

Axis letter: G prunable groups.
"""

import gc
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, fx, nn

from gnnrl_ray.data import Data, Split
from gnnrl_ray.errors import Notice
from gnnrl_ray.pruning.budget import Budget
from gnnrl_ray.pruning.importance import importances, order, sensitivities
from gnnrl_ray.pruning.removal import keep, remove
from gnnrl_ray.scoring.evaluation import (
    BATCHES,
    TOLERANCE,
    EvaluationMode,
    Evaluator,
    Score,
    choose,
)
from gnnrl_ray.scoring.layout import quick
from gnnrl_ray.scoring.masking import MaskedEvaluator
from gnnrl_ray.scoring.outcome import Outcome
from gnnrl_ray.scoring.owntask import OWN, OwnTask
from gnnrl_ray.scoring.padding import padded
from gnnrl_ray.scoring.training import recalibrate, steps_per_epoch, train
from gnnrl_ray.settings import SearchSettings, parse_finetune
from gnnrl_ray.tracing.groups import ChannelGroups
from gnnrl_ray.tracing.network import copied

_EPISODE_LR = 0.01
_TAYLOR_BATCH = 256
# How sensitive the loss is: images, and at once. Of few at once, and on a scale of ratios,
# no hard image outweighs the others.
_SENSED, _SENSED_BATCH = 256, 8
_LARGE = 2**26  # bytes of weights
# With an early stop, candidates worse than so many others need not be scored to the end.
_BEST_FEW = 3


class Objective:
    """Prunes, fine-tunes and scores candidates; identical ones only once.

    Args:
        network: the trained, dense network.
        groups: of that network.
        data: fine-tunes on ``data.train``, scores on ``data.validation``.
        budget: what a candidate may cost; a number is for ``flops``.
        finetune: before scoring: ``none``; ``recalibrate`` the normalisation
            statistics; a number of training steps; or one ``epoch``.
        importance: one of :data:`~gnnrl_ray.settings.IMPORTANCES`.
        seed: of fine-tuning, of random importance and of the batch for ``taylor``.
        early_stop: stop scoring candidates that cannot be among the best few.
        task: what the network is for, where that is not classification.

    Attributes:
        network: a copy of the dense one, on the device of the data.
        groups: of the network.
        budget: what a candidate may cost.
        scores: G arrays [C]: how important each channel is.
        mode: how candidates are evaluated; :meth:`choose` finds the fastest.

    Raises:
        BudgetError: the budget is out of reach.
    """

    def __init__(
        self,
        network: nn.Module,
        groups: ChannelGroups,
        data: Data,
        *,
        budget: Budget | float,
        finetune: str | int = "recalibrate",
        importance: str = "l2",
        seed: int = 0,
        early_stop: bool = False,
        task: OwnTask | None = None,
    ) -> None:
        # A copy: it moves between devices, and the caller's network stays where it is.
        self.network, graph = copied((network, groups.graph_of(network)))
        self.network.eval()
        graph.eval()
        self.groups = replace(groups, _graph=graph)
        if not isinstance(budget, Budget):
            budget = Budget(groups, {"flops": budget})
        self.budget = budget
        self._data = data
        self._finetune = parse_finetune(finetune)
        self._seed = seed
        self._early_stop = early_stop
        self._own = task or OwnTask()
        self._own.check(self._finetune)
        self.mode = EvaluationMode() if self._has_modes else EvaluationMode("plain")
        batch = None
        if importance == "taylor":
            generator = torch.Generator().manual_seed(seed)
            batch = next(quick(data.train, network).batches(_TAYLOR_BATCH, generator))
        self.scores = importances(network, groups, importance, seed, batch, self._own.loss)
        self._ranking = order(groups, self.scores)
        self._known: dict[tuple[int, ...], Outcome] = {}
        self._best: tuple[tuple[int, ...], fx.GraphModule] | None = None

    @classmethod
    def of(
        cls, network: nn.Module, data: Data, budget: Budget, settings: SearchSettings,
        task: OwnTask | None = None,
    ) -> "Objective":  # fmt: skip
        """Return the objective of a search."""
        return cls(
            network, budget.groups, data, budget=budget,
            finetune=settings.finetune, importance=settings.importance,
            seed=settings.seed, early_stop=settings.early_stop, task=task,
        )  # fmt: skip

    def __getstate__(self) -> dict:
        made = ("_graph", "_evaluator", "_masked_evaluator")  # anew, where it is needed
        state = {k: v for k, v in self.__dict__.items() if k not in made}
        return state | {"_best": None}

    @property
    def _has_modes(self) -> bool:
        """Whether scoring and making batches are ours, and there are faster ways."""
        return self._own.metric is None and isinstance(self._data.validation, Split)

    @property
    def trains(self) -> bool:
        """Whether candidates are trained before they are scored, which takes a while."""
        return self._finetune not in ("none", "recalibrate")

    @property
    def images(self) -> int:
        """How many images a candidate is scored on."""
        return len(self._data.validation)

    @cached_property
    def sensitivities(self) -> np.ndarray:
        """How much the loss changes with each group, float64 [G].

        The sum of what ``taylor`` says of its channels (https://arxiv.org/abs/1906.10771),
        the geometric mean over small batches of training images.
        """
        train = quick(self._data.train, self.network)
        batches = train.sample(_SENSED, _SENSED_BATCH, self._seed)
        try:
            found = sensitivities(self.network, self.groups, batches, self._own.loss)
        except Exception as error:
            if self._own.metric is None:
                raise
            warnings.warn(
                "nothing is known of how sensitive the loss is to each group, as it cannot "
                f"be taken ({error}); give the search a `loss`.",
                Notice,
                stacklevel=2,
            )
            return np.ones(len(self.groups.widths))
        # What a batch does not move is moved very little.
        least = 1e-12 * found.max() + 1e-300
        return np.exp(np.log(np.maximum(found, least)).mean(0))

    @cached_property
    def _graph(self) -> fx.GraphModule:
        return self.groups.graph_of(self.network)

    @cached_property
    def _evaluator(self) -> Evaluator:
        return Evaluator(self._data.validation, self.mode)

    @cached_property
    def _masked_evaluator(self) -> MaskedEvaluator:
        return MaskedEvaluator(
            self._graph, self.groups, self._data, self.mode,
            self._finetune == "recalibrate", self._seed,
        )  # fmt: skip

    def to(self, device: torch.device | str) -> "Objective":
        """Move network and data to ``device``; returns itself."""
        self.__dict__.pop("_graph", None)
        self.network.to(device)
        self._data = self._data.to(device)
        return self

    def choose(self, precision: str = "auto") -> EvaluationMode:
        """Set ``mode`` to the fastest that is right here, and return it.

        Args:
            precision: see :func:`~gnnrl_ray.scoring.evaluation.choose`. What is not ours to
                score, or to make batches of, is evaluated as it is.
        """
        if not self._has_modes:
            return self.mode
        dense = self.groups.widths
        typical = self.budget.project(dense, self.budget.min_widths)
        network = remove(self._graph, self.groups, self.kept(typical))
        recalibrate(network, self._data.train, self._seed)
        self.mode = choose(network.eval(), self._data.validation, precision)
        shapes_matter = self._early_stop or self.trains
        on_gpu = self._data.validation.device.type == "cuda"
        if on_gpu and not shapes_matter and self.mode.precision != "plain":
            self.mode = self._choose_masks(typical)
        return self.mode

    def _choose_masks(self, typical: np.ndarray) -> EvaluationMode:
        """Return ``mode``, with masks if they are as right as removal, and faster."""
        removed, scores, seconds = self.mode, {}, {}
        masked = (replace(removed, masked=True, batch=batch) for batch in BATCHES["cuda"])
        for mode in (removed, *masked):
            self.mode, times = mode, []
            self.__dict__.pop("_masked_evaluator", None)
            for _ in range(6):  # of masks, the first ones are not captured yet
                start = time.perf_counter()
                scores[mode] = self._score(typical).accuracy
                times.append(time.perf_counter() - start)
            seconds[mode] = min(times)
        self.__dict__.pop("_masked_evaluator", None)
        for mode in sorted(seconds, key=seconds.__getitem__):
            if abs(scores[mode] - scores[removed]) <= TOLERANCE:
                return mode
            warnings.warn(
                f"masks give {scores[mode]:.2%} where {scores[removed]:.2%} is right.",
                Notice,
                stacklevel=3,
            )
        return removed

    def remember(self, outcomes: Iterable[Outcome]) -> None:
        """Take over outcomes from elsewhere; they will not be evaluated again."""
        self._known.update((outcome.widths, outcome) for outcome in outcomes)

    def known(self, widths: Sequence[int]) -> Outcome | None:
        """Return the outcome of ``widths`` [G] if they have been scored."""
        return self._known.get(_key(widths))

    def kept(self, widths: Sequence[int]) -> tuple[np.ndarray, ...]:
        """Return which channels of each group a candidate keeps."""
        return keep(self._ranking, self.groups.check_widths(widths))

    def build(self, widths: Sequence[int]) -> fx.GraphModule:
        """Return the candidate's network, pruned and fine-tuned as for scoring.

        What took training is kept of the best, so that it need not be trained again.
        """
        if self._best is not None and self.has(widths):
            return self._best[1]
        return self._made(widths)

    def has(self, widths: Sequence[int]) -> bool:
        """Return whether the network of ``widths`` [G] is there, trained as for scoring."""
        return self._best is not None and self._best[0] == _key(widths)

    def take_over(self, widths: Sequence[int], state: Mapping[str, Tensor]) -> None:
        """Take over the ``state`` of the network that was built elsewhere of ``widths``."""
        network = remove(self._graph, self.groups, self.kept(widths))
        network.load_state_dict(state)
        self._best = _key(widths), network

    def _made(self, widths: Sequence[int]) -> fx.GraphModule:
        if self._finetune == "epoch":
            return self._trained(widths, self.steps(1))
        if isinstance(self._finetune, int):
            return self._trained(widths, self._finetune)
        network = remove(self._graph, self.groups, self.kept(widths))
        if self._finetune == OWN:
            self._own.train(network, self._data.train.given, self._seed)
        if self._finetune == "recalibrate":
            recalibrate(network, self._data.train, self._seed)
        return network

    def _trained(self, widths: Sequence[int], steps: int) -> fx.GraphModule:
        kept = self.kept(widths)
        network = remove(self._graph, self.groups, kept)
        with padded(network, self._graph, self.groups, kept) as (trained, hold):
            train(
                trained, self._data.train, steps=steps, lr=_EPISODE_LR, seed=self._seed,
                precision=self.mode.precision, loss=self._own.loss, hold=hold,
            )  # fmt: skip
        return network

    def steps(self, epochs: float) -> int:
        """Return how many steps of training ``epochs`` have, at least one."""
        return max(1, round(epochs * steps_per_epoch(self._data.train)))

    def __call__(self, widths: Sequence[int]) -> Outcome:
        """Score the candidate with ``widths`` [G]."""
        key = _key(widths)
        if key not in self._known:
            start = time.perf_counter()
            score, network = self._tried(widths)
            complete = score.images == len(self._data.validation)
            before = self._known[self._best[0]].accuracy if self._best else -1.0
            if network is not None and complete and score.accuracy > before:
                self._best = key, network
            del network
            self._tidy()
            self._known[key] = Outcome(
                key,
                int(self.budget.costs.macs(widths)),
                int(self.budget.costs.params(widths)),
                accuracy=score.accuracy,
                reward=score.accuracy - 1,
                seconds=round(time.perf_counter() - start, 3),
                images=None if complete else score.images,
                measured=score.measured,
            )
        return self._known[key]

    def accuracy(self, widths: Sequence[int]) -> float:
        """Return what ``widths`` [G] score, over the budget or not; it is no outcome."""
        return self._score(widths).accuracy

    def score_after(self, widths: Sequence[int], steps: int) -> tuple[float, float]:
        """Return what ``widths`` [G] score after so many steps, and seconds that took."""
        start = time.perf_counter()
        accuracy = self._worth_of(self._trained(widths, steps)).accuracy
        self._tidy()
        return accuracy, round(time.perf_counter() - start, 3)

    def _score(self, widths: Sequence[int]) -> Score:
        score = self._tried(widths)[0]
        self._tidy()
        return score

    def _tried(self, widths: Sequence[int]) -> tuple[Score, fx.GraphModule | None]:
        """Return the score of a candidate, and its network if that took training."""
        if self.mode.masked:
            return self._masked_evaluator(self.kept(widths)), None
        network = self.build(widths)
        score = self._worth_of(network, self._worth())
        return score, network if self.trains else None

    def _worth_of(self, network: fx.GraphModule, worth: float = 0.0) -> Score:
        if self._own.metric is None:
            return self._evaluator(network, worth)
        validation = self._data.validation
        measured = self._own.metric(network.eval(), validation.given)
        return Score(self._own.metric.share(measured), len(validation), measured)

    def _tidy(self) -> None:
        """Free what a candidate leaves behind, if that is much.

        Graphs refer to themselves, so their weights stay until Python looks for such
        cycles, which it does by the number of objects and not by their size.
        """
        if self._is_large:
            gc.collect()

    @cached_property
    def _is_large(self) -> bool:
        sizes = (p.numel() * p.element_size() for p in self.network.parameters())
        return sum(sizes) > _LARGE

    def _worth(self) -> float:
        """Return the accuracy below which a candidate is not among the best few."""
        known = (o.accuracy for o in self._known.values() if o.images is None)
        best = sorted(known, reverse=True)[:_BEST_FEW]
        return best[-1] if self._early_stop and len(best) == _BEST_FEW else 0.0


def _key(widths: Sequence[int]) -> tuple[int, ...]:
    return tuple(int(width) for width in widths)
