"""Weights & Biases and MLflow, told of sweeps as they go."""

from dataclasses import dataclass

from gnnrl_ray.errors import InputError
from gnnrl_ray.settings import Checked, setting

_UPLOAD_SECONDS = 60  # that the end of a sweep waits for Weights & Biases


class TrackerError(InputError):
    """A tracker that is not installed, or does not take what it is given."""


@dataclass(frozen=True, kw_only=True)
class Trackers(Checked):
    """Which trackers are told; every field is an option of ``gnnrl-ray sweep``."""

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
            raise TrackerError(
                f"--{flag}: {error}; install it with: pip install 'gnnrl-ray[{flag}]'"
            ) from error
        try:
            logger.setup()  # Ray Tune does so, too, but only after everything else
        except Exception as error:
            raise TrackerError(f"--{flag} {wanted[flag]}: {error}") from error
        loggers.append(logger)
    return loggers
