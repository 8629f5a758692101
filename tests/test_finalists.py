import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gnnrl_ray import Objective, Outcome, SearchSettings, load_pruned, search
from gnnrl_ray.errors import Notice
from gnnrl_ray.jobs import finalists
from gnnrl_ray.jobs.finalists import choose_finalists, rounds
from gnnrl_ray.pruning.budget import Budget
from gnnrl_ray.run.directory import Run
from gnnrl_ray.run.journal import FinalistRecord, Journal, JournalError
from gnnrl_ray.scoring.training import TrainingError

SEARCH = {
    "method": "random", "episodes": 6, "finetune": "none", "precision": "float32",
    "finalist_epochs": 0.3,
}  # fmt: skip


@pytest.fixture
def digits(digits):
    """Scored on a quarter of them: as many candidates, sooner."""
    return replace(digits, validation=digits.validation.take(torch.arange(100)))


def trained(folder):
    """Return {(episode, steps): accuracy} in the order of the lines."""
    lines = map(json.loads, (folder / "journal.jsonl").read_text().splitlines())
    return {
        (line["finalist"], line["steps"]): line["accuracy"]
        for line in lines
        if "finalist" in line
    }


def outcome(widths, accuracy):
    return Outcome(tuple(widths), 1, 1, accuracy, accuracy - 1, 0.1)


