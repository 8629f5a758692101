import copy
import importlib
import json
import pkgutil
import shutil
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.networks import build
from helpers.widths import cut
from torch import nn

from gnnrl_ray import (
    Budget,
    Costs,
    Objective,
    Outcome,
    PruningEnv,
    SearchSettings,
    accuracy,
    methods,
    search,
    trace,
)
from gnnrl_ray.actors import sharing
from gnnrl_ray.actors.placement import PlacementError
from gnnrl_ray.errors import InputError, Notice
from gnnrl_ray.graph.facts import inside_blocks
from gnnrl_ray.methods import METHODS, method_of
from gnnrl_ray.methods.fp import DROPPED
from gnnrl_ray.methods.proposer import Proposer
from gnnrl_ray.methods.random import Random
from gnnrl_ray.methods.uniform import Uniform
from gnnrl_ray.run.directory import RunError
from gnnrl_ray.run.journal import Journal
from gnnrl_ray.run.task import Task as SearchTask
from gnnrl_ray.scoring.evaluation import EvaluationMode, Evaluator
from gnnrl_ray.settings import IMPORTANCES
from gnnrl_ray.tracing.symbolic import symbolic
from gnnrl_ray.zoo import build_network

PROPOSERS = [name for name in METHODS if issubclass(method_of(name), Proposer)]


@pytest.fixture
def digits(digits):
    """Scored on a quarter of them: as many candidates, sooner."""
    return replace(digits, validation=digits.validation.take(torch.arange(100)))


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
    history = []
    for number in range(min(22, method_of(name).candidates(SearchSettings()))):
        widths = proposed(method_of(name), objective, number, history)
        assert objective.budget.meets(groups.check_widths(widths))
        history.append(imagined(widths, groups.widths))


def imagined(widths, dense):
    """Return an outcome that is better the nearer widths are to some that are wanted."""
    wanted = np.random.default_rng(7).uniform(0, 0.8, len(dense))
    accuracy = 1 - np.abs(1 - widths / dense - wanted).mean()
    return Outcome(tuple(widths.tolist()), 1, 1, accuracy, accuracy - 1, 0.1)


QUICK = ("local", "cem", "cmaes", "tpe")
BLACK_BOXES = (*QUICK, "gp", "turbo")


@pytest.mark.parametrize(
    "name",
    [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in ("gp", "turbo"))],
)
def test_black_boxes_beat_chance_on_a_task_that_can_be_learnt(name):
    groups = trace(build_network("resnet20"), (3, 32, 32), check=False)

    def found(method, count):
        known, history = {}, []
        objective = SimpleNamespace(
            budget=Budget(groups, {"flops": 0.5}), known=lambda w: known.get(tuple(w))
        )
        for number in range(count):
            widths = proposed(method, objective, number, history)
            history.append(imagined(widths, groups.widths))
            known[history[-1].widths] = history[-1]
        return max(outcome.accuracy for outcome in history)

    count = 40 if name in ("gp", "turbo") else 200  # these take longer, and need fewer
    assert found(method_of(name), count) > found(Random, count) + 0.01


@pytest.mark.parametrize("name", BLACK_BOXES)
def test_proposals_follow_from_history_and_seed(objective, groups, name):
    rng = np.random.default_rng(1)
    widths = [objective.budget.reach(rng.random(len(groups.widths))) for _ in range(35)]
    history = [imagined(w, groups.widths) for w in widths]
    first, again = (proposed(method_of(name), objective, 3, history) for _ in range(2))
    assert np.array_equal(first, again)


def test_shallow_and_deep_are_opposites(objective, groups):
    shallow, deep = (proposed(method_of(n), objective) for n in ("shallow", "deep"))
    kept = np.array([shallow, deep]) / groups.widths
    inner = [n for n, name in enumerate(groups.names) if name.endswith("conv1")][1:]
    assert (np.diff(kept[0, inner]) > 0).all()
    assert (np.diff(kept[1, inner]) < 0).all()


def test_inside_keeps_what_blocks_pass_on(network, groups, digits):
    inner = np.array(["layer" in name and "conv1" in name for name in groups.names])
    assert 0 < inner.sum() < len(inner)
    assert np.array_equal(inside_blocks(groups), inner)
    mild = Objective(network, groups, digits, budget=0.7)
    widths = proposed(method_of("inside"), mild)
    assert np.array_equal(widths[~inner], groups.widths[~inner])
    assert np.ptp(widths[inner] / groups.widths[inner]) < 1 / 16 + 1e-9
    hard = Objective(network, groups, digits, budget=0.1)
    widths = proposed(method_of("inside"), hard)
    assert np.array_equal(widths[inner], hard.budget.min_widths[inner])
    assert (widths < groups.widths).all()


