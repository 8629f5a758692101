"""A network, data and settings -> the best outcome, and a run directory with all of it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gnnrl_ray.data import Data
from gnnrl_ray.errors import InputError
from gnnrl_ray.jobs.finalists import run_finalists
from gnnrl_ray.methods import method_of
from gnnrl_ray.pruning.budget import Budget, BudgetError
from gnnrl_ray.run.directory import Run
from gnnrl_ray.run.lock import locked
from gnnrl_ray.run.task import OnEpisode, OnFinalist, OnStatus, Task
from gnnrl_ray.scoring.objective import Objective
from gnnrl_ray.scoring.outcome import Outcome
from gnnrl_ray.settings import SearchSettings, unknown_setting
from gnnrl_ray.source import Source
from gnnrl_ray.storage import Storage
from gnnrl_ray.tracing.groups import trace
from gnnrl_ray.zoo.weights import hash_of


def search(
    network: nn.Module,
    data: Data,
    settings: SearchSettings | None = None,
    *,
    out: Path | str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    source: Source | None = None,
    on_episode: OnEpisode | None = None,
    on_status: OnStatus | None = None,
    on_finalist: OnFinalist | None = None,
    **changes: Any,
) -> Outcome:
    """Find how many channels each group of ``network`` keeps within a budget.

    .. code-block:: python

        best = search(network, data, flops=0.5, episodes=180, out="runs/mine")

    Args:
        network: a trained CNN.
        data: what it is fine-tuned and scored on.
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
        **changes: settings by name, in place of those in ``settings``.

    Returns:
        The outcome of the winner; everything else is in the run directory.

    Raises:
        InputError: a setting that is unknown or cannot be; ``out`` holds another run.
        BudgetError: the budget is out of reach, or was reached by no episode.
        PlacementError: the Ray cluster has no room for the env runners.
        EpisodeError: one episode after the other failed; what there was has been saved.
        KeyboardInterrupt: after what there is has been saved.
    """
    for name in changes.keys() - SearchSettings.names():
        raise unknown_setting(name, sorted(SearchSettings.names()))
    if settings is not None:
        settings = replace(settings, **changes)
    elif resume and out is not None:
        settings = Run.open(out).settings.continued(changes, str(out))
    else:
        settings = SearchSettings(**changes)
    return Search(network, data, settings, source).run(
        out, resume=resume, overwrite=overwrite, on_episode=on_episode,
        on_status=on_status, on_finalist=on_finalist,
    )  # fmt: skip


class Search:
    """A search of which all that can be known early has been checked.

    Args:
        network: a CNN; by the time of :meth:`run`, trained.
        data: what it is fine-tuned and scored on.
        settings: of the search.
        source: see :func:`search`.

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
    ) -> None:
        data.check()
        self._network, self._data, self._settings = network, data, settings
        self._source = source or Source(
            network=None, dataset=data.name, validation=data.protocol
        )
        self._method = method_of(settings.method)
        self._method.check(settings)
        self._device = None if settings.env_runners else device_of(settings.device)
        self.groups = trace(network, data.input_shape, **settings.tracing)
        self._budget = Budget.of(self.groups, settings)

    def run(
        self,
        out: Path | str | None = None,
        *,
        resume: bool = False,
        overwrite: bool = False,
        **told: Callable | None,
    ) -> Outcome:
        """Search; see :func:`search`; ``told`` are ``on_episode`` and so on."""
        data, settings, source = self._data, self._settings, self._source
        objective = Objective.of(self._network, data, self._budget, settings)
        hashes = {"weights": hash_of(self._network), "data": data.digest()}
        storage = Storage(out or f"runs/{settings.method}")
        if resume:
            Run.open(storage)  # or there is nothing to lock
        with locked(storage):
            if resume:
                run = Run.open(storage)
                about = vars(source)
                if source.network is None:  # who passes a network on need not say which
                    about = {name: about[name] for name in ("dataset", "validation")}
                run.continue_with(vars(settings), about, data.classes)
                run.check(hashes)
                run.check_journal(objective.budget)
            else:
                run = Run.create(storage, settings, source, data.classes, hashes, overwrite)
            try:
                return self._run(Task(objective, run, **told))
            finally:
                run.replace()

    def _run(self, task: Task) -> Outcome:
        objective, run = task.objective, task.run
        objective.remember(outcome for _, outcome in run.journal)
        try:
            if self._device is not None:
                objective.to(self._device)
                if run.mode is None:
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
                run.save_network("pruned", objective.build(widths))
        if winner is None:
            reason = run.journal.failures[max(run.journal.failures)]
            raise BudgetError(
                f"no episode came to a candidate, the last one because: {reason}. Where "
                "the budget is missed, raise --max-steps or let --on-timeout fit scale "
                "down to it."
            )
        return winner[1]


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
