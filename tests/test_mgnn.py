import numpy as np
import pytest
import torch
from conftest import random_widths

from gnnrl_ray import HierarchicalGraph, trace
from gnnrl_ray.graph import Motif
from gnnrl_ray.mgnn import (
    Actor,
    Critic,
    GraphEncoder,
    LevelEncoder,
    MotifConv,
    VectorEncoder,
    distinct,
)
from gnnrl_ray.zoo.resnet import ResNet


def motif(edges, children):
    nodes = 1 + int(np.max(edges))
    return Motif("m", nodes, np.array(edges), np.array(children), (("a", "b"),))


@pytest.fixture
def groups():
    return trace(ResNet(14), (3, 32, 32))  # its stages repeat, those of ResNet-8 do not


@pytest.fixture(params=[2, 3])
def graph(groups, request):
    graph = HierarchicalGraph(groups, request.param)
    assert len(graph.levels) == request.param
    return graph


@pytest.fixture
def encoder(graph):
    torch.manual_seed(0)
    encoder = GraphEncoder(graph.levels, graph.shape[1], dim=16)
    for stage in encoder.stages:  # pooling weights that tell nodes apart
        for alpha in stage.alpha:
            torch.nn.init.normal_(alpha)
    return encoder


def batch_of(graph, groups, rng, size):
    widths = np.stack([random_widths(groups, rng) for _ in range(size)])
    return torch.tensor(graph.features(widths))


def test_message_passing_is_equation_4():
    torch.manual_seed(0)
    convolution = MotifConv(5)
    edges = torch.tensor([[0, 1, 0, 2], [1, 2, 2, 0]])
    h, e = torch.randn(3, 3, 5), torch.randn(3, 4, 5)
    weight = convolution.weight.weight
    expected = torch.zeros(3, 3, 5)
    for i in range(3):
        incoming = [k for k in range(4) if edges[1, k] == i]
        for k in incoming:
            message = h[:, edges[0, k]] * e[:, k]
            expected[:, i] += message @ weight.T / len(incoming)
    assert torch.allclose(convolution(h, edges, e), expected, atol=1e-6)


def test_a_node_without_neighbours_hears_nothing():
    out = MotifConv(4)(torch.ones(1, 2, 4), torch.tensor([[0], [1]]), torch.ones(1, 1, 4))
    assert not out[:, 0].any()


def test_pooling_is_equation_5():
    torch.manual_seed(0)
    stage = LevelEncoder([motif([[0, 1], [1, 2]], [[0, 1]])], features=3, dim=4, layers=1)
    torch.nn.init.normal_(stage.alpha[0])
    below = torch.randn(2, 2, 3)
    both = stage.project(below).repeat(1, 2, 1)
    edges = torch.tensor([[0, 1, 1, 2], [1, 2, 0, 1]])
    h = torch.relu(stage.convolutions[0](torch.ones(2, 3, 4), edges, both))
    pooled = sum(stage.alpha[0][i] * h[:, i] for i in range(3))
    assert torch.allclose(stage.embed(0, below), stage.norm(pooled), atol=1e-6)


def test_a_level_shares_weights_but_not_pooling(graph):
    stage = GraphEncoder(graph.levels, graph.shape[1]).stages[0]
    assert len(stage.alpha) == len(graph.motifs)
    assert [len(a) for a in stage.alpha] == [m.nodes for m in graph.motifs]
    assert len(stage.convolutions) == 2


def test_batching_changes_nothing(graph, groups, encoder, rng):
    features = batch_of(graph, groups, rng, 6)
    together = encoder(features)
    alone = torch.cat([encoder(one[None]) for one in features])
    assert torch.allclose(together, alone, atol=1e-5)
    assert not torch.allclose(together[0], together[1], atol=1e-3)


def test_each_distinct_state_is_embedded_once(graph, groups, encoder, rng, monkeypatch):
    embedded = []
    original = LevelEncoder.embed
    monkeypatch.setattr(
        LevelEncoder,
        "embed",
        lambda self, i, edges: embedded.append(len(edges)) or original(self, i, edges),
    )
    dense = torch.tensor(graph.features(groups.widths))[None]
    encoder(dense.expand(64, -1, -1))
    # ResNet-14: stem, basic blocks of three sizes and down-sampling blocks of two, pooling,
    # classifier; four stages, of which two are of one kind; and then the network, whatever
    # the batch.
    assert sum(embedded) == 8 + {2: 0, 3: 4}[len(graph.levels)] + 1
    embedded.clear()
    encoder(torch.cat([dense, batch_of(graph, groups, rng, 2), dense]))
    assert embedded[-1] == 3


def test_the_embedding_follows_where_a_motif_sits(groups, graph, encoder):
    """Two blocks that swap their states make another network."""
    widths = groups.widths.copy()
    first, second = widths.copy(), widths.copy()
    first[groups.names.index("layer1.0.conv1")] //= 2
    second[groups.names.index("layer2.0.conv1")] //= 2
    a, b = (encoder(torch.tensor(graph.features(w))[None]) for w in (first, second))
    assert not torch.allclose(a, b, atol=1e-3)


def test_gradients_reach_every_parameter(graph, groups, encoder, rng):
    actor = Actor(encoder, torch.zeros(6), torch.ones(6), (8,))
    actor(batch_of(graph, groups, rng, 4)).square().sum().backward()
    for name, parameter in actor.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
def test_distinct_rows(dtype):
    rows = torch.tensor([[1, 2], [3, 4], [1, 2], [2, 1], [3, 4]]).to(dtype)
    first, which = distinct(rows)
    assert len(first) == 3
    assert torch.equal(rows[first][which], rows)


def test_actions_stay_between_their_bounds():
    low, high = torch.tensor([-2.0, 0.0]), torch.tensor([2.0, 1.0])
    torch.manual_seed(0)
    actor = Actor(VectorEncoder(3), low, high, (32, 32))
    middle = actor(torch.randn(100, 3))
    assert torch.allclose(middle, ((low + high) / 2).expand(100, 2), atol=0.05)
    torch.nn.init.normal_(actor.mlp[-1].weight, std=50)
    extreme = actor(torch.randn(1000, 3))
    assert (extreme >= low).all()
    assert (extreme <= high).all()
    assert extreme[:, 0].max() > 1.9


def test_the_critic_sees_the_action(graph, groups, encoder, rng):
    critic = Critic(encoder, 6, (8,))
    features = batch_of(graph, groups, rng, 1).expand(2, -1, -1)
    values = critic(features, torch.rand(2, 6))
    assert values.shape == (2,)
    assert values[0] != values[1]


def test_constants_are_not_saved(encoder):
    assert all(v.is_floating_point() for v in encoder.state_dict().values())