@pytest.mark.parametrize(
    ("name", "inner"),
    [("resnet56", 27), ("vgg16", None), ("mobilenet_v2", None),
     ("torchvision:resnet50", 32), ("torchvision:densenet121", 58)],
)  # fmt: skip
def test_inside_of_other_networks(name, inner):
    groups = trace(*build(name), check=False)
    found = inside_blocks(groups)
    if inner is not None:
        assert found.sum() == inner
    budget = Budget(groups, {"flops": 0.4})
    objective = SimpleNamespace(budget=budget)
    assert budget.meets(proposed(method_of("inside"), objective))


@pytest.mark.parametrize("importance", IMPORTANCES)
def test_global_is_one_threshold(network, groups, digits, importance):
    objective = Objective(network, groups, digits, budget=0.5, importance=importance)
    widths = proposed(method_of("global"), objective)
    scores = [s / s.mean() for s in objective.scores]
    free = widths > objective.budget.min_widths
    kept = [np.sort(s)[::-1][w - 1] for s, w in zip(scores, widths, strict=True)]
    gone = [np.sort(s)[::-1][w] if w < len(s) else 0.0
            for s, w in zip(scores, widths, strict=True)]  # fmt: skip
    # The last that stays of any group is above the first that goes of any other, but for
    # the channels that the rest of the budget brings back.
    order = np.argsort(np.array(kept)[free])
    assert (
        np.array(kept)[free][order[1:]] >= np.array(gone)[free][order[:-1]]
    ).mean() > 0.8


def test_fp_keeps_what_is_sensitive(network, groups, digits, monkeypatch):
    """Beside brute force: accuracy with one group pruned, by removal from the module."""
    objective = Objective(network, groups, digits, budget=0.5, finetune="none")
    method, score, probes = method_of("fp")(Task(objective)), Objective._score, []
    monkeypatch.setattr(
        Objective, "_score", lambda self, widths: probes.append(1) or score(self, widths)
    )
    method.losses()
    assert len(probes) == method.probes(groups)
    losses, evaluator = method.losses(), Evaluator(digits.validation, EvaluationMode())
    dense = evaluator(symbolic(network, groups.input_shapes)).accuracy
    alone = np.zeros((len(groups.widths), len(DROPPED) + 2))  # nothing first, all last
    for g in range(len(groups.widths)):
        for n, ratio in enumerate(DROPPED, 1):
            widths = groups.widths.copy()
            widths[g] = max(round(widths[g] * (1 - ratio)), objective.budget.min_widths[g])
            alone[g, n] = dense - evaluator(cut(network, groups, widths)).accuracy
    worst = np.maximum.accumulate(alone, 1)  # to drop more never costs less
    assert np.abs(losses - worst).max() < 1e-6
    assert (np.diff(losses) > 0).all()


def test_spp_keeps_what_has_many_directions(digits):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(),
        nn.Conv2d(16, 16, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    ).eval()  # fmt: skip
    with torch.no_grad():  # the filters of the second layer lie in a plane
        plane = torch.randn(16, 2) @ torch.randn(2, 16 * 9)
        network[2].weight.copy_(plane.view_as(network[2].weight))
    groups = trace(network, digits.input_shape)
    objective = Objective(network, groups, digits, budget=0.6)
    widths = dict(zip(groups.names, proposed(method_of("spp"), objective), strict=True))
    assert widths["2"] < widths["4"]


def test_rs_takes_steps_until_the_budget_is_met(network, groups, digits):
    objective = Objective(network, groups, digits, budget=0.08)
    env = PruningEnv({"objective": lambda: objective, "max_steps": 8})
    env.reset()
    generator, done, steps = np.random.default_rng(4), False, 0
    while not done:
        _, _, done, _, info = env.step(generator.random(len(groups.widths)))
        steps += 1
    assert steps > 1
    assert tuple(proposed(method_of("rs"), objective, 4)) == info["outcome"].widths


def test_a_package_that_is_missing_is_named(network, digits, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="--method tpe needs optuna: pip install optuna"):
        search(network, digits, method="tpe")


@pytest.mark.cluster
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


