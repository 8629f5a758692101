"""A network, data and settings -> the best outcome, and a run directory with all of it."""

import hashlib
import json
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from gnnrl_ray.data import Data, DataError, as_data
from gnnrl_ray.data.loader import described, forward
from gnnrl_ray.display.panel import Panel
from gnnrl_ray.display.report import draw_search
from gnnrl_ray.errors import InputError, Notice
from gnnrl_ray.jobs.finalists import run_finalists
from gnnrl_ray.jobs.result import Result
from gnnrl_ray.methods import method_of
from gnnrl_ray.process import generators_kept, taking_turns, torch_as_it_starts
from gnnrl_ray.pruning.budget import Budget, BudgetError
from gnnrl_ray.pruning.importance import Loss
from gnnrl_ray.pruning.latency import LatencyTable
from gnnrl_ray.run.directory import Run
from gnnrl_ray.run.lock import locked
from gnnrl_ray.run.task import OnEpisode, OnFinalist, OnStatus, Task
from gnnrl_ray.scoring.latency import latency_table
from gnnrl_ray.scoring.metric import Metric, ScoreFunction
from gnnrl_ray.scoring.objective import Objective
from gnnrl_ray.scoring.outcome import Outcome
from gnnrl_ray.scoring.owntask import OWN, OwnTask
from gnnrl_ray.scoring.rounding import quick_multiple
from gnnrl_ray.scoring.speed import device_name
from gnnrl_ray.settings import SearchSettings, unknown_setting
from gnnrl_ray.source import Source
from gnnrl_ray.storage import Storage
from gnnrl_ray.tracing.groups import trace
from gnnrl_ray.tracing.network import evaluating, unwrapped
from gnnrl_ray.zoo.weights import hash_of

_LOOKED_AT = 64  # images, at least, to see whether outputs and labels fit


@taking_turns
@torch_as_it_starts()
@generators_kept()
def search(
    network: nn.Module,
    data: Data | Sequence,
    settings: SearchSettings | None = None,
    *,
    score: Metric | ScoreFunction | None = None,
    loss: Loss | None = None,
    out: Path | str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    source: Source | None = None,
    on_episode: OnEpisode | None = None,
    on_status: OnStatus | None = None,
    on_finalist: OnFinalist | None = None,
    progress: bool = True,
    **changes: Any,
) -> Result:
    """Find how many channels each group of ``network`` keeps within a budget.

    .. code-block:: python

        found = search(network, data, flops=0.5, episodes=180, out="runs/mine")
        print(found.best.accuracy)
        smaller = found.network

    Args:
        network: a trained CNN.
        data: what it is fine-tuned and scored on; or a pair (training, validation) of
            loaders, or three with one for testing: see :meth:`~gnnrl_ray.data.Data.of`.
        score: what a network is worth, where that is not its top-1 accuracy: a function
            (network, validation) -> number in [0, 1], larger is better, of which
            ``validation`` is what was given; or a
            :class:`~gnnrl_ray.scoring.metric.Metric` with a name and other bounds.
        loss: a function (what the network returns, targets) -> loss, where that is not
            the cross-entropy; for training, and for how sensitive it is to each group.
        settings: see :class:`~gnnrl_ray.settings.SearchSettings`; default: its defaults.
        out: run directory, or a URI that fsspec knows; default ``runs/METHOD``.
        resume: continue the run in ``out``; of its settings, those change that are among
            ``changes``, and may.
        overwrite: replace a run in ``out``.
        source: what network and data were loaded from, so that later commands find them;
            default: they are your own.
        on_episode: called with the number of episodes that are over, and the best outcome
            so far, if there is one.
        on_status: called a few times a second with what each actor does and for how many
            seconds, ``{1: ("episode 17", 2.5)}``, and how many episodes have failed.
        on_finalist: called with how many trainings of finalists are over, of how many, and
            the accuracy after the last.
        progress: whether to show how it goes, on standard error or in the notebook.
        **changes: settings by name, in place of those in ``settings``; ``finetune`` may be
            a function (network, training data as given) that trains a candidate in place
            before it is scored.

    Returns:
        The winner and the way to it; all of it is in the run directory, too.

    Raises:
        DataError: a loader yields something else than images and targets.
        ScoreError: a function of yours raised, or returned what is no score.
        InputError: a setting that is unknown or cannot be; ``out`` holds another run.
        BudgetError: the budget is out of reach, or was reached by no episode.
        PlacementError: the Ray cluster has no room for the env runners.
        EpisodeError: one episode after the other failed; what there was has been saved.
        KeyboardInterrupt: after what there is has been saved.
    """
    for name in changes.keys() - SearchSettings.names():
        raise unknown_setting(name, sorted(SearchSettings.names()))
    training = changes.get("finetune")
    if callable(training):
        changes["finetune"] = OWN
    else:
        training = None
    unwrapped(network)  # or it is none
    task = OwnTask.of(score, loss, training)
    data = as_data(data)
    before = Run.open(out) if resume and out is not None else None
    if settings is not None:
        settings = replace(settings, **changes)
    elif before is not None:
        settings = before.settings.continued(changes, str(out))
    else:
        settings = SearchSettings(**changes)
    latency = before and before.latency
    if not resume:
        check_free(_folder(out, settings), overwrite)
    one = Search(network, data, settings, source, task, latency)
    total = method_of(settings.method).candidates(settings)
    title = f"{settings.method} on {type(network).__name__}"
    with Panel(title, total, Console(stderr=True), quiet=not progress) as panel:

        def tell(done: int, best: Outcome | None) -> None:
            panel.episode(done, best and best.accuracy)
            if on_episode is not None:
                on_episode(done, best)

        return one.run(
            out, resume=resume, overwrite=overwrite, on_episode=tell,
            on_status=on_status or panel.status, on_finalist=on_finalist or panel.finalist,
            on_phase=panel.phase,
        )  # fmt: skip


