"""Every setting of a search, once.

What follows from the fields of :class:`SearchSettings`: the options of ``gnnrl-ray search``
and their help, the keyword arguments of :func:`gnnrl_ray.search`, what a sweep may try,
what ``run.json`` keeps, what may change when a run goes on, and all checks of values.
"""

import dataclasses
import difflib
import importlib
import json
import math
import numbers
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Self, get_args, get_type_hints

from gnnrl_ray.errors import DataError, InputError

_TOO_LARGE = 2**53  # of what is counted
_MOST_PIXELS = 2**26  # of one image: 100 times those of a photograph for ImageNet

BUDGETS = ("flops", "params", "activations", "memory", "latency")
_BATCHES = {"memory": "memory_batch", "latency": "latency_batch"}  # that they are of
_NO_MANNER = {*BUDGETS, *_BATCHES.values(), "method", "seed", "precision"}
PRECISIONS = ("plain", "float32", "bfloat16")
TIMEOUTS = ("fit", "penalty")
IMPORTANCES = ("l1", "l2", "median", "bn", "taylor", "random")
DATASETS = ("digits", "cifar10", "cifar100")
FOLDER = "folder:"  # before the path of images of one's own
VALIDATIONS = ("test-5k", "train-5k")
_DEFAULT_FLOPS = 0.5


def setting(default: Any, text: str, **facts: Any) -> Any:
    """Return a field of settings.

    Args:
        default: of the setting.
        text: its help.
        **facts: ``least`` and ``most``, the ends of its range; ``above`` and
            ``below``, ends that are not in it;
            ``choices``, what it must be one of, or where they are (``"module:NAME"``);
            ``parse``, a function that returns the value it stands for, or raises
            ``InputError``; ``metavar`` and ``shown``, of the help, in place of kind and
            default; ``presets``, what words in place of NAME=VALUE stand for; ``free``,
            whether it may change when a run goes on; ``kept``, whether
            ``run.json`` has it.
    """
    metadata = {"text": text} | facts
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def flag(name: str) -> str:
    """Return the option of a setting: ``--round-to`` of ``round_to``."""
    return "--" + name.replace("_", "-")


def choices_of(field: dataclasses.Field) -> tuple[str, ...]:
    """Return what a setting must be one of; none for one that is free."""
    choices = field.metadata.get("choices", ())
    if isinstance(choices, str):
        module, _, name = choices.partition(":")
        choices = getattr(importlib.import_module(module), name)
    return tuple(choices)


@cache
def kind_of(owner: type, name: str) -> type:
    """Return the plain kind of a setting's values."""
    hint = get_type_hints(owner)[name]
    kinds = (bool, int, float, str, dict, tuple)
    return next(kind for kind in (*get_args(hint), hint) if kind in kinds)


