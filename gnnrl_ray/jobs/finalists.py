"""The best candidates of a search, trained a little, the better half of them more.

What wins before fine-tuning need not win after it. Successive halving (Karnin et al. 2013,
https://proceedings.mlr.press/v28/karnin13.html; Jamieson & Talwalkar 2016,
https://arxiv.org/abs/1502.07943): every round trains half as many for twice as long, so all
rounds cost the same. Each training starts from the pruned network, with a schedule of its
own length.

Axis letter: G prunable groups.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from gnnrl_ray.errors import Notice
from gnnrl_ray.run.journal import FinalistRecord, Journal
from gnnrl_ray.run.task import Task
from gnnrl_ray.scoring.training import TrainingError

if TYPE_CHECKING:  # Ray takes seconds to import, and what runs here does without
    from gnnrl_ray.actors.dispatch import Dispatcher

_APART = 0.02  # mean difference of ratios, from which on two candidates differ
_WAIT_SECONDS = 0.2

# One training: the episode whose candidate it is of, and the steps.
Training = tuple[int, int]
Trainer = Callable[[Sequence[Training]], Iterator[FinalistRecord]]


def choose_finalists(journal: Journal, dense: np.ndarray, count: int) -> list[int]:
    """Return the episodes of the ``count`` best candidates that differ, best first.

    Where there are fewer, all that there are.

    Args:
        journal: of the search.
        dense: int [G], widths of the dense network; differences are shares of them.
        count: how many, at most.
    """
    chosen: dict[int, np.ndarray] = {}
    for episode, outcome in sorted(journal, key=lambda item: (-item[1].reward, item[0])):
        if len(chosen) == count:
            break
        shares = np.array(outcome.widths) / dense
        if all(np.abs(shares - other).mean() >= _APART for other in chosen.values()):
            chosen[episode] = shares
    return list(chosen)


def rounds(count: int) -> list[int]:
    """Return how many finalists are trained in each round: 5, 3, 2 of 5."""
    sizes = []
    while count > 1:
        sizes.append(count)
        count = -(-count // 2)
    return sizes


def run_finalists(task: Task) -> None:
    """Train the finalists of a finished search, and write down what they score.

    What the journal has is not trained again. A training that diverges, or is lost too
    often, is out of the race.

    Raises:
        PlacementError: the cluster has no room for the actors.
        EpisodeError: every actor died.
    """
    settings, journal = task.settings, task.run.journal
    dense = task.objective.groups.widths
    left = choose_finalists(journal, dense, settings.finalists)
    sizes = rounds(len(left))
    steps, done = task.objective.steps(settings.finalist_epochs), 0
    with _trainer(task) as train:
        for size in sizes:
            wanted = [(episode, steps) for episode in left[:size]]
            done += sum(journal.finalist(*training) is not None for training in wanted)
            for record in train([t for t in wanted if journal.finalist(*t) is None]):
                journal.append_finalist(record)
                done += 1
                if task.on_finalist is not None:
                    task.on_finalist(done, sum(sizes), record.accuracy)
            found = [r for t in wanted if (r := journal.finalist(*t)) is not None]
            found.sort(key=lambda record: -record.accuracy)  # stable: the first of equals
            left, steps = [record.finalist for record in found], 2 * steps


@contextmanager
def _trainer(task: Task) -> Iterator[Trainer]:
    """Give out what trains: this process, or actors as the settings of ``task`` say."""
    if not task.settings.env_runners:
        yield partial(_train_here, task)
        return
    from gnnrl_ray.actors.connection import connected
    from gnnrl_ray.actors.scorer import start_scorers

    with connected(task.settings.address), start_scorers(task) as dispatcher:
        dispatcher.limit = 0
        yield partial(_train_on_actors, task, dispatcher)


def _train_here(task: Task, trainings: Sequence[Training]) -> Iterator[FinalistRecord]:
    for episode, steps in trainings:
        try:
            found = task.objective.score_after(_widths(task, episode), steps)
        except TrainingError as error:
            _is_out(episode, steps, str(error))
        else:
            yield FinalistRecord(episode, steps, *found)


def _train_on_actors(
    task: Task, dispatcher: "Dispatcher", trainings: Sequence[Training]
) -> Iterator[FinalistRecord]:
    first = int(dispatcher.limit)
    dispatcher.limit += len(trainings)
    while not dispatcher.exhausted:
        while dispatcher.idle and dispatcher.peek() < dispatcher.limit:
            episode, steps = trainings[dispatcher.peek() - first]
            widths = _widths(task, episode)
            dispatcher.start(dispatcher.idle[0], widths=widths, steps=steps)
        for finished in dispatcher.collect(_WAIT_SECONDS):
            training = trainings[finished.number - first]
            if finished.failed is not None:
                _is_out(*training, finished.failed)
            else:
                yield FinalistRecord(*training, *finished.result)
        task.report(dispatcher.status())


def _widths(task: Task, episode: int) -> tuple[int, ...]:
    return dict(task.run.journal)[episode].widths


def _is_out(episode: int, steps: int, reason: str) -> None:
    message = f"finalist {episode} is out after {steps} steps: {reason}"
    warnings.warn(message, Notice, stacklevel=3)