class Search:
    """A search of which all that can be known early has been checked.

    Args:
        network: a CNN; by the time of :meth:`run`, trained.
        data: what it is fine-tuned and scored on.
        settings: of the search.
        source: see :func:`search`.
        task: what the network is for, where that is not classification.
        latency: of a run that goes on, what that is counted by; default: measured, or what
            was measured here before.

    Attributes:
        groups: of the network.

    Raises:
        InputError: a setting that cannot be.
        BudgetError: the budget is out of reach.
        TraceError: an operation that is not understood.
    """

    def __init__(
        self,
        network: nn.Module,
        data: Data,
        settings: SearchSettings,
        source: Source | None = None,
        task: OwnTask | None = None,
        latency: LatencyTable | None = None,
    ) -> None:
        data.check()
        self._task = task or OwnTask()
        self._task.check(settings.finetune)
        self._network, self._data, self._settings = network, data, settings
        self._source = source or Source(
            network=None, dataset=data.name, validation=data.protocol
        )
        self._method = method_of(settings.method)
        self._method.check(settings)
        self._device = None if settings.env_runners else device_of(settings.device)
        self.groups = trace(network, data.input_shape, **settings.tracing)
        if settings.round_to == "auto":
            settings = replace(settings, round_to=self._measured_multiple())
            self._settings = settings
        if settings.latency is not None and latency is None:
            latency = self._measured_latency()
        self._budget = Budget.of(self.groups, settings, latency)
        _check_score(network, data, self._task)

    def run(
        self,
        out: Path | str | None = None,
        *,
        resume: bool = False,
        overwrite: bool = False,
        **told: Callable | None,
    ) -> Result:
        """Search; see :func:`search`; ``told`` are ``on_episode`` and so on."""
        data, settings, source = self._data, self._settings, self._source
        objective = Objective.of(self._network, data, self._budget, settings, self._task)
        hashes = {"weights": hash_of(self._network), "data": data.digest()}
        latency = self._budget.latency
        if latency is not None:
            hashes["latency"] = hashlib.sha256(
                json.dumps(latency.to_dict()).encode()
            ).hexdigest()
        storage = Storage(_folder(out, settings))
        if resume:
            Run.open(storage)  # or there is nothing to lock
        with locked(storage):
            if resume:
                Run.recover(storage)
                run = Run.open(storage)
                about = vars(source)
                if source.network is None:  # who passes a network on need not say which
                    about = {name: about[name] for name in ("dataset", "validation")}
                run.continue_with(vars(settings), about, data.classes)
                run.check(hashes)
                run.check_task(self._task.names)
                run.check_journal(objective.budget)
            else:
                run = Run.create(
                    storage, settings, source, data.classes, hashes, overwrite,
                    self._task.names,
                )  # fmt: skip
                if latency is not None:
                    run.write_json("latency.json", latency.to_dict())
            try:
                best = self._run(Task(objective, run, **told))
                draw_search(run)
            finally:
                run.report_actors({})
                run.replace()
        return Result(run, best, self.groups, self._network)

    def _measured_latency(self) -> LatencyTable:
        """Return what is known of this device, and say how good that is."""
        settings = self._settings
        device = self._device or device_of(settings.device)
        table = latency_table(self._network, self.groups, device, settings.latency_batch)
        warnings.warn(
            f"latency on {table.device}: the table of layers is wrong by {table.error:.0%} "
            "of whole networks that it was not fitted to, on average.",
            Notice,
            stacklevel=7,
        )
        return table

    def _measured_multiple(self) -> int:
        """Return what this device is quick with, and say so."""
        device = self._device or device_of(self._settings.device)
        multiple = quick_multiple(device, self._settings.latency_batch)
        warnings.warn(
            f"--round-to auto: on {device_name(device)}, numbers of channels rounded up to "
            f"multiples of {multiple} take no longer.",
            Notice,
            stacklevel=7,
        )
        return multiple

    def _run(self, task: Task) -> Outcome:
        objective, run = task.objective, task.run
        objective.remember(outcome for _, outcome in run.journal)
        try:
            if self._device is not None:
                objective.to(self._device)
                if run.mode is None:
                    task.say("trying how to evaluate")
                    run.evaluate_with(objective.choose(run.settings.precision))
                objective.mode = run.mode
            self._method(task).run()
            if run.settings.finalists:
                run_finalists(task)
        finally:
            winner = run.journal.winner()
            if winner is not None:
                widths = winner[1].widths
                if run.lags():
                    run.write_best(objective.budget, objective.kept(widths))
                if run.settings.env_runners and objective.trains:
                    from gnnrl_ray.actors.sharing import bring_back  # takes seconds

                    task.say("training the winner once more")
                    bring_back(task, widths)
                run.save_network("pruned", objective.build(widths))
        if winner is None:
            reason = run.journal.failures[max(run.journal.failures)]
            raise BudgetError(
                f"no episode came to a candidate, the last one because: {reason}. Where "
                "the budget is missed, raise --max-steps or let --on-timeout fit scale "
                "down to it."
            )
        return winner[1]


