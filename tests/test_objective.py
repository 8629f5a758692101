import copy
import gc
import pickle
import threading
import weakref

import numpy as np
import pytest
import torch
from helpers.widths import random_widths
from torch import nn

from gnnrl_ray import (
    Budget,
    Objective,
    Outcome,
    PruningEnv,
    accuracy,
    mask,
    prune,
    trace,
    train,
)
from gnnrl_ray.errors import InputError
from gnnrl_ray.pruning.budget import BudgetError
from gnnrl_ray.pruning.importance import importances
from gnnrl_ray.scoring.evaluation import EvaluationMode
from gnnrl_ray.scoring.training import recalibrate
from gnnrl_ray.settings import parse_finetune


def make(network, groups, digits, **settings):
    return Objective(network, groups, digits, budget=0.5, **settings)


def test_outcome_is_what_the_pruned_network_scores(network, groups, digits, costs, rng):
    widths = random_widths(groups, rng)
    outcome = make(network, groups, digits, finetune="none")(widths)
    smaller = prune(network, groups, widths)
    assert outcome.accuracy == accuracy(smaller, digits.validation)
    assert outcome.reward == outcome.accuracy - 1
    assert outcome.macs == costs.macs(widths)
    assert outcome.params == sum(p.numel() for p in smaller.parameters())
    assert outcome.widths == tuple(widths)


