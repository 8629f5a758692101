import importlib
import pkgutil
from dataclasses import dataclass, field

import numpy as np
import pytest

from gnnrl_ray import Budget, Objective, PruningEnv, SearchSettings, methods, search
from gnnrl_ray.methods import METHODS, method_of
from gnnrl_ray.methods.proposer import Proposer
from gnnrl_ray.methods.random import Random
from gnnrl_ray.methods.uniform import Uniform
from gnnrl_ray.run.journal import Journal

PROPOSERS = [name for name in METHODS if issubclass(method_of(name), Proposer)]


@dataclass
class Task:
    """What a method needs to propose."""

    objective: object
    settings: SearchSettings = field(default_factory=SearchSettings)


def proposed(method, objective, seed=0, history=()):
    return method(Task(objective)).propose(history, np.random.default_rng(seed))


def widths(folder):
    journal = Journal(folder / "journal.jsonl")
    return {episode: outcome.widths for episode, outcome in journal}


def test_every_file_is_a_method_that_is_listed():
    files = {module.name for module in pkgutil.iter_modules(methods.__path__)}
    listed = {path.partition(":")[0].rpartition(".")[2] for path in METHODS.values()}
    assert files - {"proposer"} <= listed
    for name in METHODS:
        assert method_of(name).candidates(SearchSettings(episodes=7)) in (1, 7)


def test_uniform_keeps_the_same_share_everywhere(objective, groups):
    widths = proposed(Uniform, objective)
    assert np.ptp(widths / groups.widths) < 1 / 16 + 1e-9
    assert objective.budget.meets(widths)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
def test_random_meets_the_budget_and_covers_the_space(
    network, groups, digits, costs, share
):
    objective = Objective(network, groups, digits, budget=share)
    seen = np.array([proposed(Random, objective, seed) for seed in range(200)])
    macs = costs.macs(seen) / costs.macs(groups.widths)
    assert (macs <= share).all()
    assert (macs > 0.85 * share).all()
    assert (seen >= objective.budget.min_widths).all()
    assert (np.ptp(seen, 0) >= 0.5 * groups.widths * (1 - share)).all()


def test_random_is_the_environment_under_a_random_action(objective):
    action = np.random.default_rng(5).random(6)
    env = PruningEnv({"objective": lambda: objective})
    env.reset()
    _, _, done, _, info = env.step(action)
    assert done
    assert tuple(proposed(Random, objective, 5)) == info["outcome"].widths


@pytest.mark.parametrize("name", PROPOSERS)
@pytest.mark.parametrize("limits", [{"flops": 0.4}, {"params": 0.3, "flops": 0.8}])
def test_every_proposal_meets_the_budget(network, groups, digits, name, limits):
    objective = Objective(network, groups, digits, budget=Budget(groups, limits))
    for seed in range(20):
        widths = proposed(method_of(name), objective, seed)
        assert objective.budget.meets(groups.check_widths(widths))


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("name", ["random"])  # all have the same loop
def test_actors_find_what_one_process_finds(network, digits, tmp_path, name):
    settings = {
        "method": name, "episodes": 7, "finetune": "none", "precision": "float32",
        "cpus_per_env_runner": 0.5,
    }  # fmt: skip
    status = []
    search(network, digits, out=tmp_path / "here", **settings)
    search(network, digits, out=tmp_path / "there", env_runners=2, **settings,
           on_status=lambda runners, failed: status.append(runners))  # fmt: skip
    here, there = (widths(tmp_path / name) for name in ("here", "there"))
    assert here == there
    assert any(set(runners) == {1, 2} for runners in status)
    # And they go on where they were.
    lines = (tmp_path / "there/journal.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "there/journal.jsonl").write_text("".join(lines[: len(lines) // 2]))
    search(network, digits, out=tmp_path / "there", env_runners=2, resume=True, **settings)
    assert widths(tmp_path / "there") == here


def test_a_method_sees_what_was_scored_before_it(network, digits, tmp_path, monkeypatch):
    seen = []

    class Watching(Random):
        def propose(self, history, generator):
            seen.append([outcome.accuracy for outcome in history])
            return super().propose(history, generator)

    module = importlib.import_module("gnnrl_ray.methods.random")
    monkeypatch.setattr(module, "Watching", Watching, raising=False)
    monkeypatch.setitem(METHODS, "watching", "gnnrl_ray.methods.random:Watching")
    search(network, digits, method="watching", episodes=4, finetune="none",
           precision="float32", out=tmp_path / "run")  # fmt: skip
    scored = [o.accuracy for _, o in Journal(tmp_path / "run/journal.jsonl")]
    assert seen == [scored[:n] for n in range(4)]
