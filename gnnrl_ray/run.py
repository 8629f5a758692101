"""The run directory: settings, journal, winner and weights of one search.

``run.json`` settings, versions, hardware and how candidates are evaluated;
``journal.jsonl`` every outcome; ``best.json`` the winner; ``pruned.safetensors`` its
weights, ``finetuned.safetensors`` after fine-tuning; ``checkpoint.zip`` the agent. The
directory may be behind any URI that fsspec knows.
"""

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import fx, nn

from gnnrl_ray.costs import Costs
from gnnrl_ray.folder import Folder
from gnnrl_ray.groups import ChannelGroups, trace
from gnnrl_ray.journal import Journal
from gnnrl_ray.pruner import remove
from gnnrl_ray.zoo import build_network, is_ours
from gnnrl_ray.zoo.weights import load_weights, save_weights

_PACKAGES = ("gnnrl-ray", "ray", "torch", "torch-geometric", "numpy")
# What may change when a run goes on: its length, and the hardware.
FREE = (
    "episodes", "env_runners", "cpus_per_env_runner", "gpus_per_env_runner",
    "episode_timeout", "max_retries", "device", "data_dir",
)  # fmt: skip


class RunError(ValueError):
    """A run directory that is in the way, missing or incomplete."""


class Run:
    """An open run directory.

    Attributes:
        folder: where it is.
        settings: the keyword arguments of the search, as JSON holds them.
        about: the data: ``dataset``, ``classes``, ``validation``.
        evaluation: how its candidates are evaluated, once that is known.
        journal: its outcomes.
    """

    def __init__(
        self, folder: Folder, settings: dict, about: dict, evaluation: dict | None = None
    ) -> None:
        self.folder = folder
        self.settings = settings
        self.about = about
        self.evaluation = evaluation
        self.journal = Journal(f"{folder}/journal.jsonl")

    @classmethod
    def create(
        cls, where: Path | str, settings: dict, about: dict, overwrite: bool = False
    ) -> "Run":
        """Make the directory.

        Raises:
            RunError: it exists and may not be overwritten.
        """
        folder = Folder(where)
        if overwrite and folder.exists("run.json"):
            folder.delete()
        if folder.exists():
            raise RunError(
                f"{folder} is there already; continue it with --resume {folder}, "
                "replace it with --overwrite, or name another with --out."
            )
        facts = {
            "settings": settings,
            "data": about,
            "versions": {name: version(name) for name in _PACKAGES}
            | {"python": platform.python_version()},
            "hardware": {
                "cpu": platform.processor() or platform.machine(),
                "cores": os.cpu_count(),
                "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            },
        }
        _write_json(folder, "run.json", facts)
        return cls(folder, settings, about)

    @classmethod
    def open(cls, where: Path | str) -> "Run":
        """Open a directory that a search has made.

        Raises:
            RunError: there is none.
        """
        folder = Folder(where)
        facts = _read_json(folder, "run.json")
        try:
            return cls(folder, facts["settings"], facts["data"], facts.get("evaluation"))
        except KeyError as error:
            raise RunError(f"{folder}/run.json is of another kind: no {error}.") from None

    def continue_with(self, settings: dict, about: dict) -> None:
        """Take over what may change when a run goes on: its length and its hardware.

        Raises:
            RunError: something else is not what the run was started with.
        """
        before, now = self.settings | self.about, settings | about
        for key in sorted(before.keys() - set(FREE)):
            if before[key] != now.get(key):
                raise RunError(
                    f"{self.folder} was started with {key} {before[key]!r}, not "
                    f"{now[key]!r}; start a new run with --out."
                )
        self.settings = settings

    def evaluate_with(self, evaluation: dict) -> None:
        """Keep how candidates are evaluated, so that a resumed run goes on with it."""
        self.evaluation = evaluation
        facts = _read_json(self.folder, "run.json")
        _write_json(self.folder, "run.json", facts | {"evaluation": evaluation})

    def write_best(
        self, groups: ChannelGroups, kept: tuple[np.ndarray, ...], facts: dict
    ) -> None:
        """Write ``best.json`` of the best outcome so far."""
        best = self.journal.best()
        assert best is not None, "nothing has been scored"
        episode, outcome = best
        costs = Costs(groups)
        self.write_json(
            "best.json",
            facts
            | {
                "episode": episode,
                "groups": dict(zip(groups.names, outcome.widths, strict=True)),
                "dense": dict(zip(groups.names, groups.widths.tolist(), strict=True)),
                "macs": outcome.macs,
                "macs_dense": costs.dense,
                "macs_ratio": outcome.macs / costs.dense,
                "params": outcome.params,
                "params_dense": int(costs.params(groups.widths)),
                "accuracy": outcome.accuracy,
                "error": 1 - outcome.accuracy,
                "reward": outcome.reward,
                "kept": {
                    name: index.tolist()
                    for name, index in zip(groups.names, kept, strict=True)
                },
                "input_shape": list(groups.input_shape),
            },
        )

    def best(self) -> dict:
        """Return ``best.json``.

        Raises:
            RunError: there is none yet.
        """
        return _read_json(self.folder, "best.json")

    def write_json(self, name: str, content: dict) -> None:
        """Write ``content`` to the file ``name``, whole or not at all."""
        _write_json(self.folder, name, content)

    def save_network(self, name: str, network: nn.Module) -> None:
        """Write the state dict of ``network`` as ``name``.safetensors."""
        save_weights(network, f"{self.folder}/{name}.safetensors")


def load_pruned(
    where: Path | str, network: nn.Module | None = None, weights: str | None = None
) -> fx.GraphModule:
    """Rebuild the winner of the run in ``where``, in evaluation mode.

    Args:
        where: a run directory, or its URI.
        network: the dense architecture, trained or not, where the run's network is
            neither of the zoo nor torchvision's: no code is run because a file names it.
        weights: ``pruned`` or ``finetuned``; default: ``finetuned`` if there.

    Raises:
        RunError: the directory lacks what is needed.
        WeightsError: the weights are damaged.
    """
    folder = Folder(where)
    best = _read_json(folder, "best.json")
    if network is None:
        if best["network"] is None or not is_ours(best["network"]):
            raise RunError(f"the network of {folder} is your own; pass `network`.")
        size = best["input_shape"][-1]
        network = build_network(best["network"], best["classes"], size)
    groups = trace(network, tuple(best["input_shape"]), **best.get("trace", {}))
    kept = tuple(np.array(best["kept"][name]) for name in groups.names)
    smaller = remove(network, groups, kept)
    if weights is None:
        there = folder.exists("finetuned.safetensors")
        weights = "finetuned" if there else "pruned"
    load_weights(smaller, f"{folder}/{weights}.safetensors")
    return smaller.eval()


def _write_json(folder: Folder, name: str, content: dict) -> None:
    folder.write(name, (json.dumps(content, indent=1) + "\n").encode())


def _read_json(folder: Folder, name: str) -> dict:
    try:
        return json.loads(folder.read(name))
    except FileNotFoundError as error:
        raise RunError(f"{folder} is not a finished run: no {name}.") from error
    except ValueError as error:
        raise RunError(f"{folder}/{name} is damaged: {error}.") from error
