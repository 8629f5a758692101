"""Methods that propose widths; they are scored here, or on actors, as the settings say.

Axis letter: G prunable groups.
"""

import importlib.util
from collections.abc import Sequence

import numpy as np

from gnnrl_ray.errors import InputError
from gnnrl_ray.run.journal import EpisodeRecord
from gnnrl_ray.run.task import Task
from gnnrl_ray.scoring.outcome import Outcome
from gnnrl_ray.settings import SearchSettings
from gnnrl_ray.tracing.groups import ChannelGroups

_WAIT_SECONDS = 0.2  # at most, before somebody is told how things are


def required(package: str, method: str) -> None:
    """Raise ``InputError`` if a package that a method needs is not installed."""
    if importlib.util.find_spec(package) is None:
        raise InputError(f"--method {method} needs {package}: pip install {package}.")


def best_of(history: Sequence[Outcome], count: int) -> list[Outcome]:
    """Return the ``count`` best outcomes, best first."""
    return sorted(history, key=lambda outcome: -outcome.accuracy)[:count]


class Proposer:
    """What methods that propose widths have in common: all but :meth:`propose`.

    Args:
        task: what it is to find.

    Attributes:
        task: the same; its objective knows network, data and ranking.
        budget: what a candidate may cost.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self.budget = task.objective.budget

    @staticmethod
    def check(settings: SearchSettings) -> None:
        """Raise ``InputError`` for settings that it cannot use."""
        if settings.from_run is not None:
            raise InputError(
                f"--from-run {settings.from_run} is of gnn-rl; {settings.method} has "
                "nothing to start from."
            )

    @staticmethod
    def candidates(settings: SearchSettings) -> int:
        """Return how many candidates it proposes; by default, as many as are asked for."""
        return settings.episodes

    @staticmethod
    def probes(groups: ChannelGroups) -> int:
        """Return how many evaluations it makes beside candidates; by default, 0."""
        return 0

    def propose(
        self, history: Sequence[Outcome], generator: np.random.Generator
    ) -> np.ndarray:
        """Return the next candidate, int [G]; it has to meet the budget.

        Args:
            history: what was scored so far, in the order of the episodes; on actors, what
                is being scored is not in it.
            generator: of this episode alone.
        """
        raise NotImplementedError

    def ratios(self, outcomes: Sequence[Outcome]) -> np.ndarray:
        """Return float [N, G]: what share of each group candidates really drop."""
        dense = self.budget.groups.widths
        widths = np.array([outcome.widths for outcome in outcomes]).reshape(-1, len(dense))
        return 1 - widths / dense

    def run(self) -> None:
        """Score as many candidates as there are to be, but for those in the journal."""
        if self.task.settings.env_runners:
            self._run_on_actors()
            return
        for number in range(self.candidates(self.task.settings)):
            if number not in self.task.run.journal:
                outcome = self.task.objective(self._proposed(number))
                self.task.record(number, EpisodeRecord(outcome))

    def _proposed(self, number: int) -> np.ndarray:
        history = [outcome for _, outcome in self.task.run.journal]
        generator = np.random.default_rng([self.task.settings.seed, number])
        return self.propose(history, generator)

    def _run_on_actors(self) -> None:
        # Ray takes seconds to import, and what runs here does without.
        from gnnrl_ray.actors.connection import connected
        from gnnrl_ray.actors.scorer import start_scorers

        settings, task = self.task.settings, self.task
        task.say("starting Ray")
        with connected(settings.address), start_scorers(task) as dispatcher:
            total = dispatcher.limit = self.candidates(settings)
            proposed: dict[int, np.ndarray] = {}  # of episodes that are under way
            while not dispatcher.exhausted:
                while dispatcher.peek() < total:
                    number = dispatcher.peek()
                    if number in task.run.journal:
                        dispatcher.take()
                        continue
                    if not dispatcher.idle:
                        break
                    if number not in proposed:
                        proposed[number] = self._proposed(number)
                    outcome = task.objective.known(proposed[number])
                    if outcome is None:
                        runner = dispatcher.idle[0]
                        dispatcher.start(runner, widths=proposed[number])
                    else:
                        dispatcher.take()
                        task.record(number, EpisodeRecord(outcome))
                for finished in dispatcher.collect(_WAIT_SECONDS):
                    proposed.pop(finished.number, None)
                    record = EpisodeRecord(finished.result, failed=finished.failed)
                    task.record(finished.number, record)
                task.report(dispatcher.status())


class Rule(Proposer):
    """A method with one candidate, which nothing that was scored can change."""

    @staticmethod
    def candidates(settings: SearchSettings) -> int:
        """Return 1."""
        return 1

    def propose(  # noqa: D102
        self, history: Sequence[Outcome], generator: np.random.Generator
    ) -> np.ndarray:
        return self.widths()

    def widths(self) -> np.ndarray:
        """Return the candidate, int [G]; it has to meet the budget."""
        raise NotImplementedError
