import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from gnnrl_ray import search
from gnnrl_ray.agent import candidates, choosing
from gnnrl_ray.agent.candidates import Candidates
from gnnrl_ray.zoo.resnet import ResNet
from gnnrl_ray.zoo.weights import WeightsError

AGENT = {"updates_per_step": 2, "graph_dim": 8, "hidden": (16,)}
SHORT = {"episodes": 11, "finetune": "none", "precision": "float32", "device": "cpu",
         "progress": False, "agent": AGENT}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory, digits):
    """A search of another network, and its directory."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("transfer") / "run"
    search(ResNet(14).eval(), digits, out=folder, **SHORT)
    return folder


def test_what_was_learnt_is_in_a_file_of_tensors(run):
    tensors = load_file(run / "agent.safetensors")
    assert any(name.startswith("actor.") for name in tensors)
    assert any(name.startswith("critic.") for name in tensors)


def parameters(agent):
    return load_file(agent / "agent.safetensors")


def test_a_search_starts_from_that_of_another_network(run, network, digits, tmp_path):
    """Nothing learnt here: what it knows is what it was given, but for the motifs'."""
    idle = SHORT | {"episodes": 3, "agent": AGENT | {"updates_per_step": 0}}
    search(network, digits, out=tmp_path / "run", from_run=str(run), **idle)
    before, after = parameters(run), parameters(tmp_path / "run")
    assert before.keys() == after.keys()
    for name in before:
        same = before[name].shape == after[name].shape
        if not name.endswith("alpha"):
            assert same
            assert torch.equal(before[name], after[name]), name


@pytest.mark.slow
def test_critics_stay_near_what_they_began_with(
    run, network, digits, tmp_path, monkeypatch
):
    def moved(back):
        monkeypatch.setattr(choosing, "_BACK", back)
        learning = AGENT | {"updates_per_step": 20, "warmup_episodes": 1}
        short = SHORT | {"episodes": 4, "agent": learning}
        search(network, digits, out=tmp_path / str(back), from_run=str(run), **short)
        start, end = parameters(run), parameters(tmp_path / str(back))
        critic = [n for n in start if n.startswith("critic.") and "alpha" not in n]
        return np.mean([float((start[n] - end[n]).abs().mean()) for n in critic])

    assert 0 < moved(100.0) < moved(0.0) / 3


@pytest.mark.cluster
@pytest.mark.slow
def test_it_goes_on_without_the_other_run(run, network, digits, tmp_path):
    """And as it would have without a break: what it started from is in its directory."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    file = tmp_path / "other.safetensors"
    file.write_bytes((run / "agent.safetensors").read_bytes())
    search(network, digits, out=whole, from_run=str(file), **SHORT)
    search(network, digits, out=parts, from_run=str(file), **SHORT | {"episodes": 4})
    file.unlink()
    (parts / "checkpoint.zip").unlink()
    search(network, digits, out=parts, resume=True, episodes=11, progress=False)
    lines = [
        [json.loads(line)["widths"] for line in (folder / "journal.jsonl").open()]
        for folder in (whole, parts)
    ]
    assert lines[0] == lines[1]


@pytest.mark.slow
def test_what_is_no_agent_of_the_kind_is_named(run, network, digits, tmp_path):
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes((run / "agent.safetensors").read_bytes()[:-9])
    wide, other = tmp_path / "wide.safetensors", tmp_path / "other.safetensors"
    tensors = parameters(run)
    save_file({"x": torch.zeros(2)}, other)
    name = "critic.value.weight"
    save_file(tensors | {name: torch.zeros(5, 9, 1)}, wide)
    for given, said in (
        (tmp_path / "none", "no weights file"), (cut, "truncated or damaged"),
        (other, "is of another agent"), (wide, r"critic.value.weight .*has \[5, 9, 1\]"),
    ):  # fmt: skip
        with pytest.raises(WeightsError, match=said):
            search(network, digits, out=tmp_path / "run", overwrite=True,
                   from_run=str(given), **SHORT)  # fmt: skip
    for settings in (
        {"method": "random", "agent": {}},
        {"agent": {"algorithm": "ddpg"}},
    ):
        with pytest.raises(ValueError, match=r"--from-run .*(leave out|nothing to)"):
            search(network, digits, out=tmp_path / "run", overwrite=True,
                   from_run=str(run), **SHORT | settings)  # fmt: skip


def test_a_critic_of_one_network_ranks_those_of_another(tmp_path):
    """Trained by the command on what is known of one, it knows the other's order."""
    from scipy.stats import spearmanr

    from gnnrl_ray import Budget, HierarchicalGraph, trace
    from gnnrl_ray.agent.candidates import worths
    from gnnrl_ray.agent.choosing import ChoosingModule
    from gnnrl_ray.agent.env import GraphBox
    from gnnrl_ray.agent.method import Agent
    from gnnrl_ray.agent.transfer import start_from
    from gnnrl_ray.graph.facts import GroupFacts
    from gnnrl_ray.jobs.pretraining import Lesson, pretrain
    from gnnrl_ray.settings import SearchSettings

    def lesson(depth, count):
        """Streams that are wide are good, and last stages matter more."""
        groups = trace(ResNet(depth).eval(), (3, 32, 32))
        graph = HierarchicalGraph(groups)
        facts = GroupFacts.of(graph)
        space = GraphBox(graph.shape, graph.levels, facts, Budget(groups, {"flops": 0.5}))
        kept = np.random.default_rng(depth).uniform(0.2, 1, (count, len(groups.widths)))
        worth = (1 + 2 * facts.streams + facts.stages) * np.log(kept)
        config = Agent.config(SearchSettings(), lambda: None)
        import gymnasium as gym

        actions = gym.spaces.Box(0.0, 1.0, (len(groups.widths),), np.float32)
        module = ChoosingModule(
            observation_space=space, action_space=actions,
            model_config=config.model_config, inference_only=False,
        )  # fmt: skip
        observation = torch.from_numpy(graph.features(groups.widths))
        return Lesson(module, observation, torch.from_numpy(1 - kept).float(),
                      torch.from_numpy(worths(-np.exp(-worth.sum(1)))).float())  # fmt: skip

    torch.manual_seed(0)
    learnt, other = lesson(14, 200), lesson(26, 200)

    def ranks():
        plan = other.module.critic.encoder.encoder.plan(other.observation[None])
        with torch.no_grad():
            found = other.module.critic(
                other.module.critic.encoder(plan), 1 - other.actions
            )
        return spearmanr(found.mean(0), other.scores).statistic

    before = ranks()
    losses = []
    agent = pretrain([learnt], steps=150, on_step=lambda _, loss: losses.append(loss))
    (tmp_path / "agent.safetensors").write_bytes(agent)
    start_from(other.module, tmp_path / "agent.safetensors")
    assert losses[-1] < losses[0] / 4
    assert ranks() > max(0.8, before)


