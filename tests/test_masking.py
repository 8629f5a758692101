"""Candidates in one dense network: equal to what removal makes of them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.networks import EVERY, HEAVY, build, outputs, shaken
from helpers.random_cnns import RandomCNN, recipes
from helpers.widths import cut, random_widths
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gnnrl_ray import Objective, trace
from gnnrl_ray.pruning.importance import rank
from gnnrl_ray.pruning.removal import keep
from gnnrl_ray.scoring.evaluation import EvaluationMode
from gnnrl_ray.scoring.masking import MaskedNetwork
from gnnrl_ray.scoring.training import recalibrate, recalibrate_on


def close(first, second):
    return torch.allclose(first, second, rtol=1e-8, atol=1e-8 * second.abs().max().item())


def check(network, shape, rng, candidates=2):
    """One masked network after the other candidate, each beside the removed one."""
    groups = trace(network, shape)
    masked, ranking = MaskedNetwork(network, groups), rank(network, groups)
    x = torch.randn(2, *shape, dtype=torch.float64)
    dense = outputs(network, x)
    for widths in [random_widths(groups, rng) for _ in range(candidates)] + [groups.widths]:
        masked.keep(keep(ranking, widths))
        masked.apply()
        assert close(outputs(masked.graph, x), outputs(cut(network, groups, widths), x))
    assert close(outputs(masked.graph, x), dense)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name in HEAVY))
        for name in EVERY
        if "googlenet" not in name
    ],
)
def test_every_network(name, rng):
    network, shape = build(name)
    check(network.double(), shape, rng)


@settings(
    max_examples=8, deadline=None, derandomize=True,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
@given(recipes, st.integers(0, 2**16))
def test_random_networks(recipe, seed):
    torch.manual_seed(seed)
    network = shaken(RandomCNN(recipe)).double().eval()
    check(network, (3, 16, 16), np.random.default_rng(seed))


@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v2", "shufflenet_v2"])
def test_statistics_of_what_is_kept_are_those_of_the_removed_network(name, rng, digits):
    network, shape = build(name)
    groups = trace(network, shape)
    masked, widths = MaskedNetwork(network.double(), groups), random_widths(groups, rng)
    kept = keep(rank(network, groups), widths)
    batches = [torch.randn(5, *shape).double() for _ in range(3)]
    removed = cut(network, groups, widths)
    masked.keep(kept)
    masked.apply()
    for candidate in (removed, masked.graph):
        recalibrate_on(candidate, batches)
    dense, there = masked.graph.state_dict(), 0
    for key, value in removed.state_dict().items():
        if "running" not in key:
            continue
        layout = groups.layouts[key]
        owner, offsets = groups.group_of(layout.rows), groups.offsets
        flags = [g < 0 or c - offsets[g] in kept[g]
                 for c, g in zip(layout.rows, owner, strict=True)]  # fmt: skip
        assert close(dense[key][torch.tensor(flags)], value), key
        there += 1
    assert there > 10
    x = torch.randn(2, *shape).double()
    assert close(outputs(masked.graph, x), outputs(removed, x))


@pytest.mark.parametrize("finetune", ["none", "recalibrate"])
def test_outcomes_are_those_of_removal(network, groups, digits, rng, finetune):
    objectives = []
    for masked in (False, True):
        objective = Objective(network, groups, digits, budget=0.5, finetune=finetune)
        objective.mode = EvaluationMode("float32", 64, masked)
        objectives.append(objective)
    for _ in range(4):
        widths = random_widths(groups, rng)
        removed, masked = (objective(widths) for objective in objectives)
        assert masked.accuracy == pytest.approx(removed.accuracy, abs=1 / 400)
        assert masked == replace(
            removed, seconds=masked.seconds, accuracy=masked.accuracy, reward=masked.reward
        )
    # What a search hands over is built as ever.
    keys = objectives[1].build(widths).state_dict().keys()
    assert {key for key in keys if "taken_" not in key} == network.state_dict().keys()


def test_narrow_numbers_are_looked_at_again(network, groups, digits, rng):
    objective = Objective(network, groups, digits, budget=0.5)
    widths = random_widths(groups, rng)
    objective.mode = EvaluationMode("bfloat16", 64, masked=True)
    smaller = cut(network, groups, widths)
    recalibrate(smaller, digits.train)
    wide = Objective(network, groups, digits, budget=0.5)
    # All of the digits fit into the second look, so nothing narrow is left.
    assert objective(widths).accuracy == pytest.approx(wide(widths).accuracy, abs=1 / 400)


def test_short_memory_halves_the_batch(network, groups, digits, rng, monkeypatch):
    objective = Objective(network, groups, digits, budget=0.5, finetune="none")
    objective.mode = EvaluationMode("float32", 64, masked=True)
    evaluator, widths = objective._masked_evaluator, random_widths(groups, rng)
    run, sizes = evaluator._fused.network.forward, []

    def short(images):
        sizes.append(len(images))
        if len(images) > 16:
            raise torch.OutOfMemoryError
        return run(images)

    monkeypatch.setattr(evaluator._fused.network, "forward", short)
    assert objective(widths).accuracy == pytest.approx(
        Objective(network, groups, digits, budget=0.5, finetune="none")(widths).accuracy,
        abs=1 / 400,
    )
    assert sizes[:4] == [64, 32, 16, 16]
