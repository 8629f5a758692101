import numpy as np
import pytest
from conftest import random_widths

from gnnrl_ray import Costs, HierarchicalGraph, trace
from gnnrl_ray.zoo import build_network

BASIC = "conv-norm-activation-conv-norm-add-activation"
DOWN = "conv-norm-activation-conv-norm-reshape-select-add-activation"


@pytest.fixture
def graph(groups):
    return HierarchicalGraph(groups)


@pytest.mark.parametrize(("name", "basic"), [("resnet20", 7), ("resnet56", 25)])
def test_resnets_have_two_levels_and_two_repeated_motifs(name, basic):
    graph = HierarchicalGraph(trace(build_network(name), (3, 32, 32)))
    counts = {motif.label: len(motif.children) for motif in graph.motifs}
    repeated = {label: n for label, n in counts.items() if n > 1}
    assert repeated == {BASIC: basic, DOWN: 2}
    assert len(graph.levels) == 2
    (network,) = graph.levels[1]
    assert network.edges.shape[1] == sum(counts.values())


def test_motifs_cover_every_primitive_edge_once(graph):
    rows = np.concatenate([motif.children.ravel() for motif in graph.motifs])
    assert sorted(rows) == list(range(graph.shape[0]))


def test_the_top_level_walks_through_the_network(graph):
    (network,) = graph.levels[1]
    places = [place for motif in graph.motifs for place in motif.places]
    walk = [places[child][0] for child in network.children[0]]
    assert walk == [
        "conv1", "layer1_0_conv1", "layer2_0_conv1", "layer3_0_conv1",
        "adaptive_avg_pool2d", "linear",
    ]  # fmt: skip


def test_motif_topology_is_that_of_a_basic_block(graph):
    basic = next(motif for motif in graph.motifs if motif.label == BASIC)
    # conv, norm, relu, conv, norm in a row; add reads the last and the entry; relu
    assert sorted(map(tuple, basic.edges.T)) == [
        (0, 1), (0, 6), (1, 2), (2, 3), (3, 4), (4, 5), (5, 6), (6, 7),
    ]  # fmt: skip


def test_features_stay_in_their_range_and_shape(groups, graph, rng):
    for widths in (
        groups.widths,
        np.ones_like(groups.widths),
        random_widths(groups, rng),
    ):
        features = graph.features(widths)
        assert features.shape == graph.shape
        assert features.dtype == np.float32
        assert features.min() >= 0
        assert features.max() <= 1


def test_features_change_exactly_where_widths_change(groups, graph):
    operations = groups.operations
    for g in range(len(groups.widths)):
        widths = groups.widths.copy()
        widths[g] -= 1
        changed = (graph.features(widths) != graph.features(groups.widths)).any(1)
        edges = [(p, i) for i, op in enumerate(operations) for p in op.parents]
        touched = [
            g in groups.group_of(operations[i].outputs)
            or (p >= 0 and g in groups.group_of(operations[p].outputs))
            for p, i in edges
        ]
        assert changed.tolist() == touched


def test_shares_of_macs_add_up(groups, graph, rng):
    widths = random_widths(groups, rng)
    costs = Costs(groups)
    share = np.square(graph.features(widths)[:, -1]).sum()
    assert share == pytest.approx(costs.macs(widths) / costs.macs(groups.widths), rel=1e-5)


def test_features_are_vectorised(groups, graph, rng):
    many = np.stack([random_widths(groups, rng) for _ in range(3)])
    assert np.array_equal(graph.features(many)[1], graph.features(many[1]))


def test_one_level_is_the_network_itself(groups):
    graph = HierarchicalGraph(groups, levels=1)
    ((network,),) = graph.levels
    assert network.nodes == len(groups.operations) + 1
    assert network.edges.shape[1] == graph.shape[0]


def test_levels_are_one_or_two(groups):
    with pytest.raises(ValueError, match="got 3"):
        HierarchicalGraph(groups, levels=3)