def check_free(out: Path | str, overwrite: bool) -> None:
    """Raise if ``out`` holds what a new run may not replace, or another process is there.

    Raises:
        RunError: see :meth:`~gnnrl_ray.run.directory.Run.check_free`.
        LockError: another process has it.
    """
    storage = Storage(out)
    with locked(storage) if storage.exists("run.json") else nullcontext():
        Run.check_free(storage, overwrite)


def _folder(out: Path | str | None, settings: SearchSettings) -> Path | str:
    return out or f"runs/{settings.method}"


def _check_score(network: nn.Module, data: Data, task: OwnTask) -> None:
    """Score the dense network where it is not known that it can be: better now than late.

    Raises:
        ScoreError: it cannot.
        InputError: what it returns is no scores of classes.
    """
    if task.metric is not None:
        with evaluating(network), torch.no_grad():
            task.metric(network, data.validation.given)
    else:
        weights = next(network.parameters())
        count = _LOOKED_AT if data.classes is None else 2  # else labels have been looked at
        images, labels = next(data.validation.to(weights.device).batches(count))
        try:
            with evaluating(network), torch.no_grad():
                outputs = forward(network, images)
        except RuntimeError as error:
            raise InputError(
                f"the network, whose weights are {weights.dtype}, cannot be run on what "
                f"the validation split yields, {described(images)}: {error}"
            ) from error
        both = isinstance(outputs, Tensor) and isinstance(labels, Tensor)
        classes = both and outputs.dim() == 2 and labels.shape == outputs.shape[:1]
        if not classes or labels.is_floating_point():
            raise InputError(
                "top-1 accuracy takes outputs [B, K] and labels int64 [B], but the network "
                f"returns {described(outputs)} where the validation loader yields "
                f"{described(labels)}; give the search a `score` of your own."
            )
        if labels.min() < 0 or labels.max() >= outputs.shape[1]:
            raise DataError(
                f"labels of the validation loader are in {int(labels.min())}.."
                f"{int(labels.max())}, but the network tells {outputs.shape[1]} classes "
                "apart."
            )


def device_of(name: str | None) -> torch.device:
    """Return the device ``name``; by default, a GPU if there is one.

    Raises:
        InputError: there is none of that name.
    """
    there = torch.cuda.device_count()
    try:
        device = torch.device(name or ("cuda" if there else "cpu"))
    except RuntimeError:
        raise InputError(f"--device {name!r} is not cpu or cuda:N.") from None
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"--device {name!r} is not cpu or cuda:N.")
    if device.type == "cuda" and (device.index or 0) >= there:
        raise InputError(f"--device {name}: this machine has {there} CUDA devices.")
    return device
