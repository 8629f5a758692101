"""What it takes to go on with a training that was interrupted, or killed."""

import json
import time
from collections.abc import Mapping
from typing import Any

import safetensors.torch
from torch import Tensor

from gnnrl_ray.errors import InputError
from gnnrl_ray.scoring.training import Training
from gnnrl_ray.storage import Storage
from gnnrl_ray.zoo.weights import read_facts, read_weights

_SECONDS = 60  # between two writings


class CheckpointError(InputError):
    """A checkpoint that is missing, damaged, or of another training."""


class Checkpoint:
    """One file, written once a minute and when a training is interrupted.

    Args:
        storage: where it is.
        name: of the file.
        about: what must be the same where a training is gone on with; as JSON has it.
    """

    def __init__(self, storage: Storage, name: str, about: Mapping[str, Any]) -> None:
        self._storage, self._name, self._about = storage, name, about

    def __str__(self) -> str:
        return f"{self._storage}/{self._name}"

    def exists(self) -> bool:
        """Say whether something was interrupted."""
        return self._storage.exists(self._name)

    def said(self) -> dict[str, Any]:
        """Return what the file is about.

        Raises:
            CheckpointError: there is none, or it does not say.
            WeightsError: it is damaged.
        """
        return self._written()[1]

    def is_of_this(self) -> bool:
        """Say whether it is there, and of this very training."""
        try:
            return self.exists() and self._about.items() <= self.said().items()
        except InputError:
            return False

    def read(self) -> dict[str, Tensor]:
        """Return the state that was written.

        Raises:
            CheckpointError: there is none, or it is of another training.
            WeightsError: it is damaged.
        """
        state, said = self._written()
        for name, value in self._about.items():
            if name not in said or said[name] != value:
                raise CheckpointError(
                    f"{self} is of another training: its {name} is "
                    f"{json.dumps(said.get(name))}, not {json.dumps(value)}. Give what it "
                    "was given, or start over without --resume."
                )
        return state

    def _written(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        if not self.exists():
            raise CheckpointError(f"nothing to go on with at {self}; leave out --resume.")
        state, facts = read_weights(str(self)), read_facts(str(self))
        try:
            return state, {name: json.loads(value) for name, value in facts.items()}
        except ValueError as error:
            raise CheckpointError(
                f"{self} does not say what it is of ({error}); start over without --resume."
            ) from error

    def train(self, training: Training, state: Mapping[str, Tensor] | None = None) -> None:
        """Go through ``training``, from ``state`` if that was read; write now and then.

        Raises:
            CheckpointError: the state does not fit.
            KeyboardInterrupt: once it is written.
        """
        try:
            if state is not None:
                training.go_on_from(state)
        except (ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"{self} cannot be gone on with: {error}; delete it to start over."
            ) from error
        written = time.monotonic()
        try:
            for _ in training:
                if time.monotonic() - written > _SECONDS:
                    self._write(training)
                    written = time.monotonic()
        except KeyboardInterrupt:
            self._write(training)
            raise

    def _write(self, training: Training) -> None:
        facts = {name: json.dumps(value) for name, value in self._about.items()}
        content = safetensors.torch.save(training.state(), facts)
        self._storage.write(self._name, content)

    def remove(self) -> None:
        """Remove what is of no use once the training is over."""
        self._storage.remove(self._name)
