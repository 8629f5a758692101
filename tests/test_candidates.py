"""What an agent chooses among meets the budget, is new, and is where it is meant to be."""

from dataclasses import replace

import numpy as np
import pytest
from helpers.networks import build
from scipy.stats import spearmanr

from gnnrl_ray import Budget, trace
from gnnrl_ray.agent.candidates import Candidates, History, box_of, worths
from gnnrl_ray.graph.facts import GroupFacts
from gnnrl_ray.graph.hierarchy import HierarchicalGraph


def candidates_of(name, **limits):
    network, shape = build(name)
    groups = trace(network, shape)
    budget = Budget(groups, limits or {"flops": 0.5})
    return Candidates(budget, GroupFacts.of(HierarchicalGraph(groups)))


@pytest.mark.parametrize(
    ("name", "limits"),
    [("resnet20", {"flops": 0.3}), ("mobilenet_v2", {"flops": 0.5}),
     ("resnet20", {"params": 0.4})],
)  # fmt: skip
def test_all_meet_the_budget_and_none_is_known(name, limits, rng):
    candidates = candidates_of(name, **limits)
    budget, count = candidates.budget, len(candidates.budget.groups.widths)
    dense = budget.groups.widths
    known = [budget.reach(ratios) for ratios in candidates.anywhere(6, rng)]
    history = History(1 - np.array(known) / dense, rng.random(6))
    found = candidates.around(history, rng.random(count), rng)
    assert len(found) > 300
    assert budget.meets(found).all()
    assert (found >= budget.min_widths).all()
    assert (found <= dense).all()
    for offered in ([*known, *found[:3]], known):
        new = candidates.first_new(np.array(offered), history, rng)
        assert budget.meets(new)
        assert not any(np.array_equal(new, row) for row in known)
    met, fit = budget.step(dense, 1 - new / dense, True)
    assert fit
    assert np.array_equal(met, new)
    for widths in candidates.rules:
        assert budget.meets(widths)


def test_a_small_box_still_moves_every_group(rng):
    """After many failures it is narrower than a channel of sixteen."""
    candidates = candidates_of("resnet20")
    dense = candidates.budget.groups.widths
    best = candidates.budget.reach(np.full(len(dense), 0.4))
    others = [candidates.budget.reach(r) for r in candidates.anywhere(150, rng)]
    history = History(1 - np.array([best, *others]) / dense, np.r_[1.0, np.zeros(150)])
    near = candidates.around(history, 1 - best / dense, rng)
    close = near[np.abs(near - best).max(1) <= 3]
    assert len(close) > 100
    assert (close != best).any(0).all()


def test_rules_keep_streams_whole_and_then_nothing():
    candidates = candidates_of("resnet20")
    dense = candidates.budget.groups.widths
    _, hollow, even = candidates.rules
    streams = candidates._facts.streams == 1
    assert (hollow[streams] == dense[streams]).all()
    assert (hollow[~streams] < dense[~streams]).all()
    assert np.ptp(even / dense) < 0.1


def test_a_rule_keeps_what_the_loss_is_sensitive_to():
    network, shape = build("resnet20")
    graph = HierarchicalGraph(trace(network, shape))
    sensitivities = np.arange(1.0, 13)
    facts = GroupFacts.of(graph, sensitivities=sensitivities)
    candidates = Candidates(Budget(graph.groups, {"flops": 0.5}), facts)
    kept = candidates.rules[0] / graph.groups.widths
    assert spearmanr(kept, sensitivities).statistic > 0.95
    assert kept[0] < 0.5 < 0.8 < kept[-1]


def test_a_budget_that_hollow_blocks_miss_has_a_rule_less():
    assert len(candidates_of("resnet20", flops=0.05).rules) == 2  # and what is sensitive


def test_noise_has_the_levels_of_the_graph(rng):
    candidates = candidates_of("resnet20")
    ratios = candidates.anywhere(4000, rng)
    logits = np.log(ratios / (1 - ratios))
    correlation = np.corrcoef(logits.T)
    facts = candidates._facts
    alike = (facts.stages[:, None] == facts.stages) & (
        facts.streams[:, None] == facts.streams
    )
    stage = (facts.stages[:, None] == facts.stages) & ~alike
    apart = (facts.stages[:, None] != facts.stages) & (
        facts.streams[:, None] != facts.streams
    )
    off = ~np.eye(len(ratios[0]), dtype=bool)
    means = [correlation[which & off].mean() for which in (alike, stage, apart)]
    assert means[0] > means[1] + 0.1 > means[2] + 0.1
    assert means[2] > 0.2


def test_most_are_near_the_best_and_nearer_in_a_small_box(rng):
    candidates = candidates_of("resnet20")
    dense, budget = candidates.budget.groups.widths, candidates.budget
    widths = np.array([budget.reach(r) for r in candidates.anywhere(20, rng)])
    ratios = 1 - widths / dense

    def distance(scores):
        history = History(ratios[: len(scores)], scores)
        found = candidates.around(history, ratios[1], rng)
        best = ratios[scores.argmax()]
        return np.median(np.abs(1 - found / dense - best).mean(1))

    scores = np.linspace(1, 0, 20)
    small = distance(scores)
    ratios = np.concatenate([ratios] * 4)
    assert distance(np.concatenate([scores, -np.ones(60)])) < small


def test_the_box_follows_successes_and_failures():
    start = box_of(np.zeros(5), 9, first=5)
    assert box_of(np.arange(8.0), 9, first=5) == pytest.approx(1.6 * start)
    assert box_of(np.r_[np.arange(5.0), 0, 0], 9, first=5) == start
    assert box_of(np.r_[np.arange(5.0), 0, 0, 0], 9, first=5) == pytest.approx(start / 1.6)
    assert box_of(np.r_[np.arange(5.0), np.zeros(500)], 9, first=5) == 0.02
    assert box_of(np.arange(500.0), 9, first=5) == 1.0


def test_worths_are_how_much_the_error_has_shrunk():
    scores = np.array([-0.8, -0.4, -0.2, -0.1])
    found = worths(scores)
    assert found.mean() == pytest.approx(0)
    assert found.std() == pytest.approx(1)
    assert np.diff(found) == pytest.approx(np.diff(found)[0])  # halved each time
    assert np.isfinite(worths([0.0, -1.0])).all()
    assert worths([-0.3, -0.3]).tolist() == [0, 0]


def test_what_is_under_way_is_left_out(rng):
    """Who chooses of the same at the same time does not choose the same."""
    candidates = candidates_of("resnet20")
    widths = np.array([candidates.budget.reach(r) for r in candidates.anywhere(9, rng)])
    widths = np.unique([candidates._full(row) for row in widths], axis=0)
    dense = candidates.budget.groups.widths
    known = History(1 - widths[1:2] / dense, np.zeros(1))
    chosen = [
        tuple(candidates.first_new(widths, replace(known, under_way=count), rng))
        for count in range(4)
    ]
    assert chosen == [tuple(widths[i]) for i in (0, 2, 3, 4)]
