import warnings

import numpy as np
import pytest
import torch
from helpers.widths import cut, random_widths

from gnnrl_ray import Objective, accuracy, trace
from gnnrl_ray.scoring.evaluation import (
    TOLERANCE,
    EvaluationMode,
    Evaluator,
    Score,
    _is_lost,
    choose,
)
from gnnrl_ray.scoring.fusion import fuse
from gnnrl_ray.scoring.training import recalibrate, train
from gnnrl_ray.zoo.resnet import ResNet


@pytest.fixture(scope="module")
def trained(digits):
    torch.manual_seed(0)
    network = ResNet(8)
    train(network, digits.train, steps=50)
    return network.eval()


@pytest.fixture(scope="module")
def candidates(trained, digits):
    """Removed networks, good and bad."""
    groups, rng = trace(trained, (3, 32, 32)), np.random.default_rng(0)
    removed = [cut(trained, groups, random_widths(groups, rng)) for _ in range(5)]
    for network in removed:
        recalibrate(network, digits.train)
    return [network.eval() for network in removed]


@pytest.mark.parametrize("precision", ["plain", "float32", "bfloat16"])
def test_all_precisions_score_alike(candidates, digits, precision):
    evaluator = Evaluator(digits.test, EvaluationMode(precision, 50))
    for network in candidates:
        score = evaluator(network)
        expected = accuracy(network, digits.test)
        assert abs(score.accuracy - expected) <= max(TOLERANCE, 2 / len(digits.test))
        assert score.images == len(digits.test)


def test_second_looks_are_what_makes_narrow_numbers_right(candidates, digits):
    """Without them, some candidates would be off by more."""
    images, labels = next(digits.test.batches(len(digits.test)))
    evaluator = Evaluator(digits.test, EvaluationMode("bfloat16", 50))
    alone = together = 0
    for network in candidates:
        right = accuracy(network, digits.test)
        with torch.inference_mode():
            logits = fuse(network, (3, 32, 32), torch.bfloat16)(images.bfloat16())
        guess = (logits.argmax(1) == labels).float().mean().item()
        alone += abs(guess - right) * len(labels)
        together += abs(evaluator(network).accuracy - right) * len(labels)
    assert together < alone / 2


def test_what_is_lost_is_stopped_early_and_the_best_never(candidates, digits):
    evaluator = Evaluator(digits.test, EvaluationMode())
    complete = [evaluator(network) for network in candidates]
    best = max(score.accuracy for score in complete)
    scores = [evaluator(network, worth=best) for network in candidates]
    assert any(score.images < len(digits.test) for score in scores)
    for score, full in zip(scores, complete, strict=True):
        if score.images == len(digits.test):
            assert score == full
        else:
            assert full.accuracy < best
            assert score.accuracy < best


def test_the_bound_errs_as_rarely_as_it_says(rng):
    """Draws from a population that is exactly worth going on with."""
    total, wrong = 2000, 0
    for _ in range(500):
        population = torch.from_numpy(rng.permutation(total) < total // 2)
        for share in (0.05, 0.1, 0.2, 0.4, 0.7):
            images = int(share * total)
            seen = population[:images].double().mean().item()
            if _is_lost(Score(seen, images), total, worth=0.5):
                wrong += 1
                break
    assert wrong <= 3
    assert _is_lost(Score(0.2, 200), total, worth=0.5)
    assert not _is_lost(Score(0.45, 200), total, worth=0.5)


def test_the_choice_is_one_that_works(candidates, digits):
    form = choose(candidates[0], digits.validation)
    assert form.precision in ("float32", "bfloat16")
    assert choose(candidates[0], digits.validation, "float32").precision == "float32"
    assert choose(candidates[0], digits.validation, "plain") == EvaluationMode("plain")


def test_wrong_formats_are_warned_of_and_not_taken(candidates, digits, monkeypatch):
    """Numbers so narrow that the result is wrong."""
    monkeypatch.setattr(
        "gnnrl_ray.scoring.evaluation.fuse",
        lambda network, shape, dtype: lambda x: -network(x.float()),
    )
    with pytest.warns(UserWarning, match="where .* is right"):
        assert choose(candidates[0], digits.validation) == EvaluationMode("plain")


def test_what_cannot_be_run_is_warned_of_and_not_taken(candidates, digits, monkeypatch):
    def refuse(network, shape, dtype):
        if dtype == torch.bfloat16:
            raise RuntimeError("no such operation")
        return fuse(network, shape, dtype)

    monkeypatch.setattr("gnnrl_ray.scoring.evaluation.fuse", refuse)
    with pytest.warns(UserWarning, match="cannot evaluate in bfloat16: no such"):
        assert choose(candidates[0], digits.validation).precision == "float32"


def test_an_objective_stops_early_only_if_asked(trained, digits, rng):
    groups = trace(trained, (3, 32, 32))
    exact, hasty = (
        Objective(trained, groups, digits, budget=0.5, early_stop=early)
        for early in (False, True)
    )
    widths = [groups.widths - i for i in range(3)]
    widths += [random_widths(groups, rng) for _ in range(6)]
    outcomes = [(exact(w), hasty(w)) for w in widths]
    assert all(first.images is None for first, _ in outcomes)
    estimates = [second for _, second in outcomes if second.images is not None]
    assert estimates
    known = sorted(second.accuracy for _, second in outcomes if second.images is None)
    assert max(estimate.accuracy for estimate in estimates) < known[-1]
    best = [max(pair[i].accuracy for pair in outcomes) for i in (0, 1)]
    assert best[0] == best[1]


def test_no_warnings_where_all_is_well(candidates, digits):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        choose(candidates[0], digits.validation)


def test_short_memory_halves_the_batch(network, groups, digits, monkeypatch):
    network = cut(network, groups, groups.widths).eval()
    evaluator = Evaluator(digits.validation, EvaluationMode("float32", 64))
    expected = evaluator(network)
    forward = evaluator._pass

    def short(fused, images):
        if evaluator._mode.batch > 16:
            raise torch.OutOfMemoryError
        return forward(fused, images)

    monkeypatch.setattr(evaluator, "_pass", short)
    with pytest.warns(UserWarning, match="out of memory; evaluating 16 images at a time"):
        assert evaluator(network) == expected
    assert evaluator._mode.batch == 16
    monkeypatch.setattr(evaluator, "_mode", EvaluationMode("float32", 1))
    monkeypatch.setattr(evaluator, "_pass", lambda *_: _raise())
    with pytest.raises(torch.OutOfMemoryError):
        evaluator(network)


def _raise():
    raise torch.OutOfMemoryError
