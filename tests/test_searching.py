import json
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.sleeping import Broken, searching
from tensorboardX.proto.event_pb2 import Event
from torch import nn

from gnnrl_ray import accuracy, load_pruned, search
from gnnrl_ray.actors.placement import PlacementError
from gnnrl_ray.errors import EpisodeError, InputError
from gnnrl_ray.jobs.searching import Search
from gnnrl_ray.run.directory import Run, RunError
from gnnrl_ray.run.journal import Journal
from gnnrl_ray.run.lock import LockError, locked
from gnnrl_ray.scoring.objective import Objective
from gnnrl_ray.settings import PRECISIONS, SearchSettings
from gnnrl_ray.storage import Storage


@pytest.fixture
def digits(digits):
    """Scored on a quarter of them: as many candidates, sooner."""
    return replace(digits, validation=digits.validation.take(torch.arange(100)))


@pytest.fixture
def short(network, digits, tmp_path):
    """Search in ``tmp_path / "run"`` with small numbers."""

    def short(method="random", **settings):
        settings = {
            "episodes": 6,
            "finetune": "none",
            "precision": "float32",  # what is fastest is not for tests to depend on
            "out": tmp_path / "run",
        } | settings
        return search(network, digits, method=method, progress=False, **settings).best

    return short


AGENT = {"warmup_episodes": 4, "updates_per_step": 2, "hidden": (16,), "graph_dim": 8}


def scalars(folder):
    """Return what was written for TensorBoard, in the order of episodes, by name."""
    found = {}
    for path in folder.glob("events.out.tfevents*"):
        content = path.read_bytes()
        while content:
            (size,) = struct.unpack("<Q", content[:8])
            event = Event.FromString(content[12 : 12 + size])
            content = content[16 + size :]
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = value.simple_value
    return {name: [by[step] for step in sorted(by)] for name, by in found.items()}


def widths(folder):
    return [outcome.widths for _, outcome in Journal(folder / "journal.jsonl")]


def test_random_search_keeps_the_best(short, tmp_path, network, digits, costs):
    seen = []
    best = short(on_episode=lambda done, best: seen.append((done, best.accuracy)))
    outcomes = [o for _, o in Journal(tmp_path / "run/journal.jsonl")]
    assert [done for done, _ in seen] == [1, 2, 3, 4, 5, 6]
    assert seen[-1][1] == best.accuracy == max(o.accuracy for o in outcomes)
    assert all(o.macs <= costs.macs(costs.groups.widths) / 2 for o in outcomes)
    facts = json.loads((tmp_path / "run/best.json").read_text())
    assert list(facts["groups"].values()) == list(best.widths)
    winner = load_pruned(tmp_path / "run", network)
    assert accuracy(winner, digits.validation) == best.accuracy


def test_uniform_has_one_candidate(short, tmp_path):
    best = short("uniform", episodes=180)
    assert len(widths(tmp_path / "run")) == 1
    assert np.ptp(np.array(best.widths) / [16, 16, 32, 32, 64, 64]) < 1 / 16


