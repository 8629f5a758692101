import json

import pytest

from gnnrl_ray import Outcome
from gnnrl_ray.run.journal import Journal, JournalError


def outcome(accuracy):
    return Outcome((1, 2), 10, 20, accuracy, accuracy - 1, 0.5)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal.jsonl"


def test_outcomes_are_on_disk_once_added(path):
    journal = Journal(path)
    journal.append(0, outcome(0.25))
    journal.append(2, outcome(0.75))
    assert list(Journal(path)) == [(0, outcome(0.25)), (2, outcome(0.75))]
    assert len(journal) == 2
    assert 2 in journal
    assert 1 not in journal


def test_an_episode_is_written_once(path):
    journal = Journal(path)
    journal.append(0, outcome(0.25))
    journal.append(0, outcome(0.5))
    assert list(Journal(path)) == [(0, outcome(0.25))]
    assert path.read_text().count("\n") == 1


@pytest.mark.parametrize("cut", [1, 10, 60])
def test_a_torn_last_line_is_dropped(path, cut):
    journal = Journal(path)
    journal.append(0, outcome(0.25))
    whole = path.read_bytes()
    journal.append(1, outcome(0.5))
    path.write_bytes(path.read_bytes()[:-cut])
    journal = Journal(path)
    assert list(journal) == [(0, outcome(0.25))]
    assert path.read_bytes() == whole
    journal.append(1, outcome(0.5))
    assert len(Journal(path)) == 2


@pytest.mark.parametrize("line", ["nonsense", "{}", json.dumps({"episode": 1}), "[]"])
def test_damage_elsewhere_is_named(path, line):
    journal = Journal(path)
    journal.append(0, outcome(0.25))
    path.write_text(line + "\n" + path.read_text())
    with pytest.raises(JournalError, match=r"journal\.jsonl:1 is not an outcome"):
        Journal(path)


def test_the_best_is_the_first_of_equals(path):
    journal = Journal(path)
    assert journal.best() is None
    for episode, accuracy in enumerate((0.25, 0.75, 0.75, 0.5)):
        journal.append(episode, outcome(accuracy))
    assert journal.best() == (1, outcome(0.75))
