"""The run directory: settings, journal, winner and weights of one search.

``run.json`` settings, versions, hardware and how candidates are evaluated;
``journal.jsonl`` every outcome; ``best.json`` the winner; ``pruned.safetensors`` its
weights, ``finetuned.safetensors`` after fine-tuning; ``checkpoint.zip`` the agent;
``earlier/EPISODE/`` what was made of a winner before that. The directory may be behind any
URI that fsspec knows.
"""

import contextlib
import json
import math
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from gnnrl_ray import __version__
from gnnrl_ray.data import is_code
from gnnrl_ray.errors import InputError
from gnnrl_ray.pruning.budget import Budget
from gnnrl_ray.pruning.latency import LatencyTable
from gnnrl_ray.run.journal import Journal
from gnnrl_ray.scoring.evaluation import EvaluationMode
from gnnrl_ray.settings import SearchSettings
from gnnrl_ray.source import Source
from gnnrl_ray.storage import Storage
from gnnrl_ray.zoo import is_ours
from gnnrl_ray.zoo.weights import packed

# What is made of a winner, and what of its weights alone.
_OF_WEIGHTS = {
    name: {f"{name}{end}" for end in (".onnx", ".int8.onnx", ".pt2", ".pt")}
    for name in ("pruned", "finetuned")
}
_OF_WINNER = {
    "pruned.safetensors", "finetuned.safetensors", "finetune.json", "measures.json",
    "finetuning.safetensors", "exports.json", "model_card.md",
}.union(*_OF_WEIGHTS.values())  # fmt: skip
# What else a run writes.
_FILES = (
    "journal.jsonl", "best.json", "checkpoint.zip", "search.png", "events", "earlier",
    "agent.safetensors", "initial.safetensors", "latency.json", "actors.json",
)  # fmt: skip
_ASIDE, _EARLIER = "replaced", "earlier"
_MEASURES, _EXPORTS, _LATENCY = "measures.json", "exports.json", "latency.json"
_ACTORS, _ACTORS_EVERY = "actors.json", 2.0  # seconds
_PACKAGES = ("ray", "torch", "torch-geometric", "numpy")


class RunError(InputError):
    """A run directory that is in the way, missing or incomplete."""


