"""Many searches beside each other: Ray Tune over settings of search and agent."""

import io
import json
import math
import os
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import ray
from matplotlib.figure import Figure
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, TrialScheduler
from ray.tune.search import SearchAlgorithm, Searcher
from ray.tune.search.sample import Categorical, Domain, Float, Integer
from torch import nn

from gnnrl_ray.actors.connection import connected
from gnnrl_ray.agent.method import AGENT_SETTINGS
from gnnrl_ray.data import Data
from gnnrl_ray.errors import InputError
from gnnrl_ray.jobs.searching import search
from gnnrl_ray.methods import method_of
from gnnrl_ray.pruning.budget import Budget
from gnnrl_ray.scoring.outcome import Outcome
from gnnrl_ray.settings import SearchSettings, decisive, unknown_setting
from gnnrl_ray.source import Source
from gnnrl_ray.storage import Storage
from gnnrl_ray.tracing.groups import trace

_DRAWS = ("uniform", "loguniform", "randint", "choice")
_SEARCH = SearchSettings.names() - {"agent", "address", "wait_for_nodes"}
# What is the same in all searches: what they are about, and what they need.
_SAME = Source.names() | {"episodes", "env_runners", "cpus_per_env_runner"}
_GRACE, _FACTOR = 30, 3  # of ASHA
_ABOUT = "sweep.json"
_MARGIN = 1e-6  # of a range, beside its ends
Progress = Callable[[dict[str, dict]], None]


class SweepError(InputError):
    """A sweep that cannot be understood, or of which nothing came."""


