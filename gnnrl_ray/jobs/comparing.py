"""Methods beside each other: the same networks, budgets and seeds, one protocol for all."""

import json
import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from itertools import product
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd

from gnnrl_ray.errors import GnnrlError, InputError
from gnnrl_ray.jobs.finetuning import finetune, is_interrupted
from gnnrl_ray.jobs.recipe import Recipe
from gnnrl_ray.jobs.searching import Search, device_of
from gnnrl_ray.methods import METHODS, method_of
from gnnrl_ray.pruning.costs import Costs
from gnnrl_ray.run.directory import Run
from gnnrl_ray.run.winner import rebuild
from gnnrl_ray.scoring.measures import measure
from gnnrl_ray.scoring.training import steps_per_epoch
from gnnrl_ray.settings import (
    BUDGETS,
    SearchSettings,
    decisive,
    file_name,
    setting,
    unknown_setting,
)
from gnnrl_ray.source import Source
from gnnrl_ray.storage import Storage

_CELL = {"network", "method", "seed", *BUDGETS}
_SEARCH = (SearchSettings.names() | Source.names()) - _CELL - {"address"}
# After how many evaluations the best so far is looked at.
LOOKS = (10, 20, 30, 40, 60, 90, 120, 150, 180, 240, 300, 400, 500, 750, 1000)
# How many episodes of a cell are over, and the best accuracy so far.
Progress = Callable[[str, int, float | None], None]
# How many steps of fine-tuning a cell's winner are over, of how many, and the last loss.
Tuned = Callable[[str, int, int, float], None]


class ComparisonError(InputError):
    """A comparison that cannot be understood."""


@dataclass(frozen=True, kw_only=True)
class Tuning(Recipe):
    """How every winner is fine-tuned; each seed is a fine-tuning of its own."""

    epochs: int = setting(0, "Passes over the training images; 0 for none.", least=0)
    seeds: int = setting(1, "Of order and augmentation, from 0 on.", least=1)

    @staticmethod
    def flag(name: str) -> str:
        """Return how a setting is written in the file."""
        return f"[finetune] {name}"


@dataclass(frozen=True)
class Cell:
    """One search of a comparison."""

    network: str
    budget: Mapping[str, float]
    method: str
    seed: int

    @property
    def limits(self) -> str:
        """The budget, for people: ``flops 0.5``."""
        return ", ".join(f"{name} {value:g}" for name, value in self.budget.items())

    @property
    def name(self) -> str:
        """Of its directory."""
        words = (self.network, self.limits, self.method, str(self.seed))
        return file_name("-".join(words).replace(", ", "-").replace(" ", ""))


