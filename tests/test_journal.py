import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gnnrl_ray import Outcome
from gnnrl_ray.run.journal import EpisodeRecord, Journal, JournalError


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


@pytest.mark.parametrize("cut", [2, 10, 60])
def test_a_torn_last_line_is_dropped(path, cut):
    journal = Journal(path)
    journal.append(0, outcome(0.25))
    whole = path.read_bytes()
    journal.append(1, outcome(0.5))
    path.write_bytes(path.read_bytes()[:-cut])
    torn = path.read_bytes()
    journal = Journal(path)
    assert list(journal) == [(0, outcome(0.25))]
    assert path.read_bytes() == torn  # who only reads changes nothing
    journal.append(2, outcome(0.5))
    assert path.read_bytes().startswith(whole)
    assert [episode for episode, _ in Journal(path)] == [0, 2]


def test_a_last_line_that_only_lacks_its_end_is_kept(path):
    journal = Journal(path)
    journal.append(0, outcome(0.25))
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    journal = Journal(path)
    assert len(journal) == 1
    journal.append(1, outcome(0.5))
    assert path.read_bytes().startswith(whole)
    assert len(Journal(path)) == 2


def test_journals_of_older_versions_go_on(path):
    old = {"episode": 0} | outcome(0.25).to_dict()
    del old["images"]
    path.write_text(json.dumps(old) + "\n")
    Journal(path).append(1, outcome(0.5))
    assert list(Journal(path)) == [(0, outcome(0.25)), (1, outcome(0.5))]
    # But not after lines of this one.
    path.write_text(path.read_text() + json.dumps(old | {"episode": 2}) + "\n")
    with pytest.raises(JournalError, match=r":3 is not an outcome \(it has no checksum\)"):
        Journal(path)


@pytest.mark.parametrize(
    "wrong",
    [{"reward": 5.0}, {"accuracy": 1.5, "reward": 0.5}, {"accuracy": None},
     {"reward": -0.25}, {"accuracy": float("nan")}, {"seconds": float("inf")},
     {"seconds": -1}, {"widths": ["1", "2"]}, {"widths": None}, {"widths": [0, 1]},
     {"widths": [True]}, {"macs": 1.5}, {"params": -1}, {"episode": -1}, {"episode": "0"},
     {"episode": None}, {"images": 0}, {"actions": [1]}, {"actions": [["a"]]},
     {"failed": 3}, {"more": 1}, {"macs": 2**70}],
)  # fmt: skip
def test_what_cannot_be_is_named(path, wrong):
    fields = {"episode": 0} | outcome(0.25).to_dict()
    path.write_text(json.dumps(fields) + "\n")
    assert len(Journal(path)) == 1
    path.write_text(json.dumps(fields | wrong) + "\n")
    with pytest.raises(JournalError, match=r"journal\.jsonl:1 is not an outcome"):
        Journal(path)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(0, 255))
def test_no_altered_byte_is_taken(tmp_path_factory, where, byte):
    path = tmp_path_factory.getbasetemp() / "altered.jsonl"
    path.unlink(missing_ok=True)
    journal = Journal(path)
    for episode in range(3):
        actions = [[0.25, 0.5]] if episode else None
        journal.append(episode, EpisodeRecord(outcome(episode / 4), actions))
    content = bytearray(path.read_bytes())
    where %= len(content)
    changed = content[where] != byte
    content[where] = byte
    path.write_bytes(content)
    before = [o for _, o in journal]
    try:
        after = [o for _, o in Journal(path)]
    except JournalError:
        assert changed
    else:
        # Of the last line it may look as if a crash had cut it short.
        assert after == before or (changed and after == before[:2])


def test_other_ends_of_lines_lose_nothing(path):
    journal = Journal(path)
    for episode in range(3):
        journal.append(episode, outcome(0.25))
    content = path.read_bytes().replace(b"\n", b"\r")
    path.write_bytes(content)
    with pytest.raises(JournalError, match="does not end its lines as it should"):
        Journal(path)
    assert path.read_bytes() == content


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