class Tied(nn.Module):
    """Two layers that share a weight, as they do in siamese and recurrent ones."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1)
        self.third, self.classifier = nn.Conv2d(8, 8, 1), nn.Linear(8, 10)
        self.third.weight = self.second.weight

    def forward(self, x):
        x = self.third(self.second(self.first(x)).relu()).relu()
        return self.classifier(x.mean((2, 3)))


def test_tied_weights_are_kept_and_stay_tied(digits, tmp_path):
    found = search(
        Tied().eval(), digits, method="uniform", finetune=2, out=tmp_path, progress=False
    )
    again = load_pruned(tmp_path, Tied())
    assert again.third.weight is again.second.weight
    assert again.third.weight.shape[0] < 8
    x = torch.randn(4, 3, 32, 32)
    assert torch.allclose(again(x), found.network.eval()(x), atol=1e-5)
    assert accuracy(again, digits.validation) == found.best.accuracy


def test_seeds_decide(short, tmp_path):
    short(out=tmp_path / "a", seed=1)
    short(out=tmp_path / "b", seed=1)
    short(out=tmp_path / "c", seed=2)
    assert widths(tmp_path / "a") == widths(tmp_path / "b") != widths(tmp_path / "c")


def test_an_interrupted_search_scores_nothing_twice(short, network, tmp_path, monkeypatch):
    straight = short(out=tmp_path / "straight")
    scored = []
    build = Objective.build

    def interrupt(self, candidate):
        if len(scored) == 3:
            scored.append(None)
            raise KeyboardInterrupt
        scored.append(tuple(candidate))
        return build(self, candidate)

    monkeypatch.setattr(Objective, "build", interrupt)
    with pytest.raises(KeyboardInterrupt):
        short()
    # What there was is whole: the journal, the best so far and its weights.
    assert len(widths(tmp_path / "run")) == 3
    assert load_pruned(tmp_path / "run", network).conv1.out_channels < 16
    scored.clear()
    scored.extend([None] * 10)
    again = short(resume=True)
    assert again.widths == straight.widths
    assert widths(tmp_path / "run") == widths(tmp_path / "straight")
    assert len(scored) - 10 == 3 + 1  # three candidates, and the winner's weights


def test_how_candidates_are_evaluated_is_chosen_once(short, tmp_path, monkeypatch):
    short(episodes=2, precision="auto")
    facts = json.loads((tmp_path / "run/run.json").read_text())
    assert facts["evaluation"]["precision"] in PRECISIONS
    assert facts["evaluation"]["batch"] > 0
    monkeypatch.setattr(Objective, "choose", lambda *_: pytest.fail("a second time"))
    short(episodes=3, precision="auto", resume=True)
    again = json.loads((tmp_path / "run/run.json").read_text())
    assert again == facts | {"settings": facts["settings"] | {"episodes": 3}}


def test_unknown_precisions_are_refused(short):
    with pytest.raises(
        ValueError, match="--precision 'int4' is not one of 'auto', 'plain'"
    ):
        short(precision="int4")


def test_an_early_stop_keeps_the_best(short, tmp_path):
    """Estimates are marked, and the winner is none of them."""
    exact = short(out=tmp_path / "exact", episodes=12)
    hasty = short(out=tmp_path / "hasty", episodes=12, early_stop=True)
    assert hasty == replace(exact, seconds=hasty.seconds)
    both = [Journal(tmp_path / name / "journal.jsonl") for name in ("exact", "hasty")]
    for (_, full), (_, outcome) in zip(*both, strict=True):
        assert outcome.widths == full.widths
        assert full.images is None
        if outcome.images is None:
            assert outcome.accuracy == full.accuracy


def test_a_run_in_the_way_is_refused(short, tmp_path, monkeypatch):
    short()
    with monkeypatch.context() as patched:
        late = lambda *_: pytest.fail("only after something that may take long")  # noqa: E731
        patched.setattr("gnnrl_ray.jobs.searching.Search", late)
        with pytest.raises(RunError, match="--resume"):
            short()
        with locked(Storage(tmp_path / "run")):
            for overwrite in (False, True):
                with pytest.raises(LockError, match="is being worked on by process"):
                    short(overwrite=overwrite)
    short(overwrite=True)


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"flops": 0.6}, "--flops 0.5, not 0.6"), ({"seed": 1}, "--seed 0, not 1")],
)
def test_a_run_goes_on_as_it_was_started(short, changed, message):
    short()
    with pytest.raises(InputError, match=message):
        short(resume=True, **changed)


def test_a_run_can_be_made_longer(short, tmp_path):
    short(episodes=3)
    short(episodes=5, resume=True)
    assert len(widths(tmp_path / "run")) == 5


def test_unknown_methods_list_the_known(short):
    with pytest.raises(
        ValueError, match="'greedy' is not one of 'gnn-rl', 'uniform', 'shallow'"
    ):
        short("greedy")


@pytest.mark.usefixtures("ray_session")
def test_the_agent_searches_resumes_and_repeats_itself(short, tmp_path, monkeypatch):
    straight = short("gnn-rl", agent=AGENT, episodes=14, out=tmp_path / "straight")
    assert len(widths(tmp_path / "straight")) == 14
    assert (tmp_path / "straight/checkpoint.zip").is_file()
    said = scalars(tmp_path / "straight/events")
    outcomes = [outcome for _, outcome in Journal(tmp_path / "straight/journal.jsonl")]
    assert said["reward"] == pytest.approx([o.reward for o in outcomes], abs=1e-6)
    assert said["images"] == 14 * [100]
    for name in ("critic_loss", "actor_loss", "q"):  # from the end of the warm-up on
        assert 9 <= len(said[name]) <= 11, name
        assert len(set(said[name])) == len(said[name])
    assert min(said["critic_loss"]) > 0
    assert "noise" not in said  # it has none

    def interrupt(done, best):
        if done == 12:  # after a checkpoint, before the next
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        short("gnn-rl", agent=AGENT, episodes=14, on_episode=interrupt)
    assert len(widths(tmp_path / "run")) == 12
    built, build = [], Objective.build
    monkeypatch.setattr(Objective, "build", lambda *given: built.append(1) or build(*given))
    told = []
    resumed = short("gnn-rl", agent=AGENT, episodes=14, resume=True,
                    on_episode=lambda done, best: told.append(done))  # fmt: skip
    # What came after the checkpoint is replayed from the journal, not scored again.
    assert len(built) == 2 + 1  # two candidates, and the winner's weights
    assert told == [13, 14]
    assert resumed.widths == straight.widths
    assert widths(tmp_path / "run") == widths(tmp_path / "straight")


@pytest.mark.usefixtures("ray_session")
@pytest.mark.cluster
def test_remote_env_runners_find_the_same(short, tmp_path):
    short("gnn-rl", agent=AGENT, episodes=6, out=tmp_path / "local")
    there, said = tmp_path / "remote", []
    short(
        "gnn-rl", agent=AGENT, episodes=6, out=there, env_runners=1,
        on_episode=lambda *_: said.append(Run.open(there).actors()),
    )  # fmt: skip
    assert widths(tmp_path / "local") == widths(tmp_path / "remote")
    # What actors do can be read meanwhile, and is gone with them.
    assert {actor for _, rows in filter(None, said) for actor, _, _ in rows} == {1}
    assert Run.open(there).actors() is None


@pytest.mark.usefixtures("ray_session")
@pytest.mark.slow
def test_a_run_behind_a_uri(short, tmp_path, network, s3):
    """Journal, winner, events and checkpoint are where the URI says."""
    where = f"{s3}/{tmp_path.name}/run"
    short("gnn-rl", agent=AGENT, episodes=5, out=where)
    storage = Storage(where)
    for name in ("run.json", "journal.jsonl", "best.json", "checkpoint.zip"):
        assert storage.exists(name), name
    assert len(storage._files.glob(f"{storage._root}/events/*")) == 1
    best = short("gnn-rl", agent=AGENT, episodes=8, out=where, resume=True)
    assert len(Journal(f"{where}/journal.jsonl")) == 8
    assert load_pruned(where, network).conv1.out_channels == best.widths[0]


@pytest.mark.usefixtures("ray_session")
def test_missed_budgets_are_in_the_journal(short, tmp_path):
    agent = AGENT | {"algorithm": "ddpg"}  # the other one never misses
    settings = {"agent": agent, "on_timeout": "penalty", "max_steps": 1, "fit": False}
    short("gnn-rl", episodes=8, **settings)
    journal = Journal(tmp_path / "run/journal.jsonl")
    assert len(journal) == 8
    assert journal.failures
    assert set(journal.failures.values()) == {"the budget was not met in 1 steps"}
    noise = scalars(tmp_path / "run/events")["noise"]
    assert noise == pytest.approx([0.5 * 0.97**n for n in range(4)])
    short("gnn-rl", episodes=9, resume=True, **settings)
    assert len(Journal(tmp_path / "run/journal.jsonl")) == 9


@pytest.mark.usefixtures("ray_session")
@pytest.mark.cluster
def test_a_search_that_only_fails_is_stopped(short, monkeypatch, tmp_path):
    """What is wrong in the actors is said here, and not tried 180 times."""
    monkeypatch.setattr(searching, "Objective", Broken)
    with pytest.raises(
        EpisodeError, match=r"10 episodes in a row .* ZeroDivisionError: no"
    ):
        short("gnn-rl", agent=AGENT, episodes=50, env_runners=1, max_retries=0)
    failures = Journal(tmp_path / "run/journal.jsonl").failures
    assert failures == dict.fromkeys(range(10), "ZeroDivisionError: no")
    # Once that is mended, it goes on with the next.
    monkeypatch.undo()
    short("gnn-rl", agent=AGENT, episodes=12, resume=True)
    assert [e for e, _ in Journal(tmp_path / "run/journal.jsonl")] == [10, 11]


@pytest.mark.usefixtures("ray_session")
def test_too_many_env_runners_are_refused(short):
    with pytest.raises(
        PlacementError, match="--env-runners 9 of 1 CPUs each do not fit: they need 9 x 1"
    ):
        short("gnn-rl", env_runners=9)


@pytest.mark.usefixtures("ray_session")
def test_a_journal_of_another_search_is_not_replayed(short, tmp_path):
    short("gnn-rl", agent=AGENT, episodes=4)
    path = tmp_path / "run/journal.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[2]["actions"] = lines[1]["actions"]
    for line in lines:  # an old journal, and another search's
        del line["crc32"]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "run/checkpoint.zip").unlink()
    with pytest.raises(RunError, match=r"episode 2 in .* is not of this network"):
        short("gnn-rl", agent=AGENT, episodes=6, resume=True)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_stops_a_search_that_can_go_on(short, tmp_path):
    straight = short(out=tmp_path / "straight")
    journal, aside = tmp_path / "run/journal.jsonl", tmp_path / "aside"

    def fill(done, best):
        if done == 3:
            journal.rename(aside)
            journal.symlink_to("/dev/full")

    with pytest.raises(OSError, match=r"No space left on device: '.*/journal.jsonl'"):
        short(on_episode=fill)
    aside.replace(journal)
    assert len(Journal(journal)) == 3
    assert short(resume=True).widths == straight.widths


def test_what_works_in_another_folder_meanwhile_moves_nothing(
    network, digits, tmp_path, monkeypatch
):
    def move(done, best):
        (tmp_path / f"{done}").mkdir()
        monkeypatch.chdir(tmp_path / f"{done}")

    (tmp_path / "first").mkdir()
    monkeypatch.chdir(tmp_path / "first")
    found = search(network, digits, flops=0.5, method="random", episodes=3, out="run",
                   progress=False, on_episode=move)  # fmt: skip
    assert accuracy(found.network, digits.validation) == found.best.accuracy
    assert len(Run.open(tmp_path / "first/run").journal) == 3
    assert not [*tmp_path.glob("[123]/*")]


def test_it_says_what_it_is_at_before_there_are_episodes(network, digits, tmp_path):
    said = []
    settings = SearchSettings(method="gnn-rl", episodes=2, agent=AGENT, finetune="none",
                              device="cpu")  # fmt: skip
    Search(network, digits, settings).run(
        tmp_path / "run", on_phase=said.append,
        on_episode=lambda done, best: said.append(done),
    )  # fmt: skip
    assert said == ["trying how to evaluate", "starting Ray", "building the agent", 1, 2]
