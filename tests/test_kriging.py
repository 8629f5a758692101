"""Kriging: the formula, and what it knows of candidates that were not scored."""

import math

import numpy as np
import pytest
from scipy.stats import spearmanr

from gnnrl_ray.agent.candidates import History
from gnnrl_ray.agent.kriging import promise


def test_it_is_the_formula(rng):
    known, wanted = rng.random((7, 5)), rng.random((4, 5))
    history = History(known, -rng.random(7))

    def kernel(a, b):
        distance = math.sqrt(3 * np.mean((a - b) ** 2)) / 0.27
        each = np.mean([math.exp(-abs(x - y)) for x, y in zip(a, b, strict=True)])
        return (1 + distance) * math.exp(-distance) + 3 * each

    among = np.array([[kernel(a, b) for b in known] for a in known]) + 0.03 * np.eye(7)
    beside = np.array([[kernel(a, b) for b in known] for a in wanted])
    mean = beside @ np.linalg.inv(among) @ history.worths
    unknown = 4 - np.diag(beside @ np.linalg.inv(among) @ beside.T)
    assert promise(history, wanted) == pytest.approx(mean + 0.2 * np.sqrt(unknown))
    assert promise(history, wanted[:0]).shape == (0,)


def test_what_was_scored_is_expected_and_what_is_far_is_not_known(rng):
    known = rng.random((20, 30)) * 0.3
    history = History(known, -rng.uniform(0.1, 0.6, 20))
    assert promise(history, known) == pytest.approx(history.worths, abs=0.6)
    assert spearmanr(promise(history, known), history.scores).statistic > 0.95
    (far,) = promise(history, np.full((1, 30), 1e3))
    assert far == pytest.approx(0.2 * 2)  # average, and nothing is known of it


def test_three_candidates_tell_others_apart(rng):
    """What drops more of what the loss is sensitive to is worse."""
    weights = rng.uniform(0, 1, 12)
    known = np.array([0.8 * (1 - weights), 0.8 * weights, np.full(12, 0.4)])
    along = rng.random((200, 1))
    drawn = along * known[0] + (1 - along) * known[1] + rng.normal(0, 0.1, (200, 12))
    worth = [-float(w @ weights) / weights.sum() for w in np.concatenate([known, drawn])]
    found = promise(History(known, np.array(worth[:3])), drawn)
    assert spearmanr(found, worth[3:]).statistic > 0.8


def test_what_a_channel_of_one_group_is_worth_is_known_of_all_candidates(rng):
    """Rough, and a sum: steps of any height from one width to the next."""
    steps = rng.normal(0, 1, (8, 16)).cumsum(1)

    def score(widths):
        return -np.exp(-steps[np.arange(8), widths].sum(1) / 10 - 3)

    widths = rng.integers(16, size=(400, 8))
    known, others = widths[:120], widths[120:]
    found = promise(History(1 - known / 16, score(known)), 1 - others / 16)
    assert spearmanr(found, score(others)).statistic > 0.8


@pytest.mark.parametrize("scores", [[-0.5], [-0.5, -0.5], [0.0, -1.0]])
def test_few_and_equal_scores_are_no_trouble(scores):
    history = History(np.full((len(scores), 3), 0.5), np.array(scores))
    assert np.isfinite(history.worths).all()
    assert np.isfinite(promise(history, np.array([[0.1, 0.5, 1.0]]))).all()
