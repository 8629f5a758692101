"""Weights & Biases and MLflow, told of searches and sweeps as they go."""

import importlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from gnnrl_ray.errors import InputError, Notice
from gnnrl_ray.settings import Checked, setting

_UPLOAD_SECONDS = 60  # that the end of a sweep waits for Weights & Biases


class TrackerError(InputError):
    """A tracker that is not installed, or does not take what it is given."""


@dataclass(frozen=True, kw_only=True)
class Trackers(Checked):
    """Which trackers are told; every field is an option of ``search`` and ``sweep``."""

    wandb: str | None = setting(None, "Report to Weights & Biases, too.", metavar="PROJECT")
    mlflow: str | None = setting(
        None, "Report to MLflow, too: its server, or sqlite:///FILE.", metavar="URI"
    )


def tracking(name: str, wandb: str | None = None, mlflow: str | None = None) -> list:
    """Return Ray Tune's callbacks for Weights & Biases and MLflow.

    Args:
        name: of the sweep.
        wandb: project there, if wanted.
        mlflow: URI of the tracking server or database, if wanted.

    Raises:
        TrackerError: the package is not installed, or does not take what it is given.
    """
    loggers: list = []
    wanted = {"wandb": wandb, "mlflow": mlflow}
    for flag in (flag for flag, value in wanted.items() if value is not None):
        try:
            if flag == "wandb":
                from ray.air.integrations.wandb import WandbLoggerCallback

                logger = WandbLoggerCallback(
                    project=wandb, group=name, upload_timeout=_UPLOAD_SECONDS
                )
            else:
                from ray.air.integrations.mlflow import MLflowLoggerCallback

                logger = MLflowLoggerCallback(tracking_uri=mlflow, experiment_name=name)
        except (ImportError, RuntimeError) as error:
            raise _not_there(flag, error) from error
        try:
            logger.setup()  # Ray Tune does so, too, but only after everything else
        except Exception as error:
            raise TrackerError(f"--{flag} {wanted[flag]}: {error}") from error
        loggers.append(logger)
    return loggers


Log = Callable[[Mapping[str, float], int], None]


@contextmanager
def tracked(
    name: str, settings: Mapping[str, Any], wandb: str | None = None,
    mlflow: str | None = None,
) -> Iterator[Log]:  # fmt: skip
    """Yield what tells Weights & Biases and MLflow of one search: figures, and an episode.

    A tracker that fails later is told no more, with a warning: the search goes on.

    Args:
        name: of the search; of its experiment in MLflow.
        settings: of the search.
        wandb: project there, if wanted.
        mlflow: URI of the tracking server or database, if wanted.

    Raises:
        TrackerError: the package is not installed, or does not take what it is given.
    """
    logs: dict[str, Log] = {}
    with ExitStack() as stack:
        for flag, where, begin in (("wandb", wandb, _wandb), ("mlflow", mlflow, _mlflow)):
            if where is None:
                continue
            try:
                one = begin(where, name, settings)
                logs[flag] = one.__enter__()
            except ImportError as error:
                raise _not_there(flag, error) from error
            except Exception as error:
                raise TrackerError(f"--{flag} {where}: {error}") from error
            stack.push(partial(_end, one, flag))

        def log(figures: Mapping[str, float], episode: int) -> None:
            for flag in tuple(logs):
                try:
                    logs[flag](figures, episode)
                except Exception as error:
                    del logs[flag]
                    _fails(flag, error)

        yield log


def _end(tracker: AbstractContextManager, flag: str, *raised: Any) -> None:
    """Leave a tracker, which may have gone away; what the search raised goes on."""
    try:
        tracker.__exit__(*raised)
    except Exception as error:
        if error is not raised[1]:
            _fails(flag, error)


def _fails(flag: str, error: Exception) -> None:
    warnings.warn(f"--{flag} is told no more: {error}", Notice, stacklevel=3)


@contextmanager
def _wandb(project: str, name: str, settings: Mapping[str, Any]) -> Iterator[Log]:
    wandb = importlib.import_module("wandb")  # an extra

    with wandb.init(project=project, name=name, config=dict(settings)) as run:
        yield lambda figures, episode: run.log(dict(figures), step=episode)


@contextmanager
def _mlflow(uri: str, name: str, settings: Mapping[str, Any]) -> Iterator[Log]:
    mlflow = importlib.import_module("mlflow")  # an extra
    mlflow.set_tracking_uri(uri)
    mlflow.set_experiment(name)
    with mlflow.start_run():
        mlflow.log_params(dict(settings))
        yield lambda figures, episode: mlflow.log_metrics(dict(figures), step=episode)


def _not_there(flag: str, error: Exception) -> TrackerError:
    return TrackerError(
        f"--{flag}: {error}; install it with: pip install 'gnnrl-ray[{flag}]'"
    )