def test_pretrain_command(run, tmp_path, monkeypatch, capsys):
    from gnnrl_ray.cli import build_app

    path = json.loads((run / "run.json").read_text())
    assert path["source"]["network"] is None  # one's own module has to be gone on with
    with pytest.raises(ValueError, match="your own module"):
        build_app(["pretrain"])(
            ["pretrain", str(run), "--out", str(tmp_path / "a.safetensors")],
            standalone_mode=False,
        )
    with pytest.raises(ValueError, match=r"must end in .safetensors"):
        build_app(["pretrain"])(
            ["pretrain", str(run), "--out", str(tmp_path / "a.pt")], standalone_mode=False
        )


def test_an_agent_comes_with_the_package(network, digits, tmp_path):
    settings = SHORT | {"episodes": 2, "agent": {}, "from_run": "pretrained"}
    search(network, digits, out=tmp_path / "run", **settings)
    start = load_file(tmp_path / "run/initial.safetensors")
    assert start.keys() == load_file(tmp_path / "run/agent.safetensors").keys()


def test_what_is_known_chooses_among_candidates_from_anywhere(
    run, network, digits, tmp_path, monkeypatch
):
    """Until it has seen how this network differs; without knowledge, rules come first."""
    asked = []
    around, anywhere = Candidates.around, Candidates.anywhere

    def near(self, *given):
        asked.append("near")
        return around(self, *given)

    def far(self, count, generator):
        asked.append(count)
        return anywhere(self, count, generator)

    monkeypatch.setattr(Candidates, "around", near)
    monkeypatch.setattr(Candidates, "anywhere", far)
    short = SHORT | {"episodes": 6, "agent": AGENT | {"warmup_episodes": 4}}
    search(network, digits, out=tmp_path / "known", from_run=str(run), **short)
    chosen = [count for count in asked if count != candidates._ANYWHERE]
    assert chosen == [choosing._FROM_ANYWHERE] * 3 + ["near"] * 2  # the first is the rule
    asked.clear()
    search(network, digits, out=tmp_path / "new", **short)
    chosen = [count for count in asked if count != candidates._ANYWHERE]
    assert chosen == [choosing._FROM_ANYWHERE] + ["near"] * 2  # the first three are rules
    asked.clear()
    alone = short | {"agent": short["agent"] | {"judges": "critics"}}
    search(network, digits, out=tmp_path / "critics", **alone)
    chosen = [count for count in asked if count != candidates._ANYWHERE]
    assert chosen == [1, "near", "near"]