@pytest.mark.cluster
@pytest.mark.usefixtures("ray_session")
def test_the_winner_is_trained_where_the_actors_were(
    network, digits, tmp_path, monkeypatch
):
    settings = {
        "method": "random", "episodes": 3, "finetune": 2, "precision": "float32",
        "env_runners": 1, "cpus_per_env_runner": 0.5, "out": tmp_path,
    }  # fmt: skip
    trained_here, train = [], Objective._trained

    def train_here(self, widths, steps):
        trained_here.append(widths)
        return train(self, widths, steps)

    monkeypatch.setattr(Objective, "_trained", train_here)
    found = search(network, digits, **settings)
    assert not trained_here
    assert accuracy(found.network, digits.validation) == found.best.accuracy

    def refuse(runners, cpus, gpus):
        raise PlacementError("others have it all")

    monkeypatch.setattr(sharing, "check_placement", refuse)
    objective = Objective.of(network, digits, Budget(found.groups, {"flops": 0.5}),
                             found.run.settings)  # fmt: skip
    with pytest.warns(Notice, match="in this process, as no actor could: others have it"):
        sharing.bring_back(SearchTask(objective, found.run), found.best.widths)
    assert not objective.has(found.best.widths)


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


@pytest.mark.parametrize("ratio", [0.2, 0.5, 0.7])
@pytest.mark.parametrize("seed", [0, 1])
def test_global_chooses_as_torch_pruning_does(ratio, seed, digits):
    """A chain, where the importance of a group is that of its one layer in both."""
    tp = pytest.importorskip("torch_pruning")
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(3, 24, 3), nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 40, 3),
        nn.BatchNorm2d(40), nn.ReLU(), nn.Conv2d(40, 32, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    ).eval()  # fmt: skip
    with torch.no_grad():  # filters of very different sizes
        for layer in (network[0], network[3], network[6]):
            layer.weight.mul_(torch.rand(layer.out_channels, 1, 1, 1) ** 2)
    groups = trace(network, (3, 32, 32))
    theirs = copy.deepcopy(network)
    tp.pruner.BasePruner(
        theirs, torch.randn(1, 3, 32, 32), global_pruning=True, pruning_ratio=ratio,
        ignored_layers=[theirs[-1]],
        importance=tp.importance.GroupMagnitudeImportance(
            p=1, group_reduction="first", normalizer="mean", bias=False
        ),
    ).step()  # fmt: skip
    wanted = [theirs[i].out_channels for i in (0, 3, 6)]
    macs = int(Costs(groups).macs(np.array(wanted)))
    budget = Budget(groups, {"flops": macs}, min_keep=0)
    objective = Objective(network, groups, digits, budget=budget, importance="l1")
    assert proposed(method_of("global"), objective).tolist() == wanted


AGENTS = [
    ("amc", {}), ("gnn-rl", {"encoder": "mlp"}), ("gnn-rl", {"algorithm": "sac"}),
    pytest.param(
        "gnn-rl", {"encoder": "mlp", "algorithm": "ddpg"}, marks=pytest.mark.slow
    ),
    pytest.param("agmc", {}, marks=pytest.mark.slow),  # and with it mean pooling
]  # fmt: skip


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(("name", "agent"), AGENTS)
def test_agents_search_and_go_on_from_the_journal(network, digits, tmp_path, name, agent):
    settings = {
        "method": name, "episodes": 5, "finetune": "none", "precision": "float32",
        "agent": {"warmup_episodes": 2, "hidden": [16], "updates_per_step": 2} | agent,
    }  # fmt: skip
    here, there = tmp_path / "here", tmp_path / "there"
    search(network, digits, out=here, **settings)
    found = widths(here)
    assert len(found) == 5
    assert len(set(found.values())) > 2
    there.mkdir()
    shutil.copy(here / "run.json", there)
    lines = (here / "journal.jsonl").read_text().splitlines(keepends=True)
    (there / "journal.jsonl").write_text("".join(lines[:3]))
    search(network, digits, out=there, resume=True)
    assert widths(there) == found


@pytest.mark.usefixtures("ray_session")
def test_a_checkpoint_of_another_agent_is_said_to_be(network, digits, tmp_path):
    settings = {"finetune": "none", "precision": "float32"}
    agent = {"algorithm": "ddpg", "hidden": [16], "warmup_episodes": 1}
    search(network, digits, out=tmp_path / "run", episodes=2, agent=agent, **settings)
    about = json.loads((tmp_path / "run/run.json").read_text())
    about["settings"] |= {"agent": {}, "episodes": 3}
    (tmp_path / "run/run.json").write_text(json.dumps(about))
    with pytest.raises(RunError, match=r"another agent .* --agent .* delete it"):
        search(network, digits, out=tmp_path / "run", resume=True)
    (tmp_path / "run/checkpoint.zip").unlink()
    search(network, digits, out=tmp_path / "run", resume=True)
    assert len(widths(tmp_path / "run")) == 3