@dataclass
class Sweep:
    """What is tried.

    Attributes:
        search: what all searches have in common: settings of
            :class:`~gnnrl_ray.source.Source`, of
            :class:`~gnnrl_ray.settings.SearchSettings` and of ``DDPGConfig.training``.
        space: names of such settings; a list is tried out in full, ``{"uniform": [a, b]}``
            and the like of Ray Tune are drawn. In Python also what Ray Tune has itself,
            such as ``tune.quniform(0, 1, 0.1)`` and ``tune.grid_search([1, 2])``.
        samples: how often the whole space is gone through.
        asha: ``{"grace": episodes, "factor": n}`` stops the worse of the searches early.

    Raises:
        SweepError: an unknown setting, or one that is both fixed and tried.
    """

    search: dict[str, Any]
    space: dict[str, Any]
    samples: int = 1
    asha: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("search", "space", "asha"):
            if not isinstance(getattr(self, name), dict):
                raise SweepError(f"{name} has to be a table.")
        for name in (*self.search, *self.space):
            if name not in _SEARCH | AGENT_SETTINGS | _SAME:
                raise unknown_setting(name, sorted(_SEARCH | AGENT_SETTINGS))
        for name in self.space.keys() & (self.search.keys() | _SAME):
            raise SweepError(f"{name!r} cannot be tried: it is the same in all searches.")
        if not _is_count(self.samples):
            raise SweepError(f"samples = {self.samples!r} is no whole number of 1 or more.")
        if unknown := set(self.asha) - {"grace", "factor"}:
            raise SweepError(f"[asha] knows grace and factor, not {unknown.pop()!r}.")
        self._domains = {name: _domain(name, given) for name, given in self.space.items()}
        self.source  # noqa: B018  is checked as it is made
        self.variants()
        grace, factor = self._grace, self.asha.get("factor", _FACTOR)
        if not _is_count(grace) or grace > self.episodes:
            raise SweepError(
                f"[asha] grace = {grace!r} is no whole number from 1 to the "
                f"{self.episodes} episodes of a search."
            )
        if not isinstance(factor, int | float) or not 1 < factor < math.inf:
            raise SweepError(f"[asha] factor = {factor!r} is no number above 1.")

    @classmethod
    def read(cls, path: Path) -> "Sweep":
        """Read a TOML file with the tables ``search``, ``space`` and ``asha``.

        Raises:
            SweepError: it is not that.
        """
        try:
            given = {"search": {}, "space": {}} | tomllib.loads(path.read_text())
            return cls(**given)
        except InputError as error:
            raise SweepError(f"{path}: {error}") from error
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise SweepError(f"{path} is not a sweep: {error}.") from error

    @property
    def source(self) -> Source:
        """What all searches are about."""
        return Source(
            **{key: self.search[key] for key in Source.names() & self.search.keys()}
        )

    def settings(self, tried: Mapping[str, Any] | None = None) -> SearchSettings:
        """Return the settings of a search.

        Args:
            tried: those of the space, by name.
        """
        given = self.search | (tried or {})
        agent = {name: given[name] for name in AGENT_SETTINGS & given.keys()}
        own = {name: given[name] for name in _SEARCH & given.keys()}
        settings = SearchSettings(**own, agent=agent)
        method_of(settings.method).check(settings)
        return settings

    def variants(self) -> list[SearchSettings]:
        """Return the settings of searches in which every value, or bound, is tried once.

        Raises:
            InputError: one that cannot be; names it.
        """
        tried = {name: _ends(domain) for name, domain in self._domains.items()}
        first = {name: values[0] for name, values in tried.items() if values}
        one = [{name: value} for name, values in tried.items() for value in values]
        return [self.settings(first | changed) for changed in one or [{}]]

    @property
    def runners(self) -> int:
        """Env runners of each search."""
        return self.settings().env_runners

    @property
    def episodes(self) -> int:
        """Episodes of each search."""
        return self.settings().episodes

    @property
    def size(self) -> int:
        """How many searches it is."""
        return self.samples * math.prod(
            len(domain) for domain in self._domains.values() if isinstance(domain, list)
        )

    def gpus_per_env_runner(self, gpus: float) -> float:
        """Return what an env runner has of the ``gpus`` of a search: a share, or whole."""
        share = gpus / self.runners
        return share if share < 1 else int(share)

    def param_space(self) -> dict:
        """Return the space in Ray Tune's terms."""
        return {
            name: tune.grid_search(domain) if isinstance(domain, list) else domain
            for name, domain in self._domains.items()
        }

    def about(self) -> dict[str, Any]:
        """Return all that decides what is tried, by name, as JSON has it."""
        about = {"samples": self.samples, "asha": self.asha}
        about |= {f"[space] {name}": _said(given) for name, given in self.space.items()}
        about |= {f"[search] {name}": v for name, v in decisive(self.search).items()}
        return json.loads(json.dumps(about, default=str))

    @property
    def _grace(self) -> int:
        return self.asha.get("grace", min(_GRACE, self.episodes))

    def scheduler(self) -> ASHAScheduler | None:
        """Return what stops the worse of the searches early, if that is wanted."""
        if not self.asha:
            return None
        return ASHAScheduler(
            time_attr="episode",
            max_t=self.episodes,
            grace_period=self._grace,
            reduction_factor=self.asha.get("factor", _FACTOR),
        )

    def resources(self, gpus: float) -> tune.PlacementGroupFactory:
        """Return what one search takes: itself, and its env runners with their GPUs."""
        if not self.runners:
            return tune.PlacementGroupFactory([{"CPU": 1, "GPU": gpus}])
        each = {
            "CPU": self.settings().cpus_per_env_runner,
            "GPU": self.gpus_per_env_runner(gpus),
        }
        return tune.PlacementGroupFactory([{"CPU": 1}, *[each] * self.runners])


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 1