class Run:
    """An open run directory.

    Attributes:
        storage: where it is.
        settings: of the search.
        source: what network and data were loaded from.
        classes: of the data set; None where that does not say, and the network is the
            user's own.
        mode: how its candidates are evaluated, once that is known.
        journal: its outcomes.
    """

    def __init__(self, storage: Storage, facts: Mapping[str, Any]) -> None:
        self.storage = storage
        self.settings = SearchSettings.from_dict(facts["settings"])
        self.source = _found(Source.from_dict(facts["source"]), storage)
        self.classes, hashes = facts["classes"], facts.get("hashes", {})
        name = self.source.network
        own = name is None or not is_ours(name)  # whatever it tells apart
        if not is_count(self.classes) and not (own and self.classes is None):
            raise TypeError(f"classes are {self.classes!r}")
        if not isinstance(hashes, dict) or not all(
            isinstance(h, str) for h in hashes.values()
        ):
            raise TypeError(f"hashes are {hashes!r}")
        mode = facts.get("evaluation")
        self.mode = EvaluationMode(**mode) if mode else None
        self._facts = dict(facts)
        self._replaces = False  # what is at _ASIDE
        self._reported = -math.inf
        self.journal = Journal(f"{storage}/journal.jsonl")

    @classmethod
    def create(
        cls,
        where: Path | str,
        settings: SearchSettings,
        source: Source,
        classes: int | None,
        hashes: Mapping[str, str] | None = None,
        overwrite: bool = False,
        task: Mapping[str, str] | None = None,
    ) -> "Run":
        """Make the directory.

        A run that is overwritten is moved aside, and deleted once the new one has scored
        something (see :meth:`replace`). What a run has not written is left alone.

        Raises:
            RunError: it exists and may not be overwritten, or is no run.
        """
        storage = Storage(where)
        cls.recover(storage)
        cls.check_free(storage, overwrite)
        run_there = storage.exists("run.json")
        if run_there:
            storage.remove(_ASIDE)
            for name in (*_FILES, *_OF_WINNER, "run.json"):  # the last says: all of it
                storage.move(name, f"{_ASIDE}/{name}")
        facts = {
            "settings": settings.to_dict(),
            "source": source.to_dict(),
            "classes": classes,
            "hashes": dict(hashes or {}),
            **({"task": dict(task)} if task else {}),
            "versions": {name: version(name) for name in _PACKAGES}
            | {"gnnrl-ray": __version__, "python": platform.python_version()},
            "hardware": {
                "cpu": platform.processor() or platform.machine(),
                "cores": os.cpu_count(),
                "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            },
        }
        _write_json(storage, "run.json", facts)
        run = cls(storage, facts)
        run.settings = settings  # those that are not kept, too
        run._replaces = run_there
        return run

    @staticmethod
    def recover(storage: Storage) -> None:
        """Bring a run back that was moved aside, or in part, by who was killed then.

        Only for who has the lock.
        """
        if not (storage.exists(f"{_ASIDE}/run.json") and storage.exists("journal.jsonl")):
            _bring_back(storage)

    @classmethod
    def check_free(cls, where: Storage | Path | str, overwrite: bool = False) -> None:
        """Raise :class:`RunError` if ``where`` holds what a new run may not replace."""
        storage = Storage(where)
        if storage.exists("run.json"):
            # One that has not come to an episode is in nobody's way.
            if storage.exists("journal.jsonl") and not overwrite:
                raise RunError(
                    f"{storage} is there already; continue it with --resume {storage}, "
                    "replace it with --overwrite, or name another with --out."
                )
            cls.open(storage)  # or it is somebody else's file
        elif others := storage.names() - {"lock", "lock.json", _ASIDE}:
            raise RunError(
                f"{storage} is no run, but holds {min(others)}; name another directory "
                "with --out."
            )
        storage.check_writable("name another directory with --out")

    def replace(self) -> None:
        """Delete the run that this one was made in place of, or bring it back.

        It is deleted if this one has scored anything.
        """
        if self._replaces and len(self.journal):
            self.storage.remove(_ASIDE)
        elif self._replaces:
            _bring_back(self.storage)
        self._replaces = False

    @classmethod
    def open(cls, where: Storage | Path | str) -> "Run":
        """Open a directory that a search has made.

        Raises:
            RunError: there is none.
        """
        storage = Storage(where)
        facts = read_json(storage, "run.json")
        try:
            if "data" in facts:
                facts = _of_old(facts)
            return cls(storage, facts)
        except KeyError as error:
            raise RunError(f"{storage}/run.json is of another kind: no {error}.") from None
        except (TypeError, AttributeError) as error:
            raise RunError(f"{storage}/run.json is of another kind: {error}.") from None

    def continue_with(
        self,
        changes: Mapping[str, Any],
        source: Mapping[str, Any] | None = None,
        classes: int | None = None,
    ) -> None:
        """Take over, and keep, what may change when a run goes on.

        Args:
            changes: settings of the search by name.
            source: settings of the source by name.
            classes: of the data set, where that has been loaded.

        Raises:
            InputError: something else is not what the run was started with.
        """
        self.settings = self.settings.continued(changes, str(self.storage))
        self.source = self.source.continued(source or {}, str(self.storage))
        if classes not in (None, self.classes):
            raise RunError(
                f"{self.storage} was started with {self.classes} classes, not {classes}."
            )
        self._keep(settings=self.settings.to_dict(), source=self.source.to_dict())

    def check(self, hashes: Mapping[str, str]) -> None:
        """Raise if ``hashes``, of network and data, are not those of the run.

        Raises:
            RunError: weights or data have changed since the run was started.
        """
        for what, before in self._facts.get("hashes", {}).items():
            if hashes.get(what, before) != before:
                raise RunError(
                    f"the {what} are not those that {self.storage} was started with: their "
                    f"hash is {hashes[what][:12]}, not {before[:12]}. Restore them, or "
                    "start a new run."
                )

    def check_task(self, names: Mapping[str, str]) -> None:
        """Raise if ``names`` of the user's own functions are not those of the run.

        Raises:
            RunError: it was started with others, or with none.
        """
        before = self._facts.get("task", {})
        for what in sorted(before.keys() | names.keys()):
            if before.get(what) != names.get(what):
                raise RunError(
                    f"{self.storage} was started with {what} {before.get(what)}, not "
                    f"{names.get(what)}; give the same, or start a new run."
                )

    def check_journal(self, budget: Budget) -> None:
        """Raise if what the journal says is not of the network that ``budget`` is for.

        Raises:
            RunError: widths that it cannot have, or costs that they do not have.
        """
        for episode, outcome in self.journal:
            widths = np.array(outcome.widths)
            try:
                costs = int(budget.costs.macs(budget.groups.check_widths(widths)))
            except InputError as error:
                costs, reason = -1, str(error)
            else:
                reason = f"{outcome.macs:,} multiply-accumulates, not {costs:,}"
            if costs != outcome.macs:
                raise RunError(
                    f"episode {episode} in {self.storage}/journal.jsonl is not of this "
                    f"network: {reason}"
                )

    @property
    def asks_trust(self) -> bool:
        """Whether going on takes ``--trust``, if nothing else is given."""
        try:
            self.check_trust({}, trust=False)
        except RunError:
            return True
        return False

    def check_trust(self, given: Mapping[str, Any], trust: bool) -> None:
        """Raise if going on would run code, or fetch files, that only ``run.json`` names.

        Args:
            given: settings of the source that were given for this command.
            trust: whatever it names is run and fetched.

        Raises:
            RunError: it names code that is not ours, or an address, that was not given.
        """
        source = self.source
        if trust or source.network is None:
            return
        if not is_ours(source.network) and given.get("network") != source.network:
            raise RunError(
                f"{self.storage} says that its network is {source.network}, and building "
                "it would run that code. If you know where the run is from, say so with "
                f"--trust."
            )
        if is_code(source.dataset) and given.get("dataset") != source.dataset:
            raise RunError(
                f"{self.storage} says that its dataset is {source.dataset}, and loading it "
                "would run that code. If you know where the run is from, say so with "
                "--trust."
            )
        for name in ("weights", "data_dir"):
            where = getattr(source, name)
            if where and "://" in where and given.get(name) != where:
                raise RunError(
                    f"{self.storage} says that its {name} are at {where}, and they would "
                    "be fetched from there. If you know where the run is from, say so with "
                    "--trust."
                )

    def evaluate_with(self, mode: EvaluationMode) -> None:
        """Keep how candidates are evaluated, so that a resumed run goes on with it."""
        self.mode = mode
        self._keep(evaluation=asdict(mode))

    def _keep(self, **facts: Any) -> None:
        if facts.items() <= self._facts.items():
            return
        self._facts |= facts
        _write_json(self.storage, "run.json", self._facts)

    def write_best(self, budget: Budget, kept: tuple[np.ndarray, ...]) -> None:
        """Write ``best.json`` of the winner so far, and put aside what is of another.

        Args:
            budget: of the search.
            kept: the channels that it keeps.
        """
        winner = self.journal.winner()
        assert winner is not None, "nothing has been scored"
        episode, outcome, finalist = winner
        groups, dense = budget.groups, budget.costs.dense
        settings = self.settings
        widths = dict(zip(groups.names, outcome.widths, strict=True))
        self._make_room(widths)
        self.write_json(
            "best.json",
            {
                "network": self.source.network,
                "dataset": self.source.dataset,
                "validation": self.source.validation,
                "classes": self.classes,
                "method": settings.method,
                "seed": settings.seed,
                "finetune": settings.finetune,
                "budget": budget.usage(np.array(outcome.widths)),
                "trace": settings.tracing,
                "episode": episode,
                "groups": widths,
                "dense": dict(zip(groups.names, groups.widths.tolist(), strict=True)),
                "macs": outcome.macs,
                "macs_dense": dense,
                "macs_ratio": outcome.macs / dense,
                "params": outcome.params,
                "params_dense": int(budget.costs.params(groups.widths)),
                "accuracy": outcome.accuracy,
                "error": 1 - outcome.accuracy,
                "reward": outcome.reward,
                "finalist": finalist and asdict(finalist),
                "kept": {
                    name: index.tolist()
                    for name, index in zip(groups.names, kept, strict=True)
                },
                "input_shape": list(groups.input_shapes[0]),
            },
        )

    def _make_room(self, widths: Mapping[str, int]) -> None:
        """Put aside all that is there of a winner of other widths, as a whole."""
        if not _OF_WINNER & self.storage.names():
            return
        before = self._written
        if before.get("groups") != widths:
            self._put_aside(_OF_WINNER, before)

    def _put_aside(self, names: set[str], winner: dict | None = None) -> None:
        """Move files to ``earlier/EPISODE/``, of the winner that there is, or is given."""
        episode = (winner or self._written).get("episode")
        where = f"{_EARLIER}/{episode if isinstance(episode, int) else 'unknown'}"
        if winner:
            _write_json(self.storage, f"{where}/best.json", winner)
        for name in names & self.storage.names():
            self.storage.move(name, f"{where}/{name}")

    @property
    def _written(self) -> dict:
        """What ``best.json`` says: nothing, if it is missing or damaged."""
        try:
            return read_json(self.storage, "best.json")
        except RunError:
            return {}

    def lags(self) -> bool:
        """Say whether ``best.json`` is not of the journal's winner, as after a crash."""
        winner = self.journal.winner()
        if winner is None:
            return False
        episode, _, finalist = winner
        there = self._written
        said = there.get("episode"), there.get("finalist")
        return said != (episode, finalist and asdict(finalist))

    def best(self) -> dict:
        """Return ``best.json``.

        Raises:
            RunError: there is none yet, or it is of another kind.
        """
        best = read_json(self.storage, "best.json")
        if not isinstance(best.get("budget"), dict):  # of a version before 0.1.0
            try:
                share, cost, dense = (
                    float(best[name]) for name in ("budget", "macs", "macs_dense")
                )
            except (KeyError, TypeError, ValueError):
                raise RunError(f"{self.storage}/best.json says no budget.") from None
            best["budget"] = {
                "flops": {
                    "cost": cost,
                    "allowed": share * dense,
                    "dense": dense,
                    "unit": "multiply-accumulates",
                }
            }
        return best

    def measures(self) -> dict[str, dict]:
        """Return what has been measured of ``dense``, ``pruned`` and ``finetuned``."""
        if not self.storage.exists(_MEASURES):
            return {}
        return read_json(self.storage, _MEASURES)

    def measured(self, measures: Mapping[str, Mapping[str, Any]]) -> None:
        """Keep what has been measured, by network; what is known of it besides stays.

        Where the directory cannot be written to, it is not kept.
        """
        known = self.measures()
        with contextlib.suppress(OSError):
            rows = {name: known.get(name, {}) | dict(row) for name, row in measures.items()}
            self.write_json(_MEASURES, known | rows)

    def exports(self) -> dict[str, dict[str, str]]:
        """Return what has been exported of the winner.

        By path: ``weights`` that it is of, and in a line how it was ``checked``.
        """
        if not self.storage.exists(_EXPORTS):
            return {}
        return read_json(self.storage, _EXPORTS)

    def exported(self, path: str, weights: str, checked: str) -> None:
        """Keep what has been exported; see :meth:`exports`."""
        this = {path: {"weights": weights, "checked": checked}}
        self.write_json(_EXPORTS, self.exports() | this)

    def report_actors(self, status: Mapping[int, tuple[str, float]]) -> None:
        """Write ``actors.json`` for who looks on, every two seconds at most; nothing, none.

        Only where that is a file: a search is not to wait for what nobody may read.

        Args:
            status: what each actor does, and for how many seconds.
        """
        now = time.monotonic()
        if self.storage.local is None or (status and now < self._reported + _ACTORS_EVERY):
            return
        self._reported = now
        with contextlib.suppress(OSError):
            if status:
                actors = [[actor, what, age] for actor, (what, age) in status.items()]
                self.write_json(_ACTORS, {"time": time.time(), "actors": actors})
            else:
                self.storage.remove(_ACTORS)

    def actors(self) -> tuple[float, list[tuple[int, str, float]]] | None:
        """Return what each actor does, and for how many seconds, and when that was said.

        None where a search has none, or is over.
        """
        if not self.storage.exists(_ACTORS):
            return None
        try:
            said = read_json(self.storage, _ACTORS)
            rows = [(int(a), str(what), float(age)) for a, what, age in said["actors"]]
            return float(said["time"]), rows
        except (RunError, KeyError, TypeError, ValueError):
            return None

    def write_json(self, name: str, content: dict) -> None:
        """Write ``content`` to the file ``name``, whole or not at all."""
        _write_json(self.storage, name, content)

    @property
    def latency(self) -> LatencyTable | None:
        """What its ``latency`` is counted by, if that is limited.

        Raises:
            RunError: ``latency.json`` is damaged.
        """
        if not self.storage.exists(_LATENCY):
            return None
        try:
            return LatencyTable.from_dict(read_json(self.storage, _LATENCY))
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(
                f"{self.storage}/{_LATENCY} is damaged ({error}); start a new run."
            ) from error

    @property
    def facts(self) -> dict:
        """What ``run.json`` says: settings, source, hashes, versions, hardware."""
        return dict(self._facts)

    def save_network(self, name: str, network: nn.Module) -> None:
        """Write the state dict of ``network`` as ``name``.safetensors.

        Where that replaces other weights, what was measured of them is forgotten, and what
        was exported of them put aside.
        """
        file, content = f"{name}.safetensors", packed(network)
        if self.storage.exists(file) and self.storage.read(file) != content:
            self._put_aside(_OF_WEIGHTS[name] | {"model_card.md"})
            self._forget(_MEASURES, lambda row, _: row == name)
            self._forget(_EXPORTS, lambda _, about: about.get("weights") == name)
        self.storage.write(file, content)

    def _forget(self, file: str, outdated: Callable[[str, dict], bool]) -> None:
        """Take out of a file what is outdated, if it is there and whole."""
        with contextlib.suppress(RunError, AttributeError):
            said = read_json(self.storage, file)
            self.write_json(file, {k: v for k, v in said.items() if not outdated(k, v)})


def _bring_back(storage: Storage) -> None:
    """Put what was moved aside, if anything was, in the place of what came to nothing."""
    if storage.exists(f"{_ASIDE}/run.json"):  # all of it was: what is here is of another
        for name in (*_FILES, *_OF_WINNER, "run.json"):
            storage.remove(name)
    aside = Storage(storage.path(_ASIDE)).names()
    for name in sorted(aside, key="run.json".__ne__):  # first, as not all is there then
        storage.move(f"{_ASIDE}/{name}", name)
    storage.remove(_ASIDE)


def _found(source: Source, storage: Storage) -> Source:
    """Return ``source`` with weights of a run that was moved, if it has them with it."""
    path = source.weights or ""
    name = "" if os.path.exists(path) else path.rpartition("/")[2]
    if name and "://" not in path and storage.exists(name):
        return replace(source, weights=storage.path(name))
    return source


def _of_old(facts: dict) -> dict:
    """Return what the ``run.json`` of a version before 0.1.0 says, in today's words."""
    settings, data = facts["settings"], facts["data"]
    source = {
        "network": settings["name"],
        "weights": settings["weights"],
        "data_dir": settings["data_dir"],
        "dataset": data["dataset"],
        "validation": data["validation"],
    }
    rest = {key: value for key, value in facts.items() if key != "data"}
    return rest | {"source": source, "classes": data["classes"]}


def is_count(value: object) -> bool:
    """Say whether ``value``, read from a file, can be a number of classes or pixels."""
    return type(value) is int and 0 < value < 10**6


def _write_json(storage: Storage, name: str, content: dict) -> None:
    storage.write(name, (json.dumps(content, indent=1) + "\n").encode())


def read_json(storage: Storage, name: str) -> dict:
    """Return the JSON object in a file of a run.

    Raises:
        RunError: there is none, or it is damaged.
    """
    try:
        content = json.loads(storage.read(name))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RunError(f"{storage} is not a finished run: no {name}.") from error
    except (ValueError, RecursionError) as error:
        raise RunError(f"{storage}/{name} is damaged: {error}.") from error
    if not isinstance(content, dict):
        raise RunError(f"{storage}/{name} is damaged: it is no JSON object.")
    return content
