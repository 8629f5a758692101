"""Actors that score candidates, for methods that only propose them."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import ray

from gnnrl_ray.actors.dispatch import Dispatcher, Finished
from gnnrl_ray.actors.sharing import SharedObjective, share
from gnnrl_ray.run.task import Task


class Scorer:
    """Scores one candidate at a time.

    Args:
        shared: gives it the objective.
    """

    def __init__(self, shared: SharedObjective) -> None:
        self._objective = shared()

    def ping(self) -> str:
        """Answer: it is alive."""
        return "pong"

    def attempt_episode(
        self, number: int, widths: np.ndarray, steps: int | None = None
    ) -> Finished:
        """Score ``widths`` int [G]; say what went wrong instead of raising it.

        Returns:
            Their outcome; where ``steps`` are given, their accuracy after so much training,
            and seconds.
        """
        try:
            if steps is not None:
                return Finished(number, self._objective.score_after(widths, steps))
            return Finished(number, self._objective(widths))
        except Exception as error:
            return Finished(number, failed=f"{type(error).__name__}: {error}")


@contextmanager
def start_scorers(task: Task) -> Iterator[Dispatcher]:
    """Start the actors that the settings of ``task`` ask for, and end them afterwards.

    Raises:
        PlacementError: the cluster has no room for them.
    """
    settings, shared = task.settings, share(task)
    remote = ray.remote(
        num_cpus=settings.cpus_per_env_runner, num_gpus=settings.gpus_per_env_runner,
        max_restarts=-1,
    )(Scorer)  # fmt: skip
    actors = {i: remote.remote(shared) for i in range(1, settings.env_runners + 1)}
    try:
        yield Dispatcher(actors, settings.episode_timeout, settings.max_retries)
    finally:
        for actor in actors.values():
            ray.kill(actor)