def test_what_cannot_be_copied_is_said(network, groups, digits):
    network.lock = threading.Lock()
    try:
        for use in (lambda: make(network, groups, digits),
                    lambda: prune(network, groups, groups.widths // 2)):  # fmt: skip
            with pytest.raises(
                InputError, match=r"cannot be copied .* such as files, locks"
            ):
                use()
    finally:
        del network.lock


def test_recalibration_is_applied(network, groups, digits, rng):
    widths = random_widths(groups, rng)
    outcome = make(network, groups, digits, finetune="recalibrate", seed=3)(widths)
    silenced = mask(network, groups, widths)
    recalibrate(silenced, digits.train, seed=3)
    assert outcome.accuracy == accuracy(silenced, digits.validation)


def test_training_steps_and_epochs_move_the_weights(network, groups, digits):
    widths = groups.widths // 2
    plain = make(network, groups, digits, finetune="none").build(widths)
    for finetune in (2, "epoch"):
        trained = make(network, groups, digits, finetune=finetune).build(widths)
        assert not torch.equal(trained.conv1.weight, plain.conv1.weight)
        assert not trained.training


def test_what_the_best_was_trained_to_is_kept(network, groups, digits, rng):
    objective = make(network, groups, digits, finetune=3)
    objective.build(groups.widths // 2)  # of no account: it is not scored
    scored = {}
    for widths in [random_widths(groups, rng) for _ in range(4)]:
        outcome = objective(widths)
        best = max([*scored.values(), outcome], key=lambda o: o.accuracy)
        scored[outcome.widths] = outcome
        assert objective.has(best.widths)
        assert sum(objective.has(w) for w in scored) == 1
    kept = objective.build(best.widths)
    assert kept is objective.build(best.widths)
    anew = make(network, groups, digits, finetune=3).build(best.widths).state_dict()
    assert all(torch.equal(anew[name], t) for name, t in kept.state_dict().items())
    assert not pickle.loads(pickle.dumps(objective)).has(best.widths)
    assert not make(network, groups, digits, finetune="recalibrate").trains


def test_identical_candidates_are_scored_once(objective, groups, monkeypatch):
    builds = []
    build = Objective.build
    monkeypatch.setattr(
        Objective, "build", lambda self, w: builds.append(w) or build(self, w)
    )
    widths = groups.widths // 2
    assert objective(widths) is objective(widths.copy())
    assert len(builds) == 1
    other = Outcome(tuple(widths - 1), 1, 1, 0.5, -0.5, 0.0)
    objective.remember([other])
    assert objective(widths - 1) is other
    assert len(builds) == 1


def test_outcomes_survive_json(objective, groups):
    import json

    outcome = objective(groups.widths // 2)
    assert Outcome.from_dict(json.loads(json.dumps(outcome.to_dict()))) == outcome


def test_an_objective_can_be_sent_to_another_process(objective, groups):
    widths = groups.widths // 2
    again = pickle.loads(pickle.dumps(objective))
    assert again(widths).accuracy == objective(widths).accuracy


def test_the_callers_network_is_left_alone(network, groups, digits):
    before = network.train().conv1.weight.clone()
    objective = make(network, groups, digits).to("cpu")
    objective(groups.widths // 2)
    assert network.training
    assert torch.equal(network.conv1.weight, before)
    assert network.conv1.weight.stride() == before.stride()


def test_budget_is_checked(network, groups, digits):
    with pytest.raises(BudgetError, match="must be a share from"):
        Objective(network, groups, digits, budget=0.001)


def test_satisfied_counts_whole_channels(objective, groups, costs):
    widths = objective.budget.project(groups.widths, objective.budget.min_widths)
    assert objective.budget.meets(widths)
    assert not objective.budget.meets(np.minimum(widths + 1, groups.widths))


@pytest.mark.parametrize("text", ["none", "recalibrate", "epoch"])
def test_finetune_words(text):
    assert parse_finetune(text) == text


def test_finetune_steps():
    assert parse_finetune("200") == 200


@pytest.mark.parametrize("text", ["", "0", "-3", "1.5", "all"])
def test_other_finetunes_are_refused(text):
    with pytest.raises(ValueError, match="--finetune"):
        parse_finetune(text)


def test_taylor_ranks_on_a_batch_of_training_images(network, groups, digits):
    kept = {
        importance: Objective(
            network, groups, digits, budget=0.5, importance=importance
        ).kept(groups.widths // 2)
        for importance in ("taylor", "l2")
    }
    again = Objective(network, groups, digits, budget=0.5, importance="taylor")
    assert all(map(np.array_equal, kept["taylor"], again.kept(groups.widths // 2)))
    assert not all(map(np.array_equal, kept["taylor"], kept["l2"]))


def test_round_to_reaches_the_environment(network, groups, digits, rng):
    objective = Objective(
        network, groups, digits, finetune="none",
        budget=Budget(groups, {"flops": 0.5}, round_to=8),
    )  # fmt: skip
    env = PruningEnv({"objective": lambda: objective})
    for _ in range(5):
        env.reset()
        done = False
        while not done:
            _, _, done, _, info = env.step(rng.random(len(groups.widths)))
        widths = np.array(info["outcome"].widths)
        assert ((widths % 8 == 0) | (widths == groups.widths)).all()
        assert objective.budget.meets(widths)


def test_large_candidates_leave_nothing_behind(digits, monkeypatch):
    """Not even until Python looks for what refers to itself."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 64, 3, 2, 1), nn.BatchNorm2d(64), nn.ReLU(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(4096, 4200), nn.ReLU(), nn.Linear(4200, 10),
    ).eval()  # fmt: skip
    groups = trace(network, digits.input_shape)
    objective = Objective(network, groups, digits, budget=0.5, finetune=1)
    objective.mode = EvaluationMode("plain")
    build, built = Objective.build, []

    def watched(self, widths):
        candidate = build(self, widths)
        built.append(weakref.ref(candidate))
        return candidate

    monkeypatch.setattr(Objective, "build", watched)
    gc.disable()
    try:
        objective(groups.widths // 3)
        objective.accuracy(groups.widths // 4)
        left = [candidate() is not None for candidate in built]
    finally:
        gc.enable()
    assert left == [True, False]  # the best is kept


def test_sensitivities_are_what_taylor_says_of_all_channels(network, groups, digits):
    found = [
        Objective(network, groups, digits, budget=0.5, seed=seed).sensitivities
        for seed in (3, 3, 4)
    ]
    assert np.array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])  # another batch
    by_hand = np.ones(len(groups.widths))
    for batch in digits.train.sample(256, 8, 3):
        each = importances(network, groups, "taylor", batch=batch)
        by_hand *= np.array([channels.sum() for channels in each]) ** (1 / 32)
    assert found[0] == pytest.approx(by_hand)
    assert (found[0] > 0).all()


class Normalising(nn.Module):
    """Changes its images in place."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x.sub_(0.4).mul_(1.5))


@pytest.mark.parametrize("mode", ["float32", "masked"])
def test_images_stay_what_they_are(network, digits, mode):
    """Or every candidate would be scored on others, and an epoch change the next."""
    network = Normalising(network)
    groups = trace(network, digits.input_shape)
    masked = mode == "masked"
    for finetune in ["recalibrate"] if masked else ["recalibrate", 2]:
        objective = Objective(network, groups, digits, budget=0.5, finetune=finetune)
        objective.mode = EvaluationMode("float32" if masked else mode, 64, masked)
        assert len({objective.accuracy(groups.widths // 2) for _ in range(3)}) == 1
    loader = list(digits.validation.batches(50))
    before = [images.clone() for images, _ in loader]
    assert len({accuracy(network, loader) for _ in range(2)}) == 1
    train(copy.deepcopy(network), loader, steps=2)
    assert all(torch.equal(a, b) for a, (b, _) in zip(before, loader, strict=True))
