"""A search at work: what every method of search is given."""

from collections.abc import Callable
from dataclasses import dataclass, field

from gnnrl_ray.errors import EpisodeError
from gnnrl_ray.run.directory import Run
from gnnrl_ray.run.journal import EpisodeRecord
from gnnrl_ray.scoring.objective import Objective
from gnnrl_ray.scoring.outcome import Outcome
from gnnrl_ray.settings import SearchSettings

_HOPELESS = 10  # failed episodes in a row

OnEpisode = Callable[[int, Outcome | None], None]
# What each actor does and for how many seconds, and how many episodes have failed.
OnStatus = Callable[[dict[int, tuple[str, float]], int], None]
# How many trainings of finalists are over, of how many, and the accuracy after the last.
OnFinalist = Callable[[int, int, float], None]


@dataclass
class Task:
    """Candidates to find for one run.

    Attributes:
        objective: scores them.
        run: its settings say how, its journal what is known.
        on_episode: called with the number of episodes that are over, and the best outcome
            so far, if there is one.
        on_status: called a few times a second where episodes are elsewhere.
        on_finalist: called with how many trainings of finalists are over, of how many, and
            the accuracy after the last.
        on_phase: called with what is being done before there are episodes.
    """

    objective: Objective
    run: Run
    on_episode: OnEpisode | None = None
    on_status: OnStatus | None = None
    on_finalist: OnFinalist | None = None
    on_phase: Callable[[str], None] | None = None
    _failed_in_a_row: int = field(default=0, init=False)

    @property
    def settings(self) -> SearchSettings:
        """Of the search."""
        return self.run.settings

    def say(self, phase: str) -> None:
        """Tell whoever waits what is being done."""
        if self.on_phase is not None:
            self.on_phase(phase)

    def record(self, episode: int, record: EpisodeRecord) -> None:
        """Write down what became of an episode, before anything follows from it.

        Raises:
            EpisodeError: one episode after the other has failed.
        """
        journal = self.run.journal
        replayed = episode in journal
        journal.append(episode, record)
        best, winner = journal.best(), journal.winner()
        if record.outcome is not None:
            self.objective.remember([record.outcome])
        if winner is not None and winner[0] == episode:
            kept = self.objective.kept(winner[1].widths)
            self.run.write_best(self.objective.budget, kept)
        if replayed:  # whoever looks on was told of it when it was new
            self.say(f"learning from the journal, {episode + 1}/{len(journal)}")
        elif self.on_episode is not None:
            self.on_episode(len(journal), best[1] if best else None)
        lost = record.outcome is None and record.actions is None
        if lost and not replayed:
            self._failed_in_a_row += 1
        elif not lost:
            self._failed_in_a_row = 0
        if self._failed_in_a_row >= _HOPELESS:
            raise EpisodeError(
                f"{_HOPELESS} episodes in a row have failed, the last one because: "
                f"{record.failed}. With --env-runners 0 the error is raised here."
            )

    def report(self, status: dict[int, tuple[str, float]]) -> None:
        """Pass on what each actor does, and leave it in the run for who looks on."""
        self.run.report_actors(status)
        if self.on_status is not None:
            self.on_status(status, len(self.run.journal.failures))