def _domain(name: str, given: Any) -> list | Domain:
    """Return what is tried of a setting: a list of values, or what Ray Tune draws from.

    Raises:
        SweepError: it is neither.
    """
    if isinstance(given, Domain):
        return given
    grid = given["grid_search"] if _is_one(given, ("grid_search",)) else given
    if isinstance(grid, list) and grid:
        return grid
    if not _is_one(given, _DRAWS):
        raise SweepError(
            f"{name} = {given!r} is neither a list of values nor one of "
            + ", ".join(f"{{ {draw} = [...] }}" for draw in _DRAWS) + "."
        )  # fmt: skip
    ((draw, values),) = given.items()
    if draw == "choice" and isinstance(values, list) and values:
        return tune.choice(values)
    kinds = int if draw == "randint" else (int, float)
    bounds = isinstance(values, list) and all(isinstance(value, kinds) for value in values)
    if draw == "choice" or not bounds or len(values) != 2 or not values[0] < values[1]:
        needed = {"choice": "one or more values",
                  "randint": "two whole numbers, the smaller first"}  # fmt: skip
        raise SweepError(
            f"{name} = {{ {draw} = {values!r} }} has to have "
            f"{needed.get(draw, 'two numbers, the smaller first')}."
        )
    try:
        return getattr(tune, draw)(*values)
    except ValueError as error:
        raise SweepError(f"{name} = {{ {draw} = {values!r} }}: {error}") from error


def _said(given: Any) -> Any:
    """Return what a setting of the space is tried with, as JSON has it."""
    if isinstance(given, Domain):
        return f"{type(given).__name__} {given.domain_str}"
    return given


def _is_one(given: Any, names: Sequence[str]) -> bool:
    return isinstance(given, dict) and len(given) == 1 and set(given) <= set(names)


def _ends(domain: list | Domain) -> list:
    """Return the values that are tried, or two near the ends of what is drawn from."""
    if isinstance(domain, list):
        return domain
    if isinstance(domain, Categorical):
        return list(domain.categories)
    if isinstance(domain, Integer):
        return [domain.lower, domain.upper - 1]
    if isinstance(domain, Float) and math.isfinite(domain.upper - domain.lower):
        # A setting that has to be below 1 may be drawn from [0, 1): ends are not drawn.
        margin = _MARGIN * (domain.upper - domain.lower)
        return [domain.lower + margin, domain.upper - margin]
    return []