def test_finalists_are_the_best_that_differ(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl")
    for episode, (widths, accuracy) in enumerate(
        [((50, 50), 0.5), ((50, 51), 0.7), ((51, 51), 0.7), ((90, 10), 0.6),
         ((50, 56), 0.65), ((10, 90), 0.1)]
    ):  # fmt: skip
        journal.append(episode, outcome(widths, accuracy))
    dense = np.array([100, 100])
    assert choose_finalists(journal, dense, 3) == [1, 4, 3]
    assert choose_finalists(journal, dense, 1) == [1]
    assert choose_finalists(journal, dense, 9) == [1, 4, 3, 5]


@given(st.integers(0, 200))
@settings(deadline=None)
def test_rounds_halve(count):
    sizes = rounds(count)
    assert sizes == [] if count < 2 else sizes[0] == count and sizes[-1] == 2
    assert all(b == -(-a // 2) for a, b in pairwise(sizes))


def test_the_winner_is_that_of_training_by_hand(network, groups, digits, tmp_path):
    told = []
    found = search(network, digits, out=tmp_path / "run", finalists=4, **SEARCH,
                   on_finalist=lambda *said: told.append(said)).best  # fmt: skip
    run = Run.open(tmp_path / "run")
    assert len(run.journal) == 6
    objective = Objective.of(
        network, digits, Budget.of(groups, run.settings), run.settings
    ).to("cpu")
    objective.mode = run.mode
    left = choose_finalists(run.journal, groups.widths, 4)
    expected, steps = {}, 2  # 0.3 epochs of 8 steps
    while len(left) > 1:
        for episode in left:
            widths = run.journal.record(episode).outcome.widths
            expected[episode, steps] = objective.score_after(widths, steps)[0]
        left = sorted(left, key=lambda e: -expected[e, steps])[: (len(left) + 1) // 2]
        steps *= 2
    assert trained(tmp_path / "run") == expected
    (winner,) = left
    assert [t[:2] for t in told] == [(n, 6) for n in range(1, 7)]
    assert run.best()["episode"] == winner
    assert run.best()["finalist"]["accuracy"] == expected[winner, steps // 2]
    assert found == run.journal.record(winner).outcome
    # What is kept is the winner, as it was before that training.
    kept = load_pruned(tmp_path / "run", network).state_dict()
    built = objective.build(found.widths).state_dict()
    assert all(torch.equal(kept[k], v) for k, v in built.items() if k in kept)


def test_they_go_on_where_they_were_and_train_nothing_twice(
    network, digits, tmp_path, monkeypatch
):
    search(network, digits, out=tmp_path / "whole", finalists=4, **SEARCH)
    whole = trained(tmp_path / "whole")
    score_after, counted = Objective.score_after, []

    def count(self, widths, steps):
        counted.append(steps)
        return score_after(self, widths, steps)

    monkeypatch.setattr(Objective, "score_after", count)

    def interrupt(done, total, accuracy):
        if done == 3:
            raise KeyboardInterrupt

    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        search(network, digits, out=out, finalists=4, on_finalist=interrupt, **SEARCH)
    so_far = Run.open(out)
    assert so_far.best()["episode"] == so_far.journal.winner()[0]
    assert len(trained(out)) == len(counted) == 3
    search(network, digits, out=out, resume=True)
    assert trained(out) == whole
    assert len(counted) == 6
    assert Run.open(out).best()["episode"] == Run.open(tmp_path / "whole").best()["episode"]


def test_a_search_that_is_over_gets_finalists(network, digits, tmp_path):
    best = search(network, digits, out=tmp_path / "run", **SEARCH).best
    assert Run.open(tmp_path / "run").best()["finalist"] is None
    for _ in range(2):
        found = search(network, digits, out=tmp_path / "run", resume=True, finalists=3).best
        run = Run.open(tmp_path / "run")
        assert len(trained(tmp_path / "run")) == 5  # 3 and 2
        assert run.settings.finalists == 3
        assert found == run.journal.winner()[1]
    assert best.reward >= found.reward


@pytest.mark.cluster
@pytest.mark.usefixtures("ray_session")
def test_actors_find_the_same_winner(network, digits, tmp_path):
    search(network, digits, out=tmp_path / "here", finalists=3, **SEARCH)
    search(network, digits, out=tmp_path / "there", resume=False, **SEARCH)
    search(network, digits, out=tmp_path / "there", resume=True, finalists=3,
           env_runners=2, cpus_per_env_runner=0.5)  # fmt: skip
    here, there = trained(tmp_path / "here"), trained(tmp_path / "there")
    assert here == there
    winners = [Run.open(tmp_path / name).best()["episode"] for name in ("here", "there")]
    assert winners[0] == winners[1]


def test_what_diverges_is_out(network, digits, tmp_path, monkeypatch):
    score_after, first = Objective.score_after, []

    def diverge(self, widths, steps):
        if not first:
            first.append(widths)
            raise TrainingError("the loss is nan")
        return score_after(self, widths, steps)

    monkeypatch.setattr(Objective, "score_after", diverge)
    with pytest.warns(Notice, match="is out after 2 steps: the loss is nan"):
        search(network, digits, out=tmp_path / "run", finalists=4, **SEARCH)
    run = Run.open(tmp_path / "run")
    assert run.best()["finalist"] is not None
    assert run.journal.winner()[1].widths != first[0]


def test_none_where_there_is_one_candidate(network, digits, tmp_path):
    search(network, digits, out=tmp_path / "run", **SEARCH | {"method": "uniform"},
           finalists=4)  # fmt: skip
    assert trained(tmp_path / "run") == {}
    assert Run.open(tmp_path / "run").best()["finalist"] is None


@pytest.mark.parametrize(
    "change",
    [{"finalist": 7}, {"finalist": -1}, {"finalist": True}, {"steps": 0}, {"steps": 2.5},
     {"accuracy": 1.5}, {"accuracy": None}, {"accuracy": True}, {"seconds": -1},
     {"more": 1}],
)  # fmt: skip
def test_a_journal_with_a_finalist_that_cannot_be_is_refused(tmp_path, change):
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    journal.append(0, outcome((3, 4), 0.5))
    journal.append_finalist(FinalistRecord(0, 8, 0.6, 1.5))
    assert Journal(path).winner()[2] == FinalistRecord(0, 8, 0.6, 1.5)
    lines = path.read_text().splitlines()
    fields = json.loads(lines[1]) | change
    del fields["crc32"]
    path.write_text(
        f"{lines[0].split(', ' + chr(34) + 'crc32')[0]}}}\n{json.dumps(fields)}\n"
    )
    with pytest.raises(JournalError, match=r"journal.jsonl:2 is not an outcome"):
        Journal(path)


def test_the_schedule_is_of_the_settings():
    assert SearchSettings().finalists == 0
    assert finalists.rounds(5) == [5, 3, 2]