class Checked:
    """Settings whose values are checked as they are made: plain kinds, bounds, choices.

    Attributes:
        panels: headings of ``--help`` and the settings under each; the last has the others.
        otherwise: what to do if a setting should change that may not.
    """

    panels: ClassVar[Mapping[str, Sequence[str]]] = {}
    otherwise: ClassVar[str] = "start a new run with --out"

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = _checked(type(self), field, getattr(self, field.name))
            object.__setattr__(self, field.name, value)

    @staticmethod
    def flag(name: str) -> str:
        """Return how a setting is written on the command line."""
        return flag(name)

    @classmethod
    def names(cls) -> frozenset[str]:
        """Return the names of all settings."""
        return frozenset(field.name for field in dataclasses.fields(cls))

    @classmethod
    def read(cls, given: Mapping[str, str | bool]) -> dict[str, Any]:
        """Return the values that the texts of a command line stand for.

        Raises:
            InputError: one that is of another kind; names the option.
        """
        return {
            name: text if isinstance(text, bool) else _read(kind_of(cls, name), name, text)
            for name, text in given.items()
        }

    def to_dict(self) -> dict[str, Any]:
        """Return what ``run.json`` keeps."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.metadata.get("kept", True)
        }

    @classmethod
    def from_dict(cls, kept: Mapping[str, Any]) -> Self:
        """Return the settings of a ``run.json``; what is not in it has its default."""
        return cls(**{name: kept[name] for name in cls.names() & kept.keys()})

    def continued(self, changes: Mapping[str, Any], run: str) -> Self:
        """Return the settings of a run that goes on with ``changes``.

        Raises:
            InputError: one of them has to stay what it was.
        """
        after = dataclasses.replace(self, **changes)
        for field in dataclasses.fields(self):
            before, now = getattr(self, field.name), getattr(after, field.name)
            if before != now and not field.metadata.get("free"):
                raise InputError(
                    f"{run} was started with {self.flag(field.name)} {before}, not {now}; "
                    f"leave it out, or {self.otherwise}."
                )
        return after


def _read(kind: type, name: str, text: str) -> Any:
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            sort = "a whole number" if kind is int else "a number"
            raise InputError(f"{flag(name)} {text!r} is not {sort}.") from None
    return text


def _checked(owner: type[Checked], field: dataclasses.Field, value: Any) -> Any:
    """Return ``value`` in its plain type if it is one that the field may have.

    Raises:
        InputError: it is not; names option, value and remedy.
    """
    option, facts = owner.flag(field.name), field.metadata
    if value is None and type(None) in get_args(get_type_hints(owner)[field.name]):
        return None
    if "parse" in facts:
        return facts["parse"](value)
    kind = kind_of(owner, field.name)
    plain = _plain(kind, value)
    if plain is None:
        sorts = {int: "a whole number", float: "a number", str: "a text",
                 bool: "true or false", dict: "a table of names and values"}  # fmt: skip
        raise InputError(f"{option} {value!r} is not {sorts[kind]}.")
    choices = choices_of(field)
    if choices and plain not in choices:
        known = ", ".join(map(repr, choices))
        raise InputError(f"{option} {value!r} is not one of {known}.")
    if kind is int and plain >= _TOO_LARGE:
        raise InputError(f"{option} {value!r} must be below {_TOO_LARGE}.")
    if "least" in facts and not plain >= facts["least"]:
        raise InputError(f"{option} {value!r} must be at least {facts['least']}.")
    if "above" in facts and not plain > facts["above"]:
        raise InputError(f"{option} {value!r} must be more than {facts['above']}.")
    if "most" in facts and not plain <= facts["most"]:
        raise InputError(f"{option} {value!r} must be at most {facts['most']}.")
    if "below" in facts and not plain < facts["below"]:
        raise InputError(f"{option} {value!r} must be less than {facts['below']}.")
    return plain


def _plain(kind: type, value: Any) -> Any:
    """Return ``value`` as a plain ``kind``, or None if it is of another."""
    if kind is str and isinstance(value, str | os.PathLike):
        return os.fspath(value)
    if kind is bool or isinstance(value, bool):
        return value if kind is bool and isinstance(value, bool) else None
    if kind is int and isinstance(value, numbers.Integral):
        return int(value)
    if kind is float and isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else None
    if kind is dict and isinstance(value, Mapping):
        try:  # as run.json will hold it
            return json.loads(json.dumps(dict(value), default=lambda number: number.item()))
        except (TypeError, ValueError, AttributeError):
            return None
    return None


def parse_round_to(given: object) -> str | int:
    """Return ``given`` if it is auto, else a number of channels.

    Raises:
        InputError: neither.
    """
    text = str(given)
    if text == "auto":
        return text
    if text.isdecimal() and 0 < int(text) < _TOO_LARGE:
        return int(text)
    raise InputError(f"--round-to {text!r} is not auto or a whole number from 1 on.")


def parse_finetune(given: object) -> str | int:
    """Return ``given`` if it is one of the words, else a number of steps.

    Raises:
        InputError: none of these.
    """
    text = str(given)
    if text in ("none", "recalibrate", "epoch", "own"):  # of these, own in Python alone
        return text
    if text.isdecimal() and 0 < int(text) < 10**9:
        return int(text)
    raise InputError(
        f"--finetune {text!r} is not none, recalibrate, epoch or a number of steps."
    )


def parse_dataset(given: object) -> str:
    """Return the name of a data set; a folder that is here by its whole path.

    Raises:
        InputError: it is no text.
    """
    if not isinstance(given, str):
        raise InputError(f"--dataset {given!r} is not a text.")
    path = given.removeprefix(FOLDER)
    if given.startswith(FOLDER) and Path(path).is_dir():
        return FOLDER + str(Path(path).resolve())
    return given


def parse_path(given: object) -> str:
    """Return a path or URI; of what is here, the whole path.

    Raises:
        InputError: it is no text.
    """
    if not isinstance(given, str | os.PathLike):
        raise InputError(f"{given!r} is no path.")
    path = os.fspath(given)
    return os.path.realpath(path) if os.path.exists(path) else path


def last_word(dataset: str) -> str:
    """Return what a data set is called, without where it is."""
    return re.split("[:/]", dataset.rstrip("/"))[-1]


def file_name(text: str) -> str:
    """Return what a file is called that is of ``text``, such as ``timm:NAME``."""
    return re.sub("[:/]", "-", text)


def check_dataset(name: str, validation: str) -> None:
    """Raise a ``DataError`` if there is no such data set, or no such split of it."""
    if ":" not in name and name not in DATASETS:
        raise DataError(
            f"unknown dataset {name!r}; known: {', '.join(DATASETS)}, {FOLDER}PATH, "
            "package.module:callable."
        )
    if validation not in VALIDATIONS:
        known = ", ".join(VALIDATIONS)
        raise DataError(f"unknown validation {validation!r}; known: {known}.")


def parse_pattern(given: object) -> str:
    """Return ``given`` if it is a regular expression.

    Raises:
        InputError: it is not.
    """
    if not isinstance(given, str | re.Pattern):
        raise InputError(f"--keep {given!r} is no text; join names by | in one.")
    try:
        return re.compile(given).pattern
    except (re.error, OverflowError, RecursionError) as error:
        raise InputError(f"--keep {given!r} is no regular expression: {error}.") from error


def parse_shape(given: str) -> tuple[int, ...]:
    """Return (C, H, W) of ``C,H,W`` or ``CxHxW``; signals have C,L and volumes C,D,H,W.

    Raises:
        InputError: it is not that.
    """
    parts = given.replace("x", ",").split(",")
    if len(parts) <= 4 and all(p.strip().isdecimal() and len(p) < 9 for p in parts):
        shape = tuple(map(int, parts))
        if 0 < math.prod(shape) <= _MOST_PIXELS:
            return shape
    raise InputError(f"--input-shape {given!r} is not C,H,W such as 3,224,224.")


def _budget(text: str, **facts: Any) -> Any:
    more = "; a share of the dense network's below 1, else a number"
    return setting(None, text + more, above=0, metavar="SHARE|NUMBER", **facts)


@dataclass(frozen=True, kw_only=True)
class SearchSettings(Checked):
    """What a search may be told; every field is an option of ``gnnrl-ray search``.

    Raises:
        InputError: a value that cannot be; names the option.
    """

    flops: float | None = _budget(
        "Multiply-accumulates of one image that a candidate may have",
        shown=f"{_DEFAULT_FLOPS} if no other budget is given",
    )
    params: float | None = _budget("Trainable parameters that it may have")
    activations: float | None = _budget("Numbers in its largest hidden state for one image")
    memory: float | None = _budget(
        "Bytes of float32 weights and hidden states that it holds at once"
    )
    memory_batch: int = setting(
        1, "Images in a pass that --memory is of.", least=1, most=10**5
    )
    latency: float | None = _budget(
        "Microseconds of a pass on --device, by a table of its layers that is measured at "
        "the start"
    )
    latency_batch: int = setting(
        1, "Images in a pass that --latency is of.", least=1, most=10**5
    )
    episodes: int = setting(180, "Candidates to score; rules have one.", least=1, free=True)
    method: str = setting("gnn-rl", "How to search.", choices="gnnrl_ray.methods:METHODS")
    finetune: str | int = setting(
        "recalibrate",
        "Before a candidate is scored: recompute normalisation statistics, do nothing, or "
        "train for an epoch or a number of steps.",
        parse=parse_finetune,
        metavar="recalibrate|none|epoch|STEPS",
    )
    finalists: int = setting(
        0,
        "How many of the best candidates that differ are trained, the better half of them "
        "twice as long, and so on, until one is left and wins; 0: the best one wins.",
        least=0,
        free=True,
    )
    finalist_epochs: float = setting(
        0.25, "Of training for each finalist in the first round.", above=0, free=True
    )
    importance: str = setting("l2", "What ranks channels.", choices=IMPORTANCES)
    min_keep: float = setting(
        0.1, "Smallest share of a group's channels to keep.", least=0, below=1
    )
    round_to: str | int = setting(
        1,
        "Keep multiples of so many channels, or all; auto: the largest that --device takes "
        "no longer for, with --latency-batch images, measured at the start.",
        parse=parse_round_to,
        metavar="N|auto",
    )
    keep: str | None = setting(
        None,
        "Leave whole the groups of layers whose name it matches.",
        parse=parse_pattern,
        metavar="REGEX",
    )
    skip_untraceable: bool = setting(
        False, "Leave whole what cannot be traced, instead of an error."
    )
    levels: int = setting(
        2,
        "Of the graph: 1 flat, 2 with motifs, 3 with stages of motifs, if any repeat.",
        least=1,
        below=4,
    )
    fit: bool = setting(True, "Scale an episode's last step back to use the whole budget.")
    on_timeout: str = setting(
        "fit",
        "After --max-steps without the budget: scale all groups down to it, or end with "
        "the worst reward.",
        choices=TIMEOUTS,
    )
    max_steps: int = setting(8, "Of one episode.", least=1)
    seed: int = setting(0, "Of everything random.", least=0)
    precision: str = setting(
        "auto",
        "Of evaluation. auto: what is fastest here, if within 0.1 points of plain.",
        choices=("auto", *PRECISIONS),
    )
    early_stop: bool = setting(
        False,
        "Stop scoring candidates that cannot be among the best three; their accuracies "
        "are estimates then. Not for results that are to be published.",
    )
    agent: dict = setting(
        {},
        "Setting of the agent, such as updates_per_step=8 or warmup_episodes=10 "
        "(gnnrl_ray.agent.ddpg.DDPGConfig.training); may be given again. paper: the agent "
        "of GNN-RL to the letter.",
        metavar="NAME=VALUE|paper",
        presets={"paper": {"algorithm": "ddpg"}},
    )
    from_run: str | None = setting(
        None,
        "Start from what the agent of another run has learnt, on whatever network: its "
        "directory; an agent.safetensors; or pretrained, an agent that comes with the "
        "package (see `gnnrl-ray pretrain`).",
        metavar="RUN|FILE|pretrained",
    )
    env_runners: int = setting(
        0,
        "Ray actors, each with one episode at a time; 0 runs all in this process.",
        least=0,
        free=True,
    )
    cpus_per_env_runner: float = setting(
        1.0, "For each actor; it runs as many threads.", least=0, free=True
    )
    gpus_per_env_runner: float = setting(
        0.0, "Share of a GPU, and of its memory, for each actor.", least=0, free=True
    )
    episode_timeout: float = setting(
        3600.0,
        "Seconds after which an episode's actor is replaced; 0: never.",
        least=0,
        free=True,
    )
    max_retries: int = setting(
        3,
        "How often a lost episode is run again before it is left out.",
        least=0,
        free=True,
    )
    device: str | None = setting(
        None, "cpu or cuda:N; default: a GPU if there is one.", free=True
    )
    address: str | None = setting(
        None,
        "Ray cluster to run on, auto for this machine's; default: the one that this is a "
        "job of, else one of this machine, for as long as the search lasts.",
        free=True,
        kept=False,
    )
    wait_for_nodes: float = setting(
        0.0,
        "Seconds that the cluster has to become large enough.",
        least=0,
        free=True,
        kept=False,
    )

    TRACE: ClassVar[tuple[str, ...]] = ("keep", "skip_untraceable")
    panels: ClassVar[Mapping[str, Sequence[str]]] = {
        "Budget": (*BUDGETS, *_BATCHES.values(), "min_keep", "round_to", "keep"),
        "Agent": ("agent", "from_run", "levels", "fit", "on_timeout", "max_steps"),
        "Cluster": (
            "env_runners", "cpus_per_env_runner", "gpus_per_env_runner", "episode_timeout",
            "max_retries", "device", "address", "wait_for_nodes",
        ),
        "Search": (),
    }  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.budgets:
            object.__setattr__(self, "flops", _DEFAULT_FLOPS)

    @property
    def budgets(self) -> dict[str, float]:
        """What a candidate may cost, by the kind of cost."""
        given = {name: getattr(self, name) for name in BUDGETS}
        return {name: value for name, value in given.items() if value is not None}

    @property
    def limits(self) -> str:
        """The budgets as they are typed, ``--flops 0.5``."""
        words = []
        for name, value in self.budgets.items():
            words.append(f"{flag(name)} {value:g}")
            batch = _BATCHES.get(name)
            if batch is not None and getattr(self, batch) != 1:
                words.append(f"{flag(batch)} {getattr(self, batch)}")
        return " ".join(words)

    @property
    def manner(self) -> str:
        """The method, with all else that decides what it finds and is not as by default.

        As it is typed, ``gnn-rl --finetune 200``; without budgets, seed and hardware.
        """
        plain, words = type(self)(), [self.method]
        for field in dataclasses.fields(self):
            name, value = field.name, getattr(self, field.name)
            if name in _NO_MANNER or field.metadata.get("free"):
                continue
            if value == getattr(plain, name):
                continue
            if isinstance(value, bool):
                words.append(flag(name) if value else flag(f"no_{name}"))
            elif isinstance(value, dict):
                presets = field.metadata.get("presets", {})
                known = [word for word, preset in presets.items() if preset == value]
                given = known or [f"{key}={value[key]}" for key in sorted(value)]
                words += [f"{flag(name)} {word}" for word in given]
            else:
                words.append(f"{flag(name)} {value}")
        return " ".join(words)

    @property
    def tracing(self) -> dict[str, Any]:
        """What :func:`~gnnrl_ray.trace` is told."""
        return {name: getattr(self, name) for name in self.TRACE}


def unknown_setting(name: str, known: Iterable[str], of: str = "a search") -> InputError:
    """Return the error that says what there is instead of ``name``."""
    known = list(known)
    near = difflib.get_close_matches(name, known, 1)
    meant = f"; did you mean {near[0]}?" if near else ";"
    return InputError(f"{name!r} is no setting of {of}{meant} known: {', '.join(known)}.")


Progress = Callable[[int, Any], None]


def decisive(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``settings`` by name without those that say where something is done."""
    where = {*SearchSettings.panels["Cluster"], "data_dir"}
    return {name: value for name, value in settings.items() if name not in where}