def run_sweep(
    sweep: Sweep,
    out: str,
    *,
    gpus: float = 0,
    at_once: int | None = None,
    address: str | None = None,
    resume: bool = False,
    scheduler: TrialScheduler | None = None,
    search_alg: Searcher | SearchAlgorithm | None = None,
    loggers: list[tune.Callback] | None = None,
    on_progress: Progress | None = None,
) -> pd.DataFrame:
    """Run all searches of ``sweep``; those of one sweep share network and data.

    In ``out``: ``results.csv``, ``sweep.png``, what Ray Tune keeps (TensorBoard events,
    too), and the run directory of each search under ``runs/``.

    Args:
        sweep: what is tried.
        out: directory that all nodes see, or a URI.
        gpus: of all searches that run at a time, and of their env runners.
        at_once: how many may run at a time; default: as many as there is room for; with
            ``gpus``, 1.
        address: of a Ray cluster, see :class:`~gnnrl_ray.settings.SearchSettings`.
        resume: go on with the sweep in ``out``: finished searches stay, others go on.
        scheduler: of Ray Tune, which stops searches by ``accuracy`` after each
            ``episode``; in place of the sweep's ASHA. One that exploits others' weights,
            as population-based training does, finds no weights here.
        search_alg: of Ray Tune, which proposes settings, such as ``OptunaSearch()``.
        loggers: callbacks of Ray Tune, such as those of Weights & Biases and MLflow.
        on_progress: called with the last result of each search by its name.

    Returns:
        A row for each search: its settings, ``accuracy``, ``episode``, ``error``.

    Raises:
        SweepError: there is, or is not, a sweep in ``out``; or all searches failed.
        KeyboardInterrupt: it was interrupted; ``results.csv`` has what there is.
    """
    storage = Storage(out)
    if storage.exists("tuner.pkl") != resume:
        raise SweepError(
            f"{out} holds no sweep; leave --resume out." if resume else
            f"{out} holds a sweep already; go on with --resume, or name another --out."
        )  # fmt: skip
    about = sweep.about()
    if resume and storage.exists(_ABOUT):
        before = json.loads(storage.read(_ABOUT))
        for name in before.keys() | about.keys():
            if before.get(name) != about.get(name):
                raise SweepError(
                    f"{out} was started with {name} = {before.get(name)}, not "
                    f"{about.get(name)}; restore it, or name another --out."
                )
    if scheduler is not None and sweep.asha:
        raise SweepError("a `scheduler` takes the place of [asha]; leave one of them out.")
    tuning = {"scheduler": scheduler or sweep.scheduler(), "search_alg": search_alg}
    network, data = sweep.source.load()
    _check_budgets(sweep, network, data)
    root = str(storage.local.resolve()) if storage.local else str(storage)
    share = gpus / (at_once or 1)
    where: dict[str, Any] = {}
    if sweep.runners:
        where["gpus_per_env_runner"] = sweep.gpus_per_env_runner(share)
    elif not share:
        where["device"] = "cpu"
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # which no setting keeps quiet
    with connected(address):
        _check_room(sweep, share)
        trainable = tune.with_resources(
            tune.with_parameters(
                partial(_trial, sweep=sweep, where=where, root=root),
                network=network, data=data,
            ),
            sweep.resources(share),
        )  # fmt: skip
        tuning["max_concurrent_trials"] = at_once or (1 if gpus else None)
        tuner = _tuner(sweep, trainable, root, tuning, resume,
                       [*(loggers or []), _Watch()])  # fmt: skip
        storage.write(_ABOUT, json.dumps(about).encode())
        _Watch.on_progress, _Watch.over = on_progress, True
        results = tuner.fit()
    table = pd.DataFrame(
        {
            **dict(result.config or {}),
            "accuracy": (result.metrics or {}).get("accuracy"),
            "episode": (result.metrics or {}).get("episode", 0),
            "error": (str(result.error or "").strip().splitlines() or [""])[-1],
            "run": f"runs/{(result.metrics or {}).get('trial_id')}",
        }
        for result in results
    ).sort_values("accuracy", ascending=False, ignore_index=True)
    storage.write("results.csv", table.to_csv(index=False).encode())
    if not _Watch.over:
        raise KeyboardInterrupt  # which Ray Tune takes for a reason to end well
    if not table["accuracy"].notna().to_numpy().any():
        raise SweepError(f"all searches failed, the first with: {table['error'][0]}")
    storage.write("sweep.png", _draw(sweep, [r.metrics_dataframe for r in results], table))
    return table


def _check_budgets(sweep: Sweep, network: nn.Module, data: Data) -> None:
    """Find out before anything is started whether budgets can be reached.

    Not those of latency, for which the network has to be measured.

    Raises:
        InputError: one cannot be.
    """
    known = []
    for settings in sweep.variants():
        about = settings.tracing, settings.budgets, settings.min_keep, settings.round_to
        if about not in known and settings.latency is None and settings.round_to != "auto":
            known.append(about)
            Budget.of(trace(network, data.input_shape, **settings.tracing), settings)


def _check_room(sweep: Sweep, gpus: float) -> None:
    """Ray Tune would wait in silence for what a cluster does not have."""
    have = ray.cluster_resources()
    for kind, needed in sweep.resources(gpus).required_resources.items():
        if needed > have.get(kind, 0) + 1e-6:
            raise SweepError(
                f"one search takes {needed:g} {kind}s (1 for itself, the others for its "
                f"{sweep.runners} env runners), and the cluster has {have.get(kind, 0):g}: "
                "lower env_runners or cpus_per_env_runner in [search], or --gpus."
            )