@dataclass
class Comparison:
    """What is compared with what.

    Attributes:
        networks: by name.
        budgets: each a table of limits, such as ``{flops = 0.5}``.
        methods: by name, or names of ``variants``.
        seeds: of each.
        variants: by a name of their own, what sets a method apart:
            ``{method = "gnn-rl", agent = {algorithm = "ddpg"}}``.
        search: what all searches have in common: other settings of
            :class:`~gnnrl_ray.settings.SearchSettings` and of
            :class:`~gnnrl_ray.source.Source`.
        finetune: settings of :class:`Tuning`.

    Raises:
        InputError: what is unknown, or cannot be.
    """

    networks: list[str]
    budgets: list[dict[str, float]]
    methods: list[str]
    seeds: list[int] = field(default_factory=lambda: [0])
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)
    search: dict[str, Any] = field(default_factory=dict)
    finetune: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("networks", "budgets", "methods", "seeds"):
            if not isinstance(getattr(self, name), list) or not getattr(self, name):
                raise ComparisonError(f"{name} has to be a list of one or more.")
        for name in ("variants", "search", "finetune"):
            if not isinstance(getattr(self, name), dict):
                raise ComparisonError(f"{name} has to be a table.")
        for name, variant in self.variants.items():
            own = isinstance(variant, dict) and variant.get("method") in METHODS
            if not own or name in METHODS or not re.fullmatch(r"[\w.+-]+", name):
                raise ComparisonError(
                    f"variants has {name} = {variant!r}, which is no table with a "
                    'method, such as { method = "gnn-rl", levels = 1 }, under a name of '
                    "letters, digits, dots and hyphens that no method has."
                )
            for key in variant:
                if key not in SearchSettings.names() - _CELL | {"method"}:
                    raise unknown_setting(key, sorted(SearchSettings.names() - _CELL))
        if unknown := set(self.methods) - set(METHODS) - set(self.variants):
            known = ", ".join((*METHODS, *self.variants))
            raise ComparisonError(f"{unknown.pop()!r} is no method; known: {known}.")
        for budget in self.budgets:
            if not isinstance(budget, dict) or not budget or budget.keys() - set(BUDGETS):
                known = ", ".join(BUDGETS)
                raise ComparisonError(
                    f"budgets has {budget!r}, which is no table of {known}, such as "
                    "{ flops = 0.5 }."
                )
        for name in self.search:
            if name not in _SEARCH:
                raise unknown_setting(name, sorted(_SEARCH))
        if "weights" in self.search and len(self.networks) > 1:
            raise ComparisonError("weights are of one network, but networks has several.")
        if unknown := self.finetune.keys() - Tuning.names():
            known = ", ".join(sorted(Tuning.names()))
            raise ComparisonError(f"[finetune] knows {known}, not {unknown.pop()!r}.")
        self.tuning = Tuning.from_dict(self.finetune)
        for cell in self.cells():  # each is checked before the first is run
            self.source(cell).check()
            self.settings(cell)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a TOML file; its tables are ``search`` and ``finetune``.

        Raises:
            ComparisonError: it is not that.
        """
        known = {f.name for f in fields(cls)}
        try:
            given = tomllib.loads(path.read_text())
            if unknown := given.keys() - known:
                raise ValueError(f"{unknown.pop()!r} is none of {', '.join(sorted(known))}")
            if missing := {"networks", "budgets", "methods"} - given.keys():
                raise ValueError(f"it does not say which {', '.join(sorted(missing))}")
            return cls(**given)
        except InputError as error:
            raise ComparisonError(f"{path}: {error}") from error
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise ComparisonError(f"{path} is not a comparison: {error}.") from error

    def cells(self) -> Iterator[Cell]:
        """Yield every search, seed after seed, so that all methods come early."""
        for seed, network, budget, method in product(
            self.seeds, self.networks, self.budgets, self.methods
        ):
            yield Cell(network, dict(budget), method, seed)

    def source(self, cell: Cell) -> Source:
        """Return where network and data of a cell come from."""
        own = {n: self.search[n] for n in Source.names() & self.search.keys()}
        return Source.from_dict(own | {"network": cell.network})

    def settings(self, cell: Cell) -> SearchSettings:
        """Return the settings of the search of a cell."""
        own = {n: self.search[n] for n in SearchSettings.names() & self.search.keys()}
        variant = self.variants.get(cell.method, {"method": cell.method})
        given = own | variant | {"seed": cell.seed} | dict(cell.budget)
        settings = SearchSettings.from_dict(given)
        method_of(settings.method).check(settings)
        return settings

    def about(self, cell: Cell) -> dict[str, dict]:
        """Return all that decides what is in the row of a cell, as JSON has it."""
        about = {
            "search": decisive(self.settings(cell).to_dict()),
            "source": decisive(self.source(cell).to_dict()),
            "finetune": self.tuning.to_dict(),
        }
        return json.loads(json.dumps(about))


def compare(
    comparison: Comparison,
    out: str,
    *,
    at_once: int = 1,
    gpus: float = 0.0,
    address: str | None = None,
    on_progress: Progress | None = None,
    on_tuning: Tuned | None = None,
) -> pd.DataFrame:
    """Run every search, fine-tune every winner, and measure both.

    In ``out``: the run directories under ``runs/``, ``rows/`` with what was measured, and
    ``results.csv``. What is there is not done again, unless it is of other settings, and
    what was interrupted goes on.

    Args:
        comparison: what is compared.
        out: directory that all nodes see, or a URI.
        at_once: how many searches run at a time, as tasks of Ray; 1: in this process.
        gpus: share of a GPU for each of these.
        address: of a Ray cluster, see :class:`~gnnrl_ray.settings.SearchSettings`.
        on_progress: called with a search's name, how many of its episodes are over, and
            the best accuracy so far.
        on_tuning: called with a search's name, how many steps of fine-tuning its winner are
            over, of how many, and the last loss; not where searches are tasks.

    Returns:
        A row for each search and seed of fine-tuning; failed ones have only ``error``.

    Raises:
        ComparisonError: all searches failed.
        KeyboardInterrupt: after ``results.csv`` has been written with what there is.
    """
    storage = Storage(out)
    root = str(storage.local.resolve()) if storage.local else str(storage)
    rows: dict[str, dict] = {}
    left = []
    for cell in comparison.cells():
        file, about = f"rows/{cell.name}.json", comparison.about(cell)
        row = json.loads(storage.read(file)) if storage.exists(file) else None
        if row is not None and row.get("of", about) == about:
            rows[cell.name] = row
        else:
            left.append(cell)
    try:
        if at_once == 1 and not address:
            for cell in left:
                rows[cell.name] = _row(cell, comparison, root, on_progress, on_tuning)
        elif left:
            tasks = {cell.name: (cell, comparison, root) for cell in left}
            for name, row in _in_tasks(tasks, at_once, gpus, address):
                rows[name] = row
                if on_progress is not None and "error" not in row:
                    on_progress(name, row["evaluations"], row["pruned"]["validation"])
    finally:
        table = _table(comparison, rows)
        storage.write("results.csv", table.to_csv(index=False).encode())
    errors = [row.get("error") for row in rows.values()]
    if all(errors):
        raise ComparisonError(f"all searches failed, the first with: {errors[0]}")
    return table


def _in_tasks(
    tasks: dict[str, tuple], at_once: int, gpus: float, address: str | None
) -> Iterator[tuple[str, dict]]:
    """Yield the rows of ``tasks``, the arguments of :func:`_row` by name, as they come."""
    import ray

    from gnnrl_ray.actors.connection import connected

    with connected(address):
        # A task whose worker dies is run again, and goes on with its run directory.
        remote = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=3)(_row)
        names, under_way = list(reversed(tasks)), {}
        while names or under_way:
            while names and len(under_way) < at_once:
                name = names.pop()
                under_way[remote.remote(*tasks[name])] = name
            (done,), _ = ray.wait(list(under_way), num_returns=1)
            name = under_way.pop(done)
            try:
                yield name, ray.get(done)
            except ray.exceptions.RayError as error:
                yield name, {"error": str(error).strip().splitlines()[-1]}


def _row(
    cell: Cell, comparison: Comparison, root: str, on_progress: Progress | None = None,
    on_tuning: Tuned | None = None,
) -> dict:  # fmt: skip
    """Search, fine-tune and measure; what people can mend is in the row."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        out = f"{root}/runs/{cell.name}"
        row = _measured(cell, comparison, out, on_progress, on_tuning)
    except (GnnrlError, OSError) as error:
        return {"error": str(error)}
    Storage(root).write(f"rows/{cell.name}.json", json.dumps(row).encode())
    return row


