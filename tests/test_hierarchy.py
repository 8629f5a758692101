from collections import OrderedDict

import numpy as np
import pytest
import torch
from helpers.widths import random_widths

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


def test_levels_are_one_two_or_three(groups):
    with pytest.raises(ValueError, match="got 4"):
        HierarchicalGraph(groups, levels=4)


INVERTED = "conv-norm-activation-conv-norm-activation-conv-norm"
SEPARABLE = "conv-norm-activation-conv-norm-activation"
UNIT = "select-conv-norm-conv-norm"
INCEPTION = (
    "conv-norm-activation-"
    "conv-norm-activation-conv-norm-activation-"
    "conv-norm-activation-conv-norm-activation-"
    "pool-conv-norm-activation-concat"
)
REPEATED = {
    # at stride 1 and 2; and with a shortcut
    "mobilenet_v2": [(INVERTED, 3), (INVERTED + "-add", 10), (INVERTED, 3)],
    "mobilenet_v1": [(SEPARABLE, 9), (SEPARABLE, 4)],
    "shufflenet_v1": [
        (f"conv-norm-activation-{UNIT}-add-activation", 13),
        (f"conv-norm-activation-{UNIT}-pool-concat-activation", 2),
    ],
    "shufflenet_v2": [
        (
            "conv-norm-conv-norm-activation-"
            "conv-norm-activation-conv-norm-conv-norm-activation-concat-select",
            3,
        ),
        (
            "select-select-conv-norm-activation-conv-norm-conv-norm-activation-"
            "concat-select",
            13,
        ),
    ],
    "vgg16": [("conv-norm-activation", 8), ("conv-norm-activation-pool", 5)],
    "torchvision:googlenet": [(INCEPTION, 9), ("pool", 2)],
    "torchvision:vgg16": [("conv-activation", 8), ("conv-activation-pool", 5)],
    "torchvision:densenet121": [
        ("concat", 597),
        ("norm-activation-conv-norm-activation-conv", 58),
        ("norm-activation", 4),
        ("conv-pool", 3),
    ],
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(each, marks=[pytest.mark.slow] * (each == "torchvision:vgg16"))
     for each in REPEATED],
)  # fmt: skip
def test_motifs_are_the_blocks_of_the_literature(name):
    graph = HierarchicalGraph(trace(build_network(name), (3, 96, 96)))
    found = [(m.label, len(m.children)) for m in graph.motifs if len(m.children) > 1]
    assert [pair for pair in found if pair[0] != "linear-activation"] == REPEATED[name]


STAGES = {
    "resnet20": [1, 2, 1],  # the first differs: nothing is halved
    "resnet110": [1, 2, 1],
    "vgg16": [2, 3, 1],  # two and three convolutions before a pool
    "shufflenet_v2": [1, 2, 1, 1],
    "mobilenet_v2": [1, 1, 2, 1, 1, 1],
    "mobilenet_v1": [1, 3, 1, 1],
    "shufflenet_v1": [1, 1, 1, 1],
    "torchvision:googlenet": [1, 1, 1, 1],
    "torchvision:resnet50": [1, 1, 1, 1, 1],
}


@pytest.mark.parametrize("name", STAGES)
def test_networks_that_repeat_twice_over_have_three_levels(name):
    graph = HierarchicalGraph(trace(build_network(name), (3, 96, 96)), levels=3)
    blocks, stages, (network,) = graph.levels
    assert [len(stage.children) for stage in stages] == STAGES[name]
    # Every instance of a level is an edge of the next, once.
    for below, above in ((blocks, stages), (stages, [network])):
        edges = np.concatenate([motif.children.ravel() for motif in above])
        assert sorted(edges) == list(range(sum(len(m.children) for m in below)))
    # And along the network, one begins where another ends.
    ends = {op.name: i for i, op in enumerate(graph.groups.operations)}
    places = [place for stage in stages for place in stage.places]
    walk = [places[child] for child in network.children[0]]
    assert [ends[a] for a, _ in walk] == [0, *(ends[b] + 1 for _, b in walk[:-1])]


def test_three_levels_are_two_where_nothing_repeats_twice_over():
    groups = trace(build_network("torchvision:densenet121"), (3, 64, 64))
    assert len(HierarchicalGraph(groups, levels=3).levels) == 2


def test_names_of_modules_do_not_matter(network, groups):
    renamed = torch.nn.Sequential(OrderedDict(body=network))
    labels = [[m.label for m in level] for level in HierarchicalGraph(groups, 3).levels]
    again = HierarchicalGraph(trace(renamed, (3, 32, 32)), 3)
    assert [[m.label for m in level] for level in again.levels] == labels


def test_a_number_of_all_images_has_a_place_in_the_graph():
    """It has less than one element for each image."""

    class Centred(torch.nn.Sequential):
        def forward(self, x):
            x = self[0](x)
            return self[1]((x - x.mean()).mean((2, 3)))

    network = Centred(torch.nn.Conv2d(3, 8, 3), torch.nn.Linear(8, 4))
    groups = trace(network, (3, 8, 8))
    for levels in (1, 2, 3):
        features = HierarchicalGraph(groups, levels).features(groups.widths)
        assert np.isfinite(features).all()