def _trial(
    config: dict, network: nn.Module, data: Data, sweep: Sweep, where: dict, root: str
) -> None:
    """Run one search of a sweep, or go on with it."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    settings = replace(sweep.settings(config), **where)
    out = f"{root}/runs/{tune.get_context().get_trial_id()}"

    def report(done: int, best: Outcome | None) -> None:
        # After the last, Ray Tune may end a search before it has saved its winner.
        if best is not None and done < settings.episodes:
            tune.report({"episode": done, "accuracy": best.accuracy, "macs": best.macs})

    resume = Storage(out).exists("run.json")
    best = search(
        network, data, settings, out=out, resume=resume, source=sweep.source,
        on_episode=report, progress=False,
    ).best  # fmt: skip
    tune.report(
        {"episode": settings.episodes, "accuracy": best.accuracy, "macs": best.macs}
    )


def _tuner(
    sweep: Sweep, trainable: Any, root: str, tuning: dict[str, Any], resume: bool,
    callbacks: list[tune.Callback],
) -> tune.Tuner:  # fmt: skip
    if resume:
        return tune.Tuner.restore(root, trainable, resume_unfinished=True,
                                  resume_errored=True)  # fmt: skip
    parent, _, name = root.rpartition("/")
    return tune.Tuner(
        trainable,
        param_space=sweep.param_space(),
        tune_config=tune.TuneConfig(
            metric="accuracy", mode="max", num_samples=sweep.samples, **tuning
        ),
        run_config=tune.RunConfig(
            name=name, storage_path=parent, verbose=0, callbacks=callbacks
        ),
    )  # fmt: skip


class _Watch(tune.Callback):
    """Passes on the last results.

    Ray Tune pickles it, and makes one of that when a sweep is restored: so whom it tells,
    and whether all searches are over, is kept here, not there.
    """

    on_progress: ClassVar[Progress | None] = None
    over: ClassVar[bool] = True

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        _Watch.over = all(trial.is_finished() for trial in trials)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict, **info: Any
    ) -> None:
        if _Watch.on_progress is not None:
            last = {t.trial_id: t.last_result or {} for t in trials}
            last[trial.trial_id] = result
            _Watch.on_progress({i: r for i, r in last.items() if "episode" in r})


def _draw(sweep: Sweep, histories: list[pd.DataFrame | None], table: pd.DataFrame) -> bytes:
    """Draw the best accuracy by episode, and the last by each setting that was tried."""
    names = list(sweep.space)
    count = 1 + len(names)
    figure = Figure(figsize=(4 * count, 3.6), layout="constrained")
    axes = figure.subplots(1, count, sharey=True, squeeze=False)[0]
    for history in histories:
        if history is not None and "episode" in history:
            axes[0].plot(history["episode"], 100 * history["accuracy"], lw=1)
    axes[0].set(xlabel="episode", ylabel="best validation accuracy in %")
    for name, axis in zip(names, axes[1:], strict=True):
        values = table[name]
        if not pd.api.types.is_numeric_dtype(values):
            values = values.astype(str)
        axis.plot(values, 100 * table["accuracy"], "o", alpha=0.7)
        axis.set(xlabel=name.replace("_", " "))
        bounds = sweep.space[name]
        if isinstance(bounds, dict) and "loguniform" in bounds:
            axis.set_xscale("log")
    picture = io.BytesIO()
    figure.savefig(picture, dpi=120, format="png")
    return picture.getvalue()


def over_seeds(sweep: Sweep, table: pd.DataFrame) -> pd.DataFrame:
    """Return mean, standard deviation and number of accuracies of equal settings."""
    names = [name for name in sweep.space if name != "seed"]
    accuracies = table.dropna(subset="accuracy")
    if not names:
        return accuracies["accuracy"].agg(["mean", "std", "count"]).to_frame().T
    grouped = accuracies.groupby(names, sort=False)["accuracy"]
    found = grouped.agg(["mean", "std", "count"]).reset_index()
    return found.sort_values("mean", ascending=False, ignore_index=True)