def _measured(
    cell: Cell, comparison: Comparison, out: str, on_progress: Progress | None,
    on_tuning: Tuned | None,
) -> dict:  # fmt: skip
    source, settings = comparison.source(cell), comparison.settings(cell)
    network, data = source.load()
    there = Storage(out).exists("run.json")

    def on_episode(done: int, best: Any) -> None:
        if on_progress is not None:
            on_progress(cell.name, done, best and best.accuracy)

    def on_step(step: int, loss: float) -> None:
        if on_tuning is not None:
            on_tuning(cell.name, step, tuning.epochs * epoch, loss)

    search = Search(network, data, settings, source)
    search.run(out, resume=there, on_episode=on_episode)
    run, costs = Run.open(out), Costs(search.groups)
    asked = method_of(settings.method).candidates(settings)
    if len(run.journal) > asked:
        raise ComparisonError(
            f"{out} has {len(run.journal)} candidates already, more than the {asked} that "
            "are asked for; name another directory with --out."
        )
    widths = np.array(list(run.best()["groups"].values()))
    winner = rebuild(run.storage, network, costs.groups, "pruned")
    dense, tuning, tuned = measure(network, data, costs), comparison.tuning, []
    epoch = steps_per_epoch(data.train, tuning.batch_size)
    for seed in range(tuning.seeds if tuning.epochs else 0):
        smaller = rebuild(run.storage, network, costs.groups, "pruned")
        smaller.to(device_of(settings.device))
        finetune(run, smaller, data, tuning, dense=network, groups=costs.groups,
                 seed=seed, resume=is_interrupted(run, tuning, seed),
                 on_step=on_step)  # fmt: skip
        tuned.append(measure(smaller.cpu(), data, costs, widths))
    found = measure(winner, data, costs, widths)
    last = {"finetuned": tuned[-1]} if tuned else {}
    run.measured({"dense": dense, "pruned": found} | last)
    best = np.maximum.accumulate([outcome.accuracy for _, outcome in run.journal])
    return {
        "evaluations": len(run.journal) + method_of(settings.method).probes(costs.groups),
        "seconds": sum(outcome.seconds for _, outcome in run.journal),
        "macs_share": found["macs"] / dense["macs"],
        "params_share": found["params"] / dense["params"],
        "paper_share": costs.paper_share(widths),
        "curve": {str(n): float(best[n - 1]) for n in LOOKS if n <= len(best)},
        "dense": dense, "pruned": found, "tuned": tuned, "of": comparison.about(cell),
    }  # fmt: skip


def _table(comparison: Comparison, rows: Mapping[str, dict]) -> pd.DataFrame:
    """Flatten what was measured: a row for each search and seed of fine-tuning."""
    flat = []
    for cell in comparison.cells():
        if cell.name not in rows:
            continue
        row = rows[cell.name]
        data = comparison.source(cell).data_name
        about = {"network": cell.network, "data": data, "budget": cell.limits,
                 "method": cell.method, "kind": comparison.settings(cell).method,
                 "seed": cell.seed,
                 "run": f"runs/{cell.name}"}  # fmt: skip
        if "error" in row:
            flat.append(about | {"error": row["error"]})
            continue
        own = {
            name: value for name, value in row.items() if not isinstance(value, dict | list)
        }
        for kind in ("dense", "pruned"):
            splits = ("validation", "holdout", "test")
            own |= {f"{kind}_{split}": row[kind][split] for split in splits}
        own |= {f"after_{n}": best for n, best in row.get("curve", {}).items()}
        for seed, tuned in list(enumerate(row["tuned"])) or [(None, {})]:
            after = {f"tuned_{split}": tuned.get(split) for split in splits}
            flat.append(about | own | {"finetune_seed": seed} | after)
    return pd.DataFrame(flat)
