"""What is said of groups is true, and the same of groups that are alike."""

import numpy as np
import pytest
from helpers.networks import build

from gnnrl_ray import trace
from gnnrl_ray.graph.facts import GroupFacts
from gnnrl_ray.graph.hierarchy import HierarchicalGraph


def facts_of(name, levels=2):
    network, shape = build(name)
    groups = trace(network, shape)
    return groups, GroupFacts.of(HierarchicalGraph(groups, levels))


def test_of_a_resnet():
    groups, facts = facts_of("resnet20")
    assert facts.values.shape == (12, 11)
    assert facts.streams.sum() == 3  # one a stage
    assert facts.stages.max() == 2
    assert np.array_equal(2 ** (10 * facts.values[:, 6]), 32.0**2 / 4 ** (2 - facts.stages))
    assert np.allclose(2 ** (6 * facts.values[:, 0]), groups.widths)
    assert np.allclose(facts.touched.sum(1), 1)
    # The stream of a stage is of all of its blocks, what is inside one of that alone.
    counts = (facts.touched > 0).sum(1)
    assert set(counts[facts.streams == 0]) == {1}
    assert (counts[facts.streams == 1] >= 3).all()


def test_groups_that_are_alike_differ_only_in_their_place():
    _, facts = facts_of("resnet20")
    for stage in range(3):
        rows = facts.values[(facts.stages == stage) & (facts.streams == 0)]
        place = 4
        first = rows[0 if stage == 2 else 1]  # the first of a smaller side has a stride
        for row in rows[1:]:
            assert np.allclose(np.delete(row, place), np.delete(first, place), atol=1e-6)
        assert (np.diff(rows[:, place]) > 0).all()


@pytest.mark.parametrize(
    ("name", "levels"),
    [("mobilenet_v2", 1), ("resnet20", 3), ("shufflenet_v1", 2), ("gated", 2)],
)
def test_every_group_has_facts(name, levels):
    groups, facts = facts_of(name, levels)
    assert np.isfinite(facts.values).all()
    assert np.abs(facts.values).max() < 4
    assert len(facts.values) == len(groups.widths)
    assert np.allclose(facts.touched.sum(1), 1)


def test_importance_is_a_fact():
    network, shape = build("resnet20")
    graph = HierarchicalGraph(trace(network, shape))
    widths = graph.groups.widths
    even = GroupFacts.of(graph, [np.ones(w) for w in widths]).values
    assert np.allclose(even[:, 7:10], 0)
    one = GroupFacts.of(graph, [np.eye(1, w)[0] for w in widths]).values
    assert np.allclose(one[:, 7:10], [0.75, 0.5, 0.25])
    assert np.array_equal(one[:, :7], even[:, :7])


def test_sensitivity_is_a_fact():
    network, shape = build("resnet20")
    graph = HierarchicalGraph(trace(network, shape))
    facts = GroupFacts.of(graph, sensitivities=np.exp(np.arange(12.0)))
    assert facts.sensitivity == pytest.approx((np.arange(12) - 5.5) / np.arange(12).std())
    assert np.allclose(facts.values[:, 10], facts.sensitivity)
    assert not GroupFacts.of(graph).sensitivity.any()
    # A group that the loss does not know of is a number, too.
    nothing = GroupFacts.of(graph, sensitivities=np.r_[0.0, np.ones(11)])
    assert np.isfinite(nothing.values).all()
