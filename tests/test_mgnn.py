import numpy as np
import pytest
import torch
from helpers.widths import random_widths

from gnnrl_ray import HierarchicalGraph, trace
from gnnrl_ray.agent.mgnn import (
    Actor,
    Critic,
    GraphEncoder,
    LevelEncoder,
    MotifConv,
    VectorEncoder,
    distinct,
)
from gnnrl_ray.graph.hierarchy import Motif
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
        torch.nn.init.normal_(stage.alpha)
    return encoder


def embed(encoder, features):
    plan = encoder.plan(features)
    return encoder(plan)[plan.which]


def batch_of(graph, groups, rng, size):
    widths = np.stack([random_widths(groups, rng) for _ in range(size)])
    return torch.tensor(graph.features(widths))


def test_message_passing_is_equation_4():
    torch.manual_seed(0)
    convolution = MotifConv(5)
    arcs = torch.tensor([[0, 1, 0, 2], [1, 2, 2, 0]])
    h, e = torch.randn(3, 5), torch.randn(4, 5)
    shares = 1 / torch.tensor([1.0, 1.0, 2.0])[:, None]
    weight = convolution.weight.weight
    expected = torch.zeros(3, 5)
    for i in range(3):
        incoming = [k for k in range(4) if arcs[1, k] == i]
        for k in incoming:
            expected[i] += (h[arcs[0, k]] * e[k]) @ weight.T / len(incoming)
    assert torch.allclose(convolution(h, arcs, e, shares), expected, atol=1e-6)


def test_pooling_is_equation_5():
    torch.manual_seed(0)
    stage = LevelEncoder([motif([[0, 1], [1, 2]], [[0, 1]])], features=3, dim=4, layers=1)
    torch.nn.init.normal_(stage.alpha)
    below = torch.randn(2, 3)
    plan, which = stage.plan(torch.tensor([[0, 1]]))
    assert which.tolist() == [[0]]
    both = stage.project(below).repeat(2, 1)
    arcs = torch.tensor([[0, 1, 1, 2], [1, 2, 0, 1]])
    shares = 1 / torch.tensor([1.0, 2.0, 1.0])[:, None]
    h = torch.relu(stage.convolutions[0](torch.ones(3, 4), arcs, both, shares))
    pooled = sum(stage.alpha[i] * h[i] for i in range(3))
    assert torch.allclose(stage(below, plan)[0], stage.norm(pooled), atol=1e-6)


def test_a_level_shares_weights_but_not_pooling(graph):
    stage = GraphEncoder(graph.levels, graph.shape[1]).stages[0]
    expected = [1 / m.nodes for m in graph.motifs for _ in range(m.nodes)]
    assert stage.alpha.tolist() == pytest.approx(expected)
    assert len(stage.convolutions) == 2


def test_motifs_of_different_sizes_do_not_mix():
    """A batch of two motifs, one with more edges, is each of them alone."""
    torch.manual_seed(0)
    small, large = motif([[0], [1]], [[0], [3]]), motif([[0, 1], [1, 2]], [[1, 2]])
    together = LevelEncoder([small, large], features=3, dim=4, layers=2)
    states = torch.randn(4, 3)
    plan, which = together.plan(torch.tensor([[0, 1, 2, 3]]))
    embedded = together(states, plan)[which[0]]
    for i, one in enumerate((small, large)):
        alone = LevelEncoder([one], features=3, dim=4, layers=2)
        weights = together.state_dict()
        weights["alpha"] = weights["alpha"][[slice(0, 2), slice(2, 5)][i]]
        alone.load_state_dict(weights)
        plan, which = alone.plan(torch.tensor([[0, 1, 2, 3]]))
        expected = alone(states, plan)[which[0]]
        assert torch.allclose(embedded[[slice(0, 2), slice(2, 3)][i]], expected, atol=1e-6)


def test_batching_changes_nothing(graph, groups, encoder, rng):
    features = batch_of(graph, groups, rng, 6)
    together = embed(encoder, features)
    alone = torch.cat([embed(encoder, one[None]) for one in features])
    assert torch.allclose(together, alone, atol=1e-5)
    assert not torch.allclose(together[0], together[1], atol=1e-3)


def test_each_distinct_state_is_embedded_once(graph, groups, encoder, rng):
    dense = torch.tensor(graph.features(groups.widths))[None]
    plan = encoder.plan(dense.expand(64, -1, -1))
    # ResNet-14: stem, basic blocks of three sizes and down-sampling blocks of two, pooling,
    # classifier; four stages, of which two are of one kind; and then the network, whatever
    # the batch.
    stages = [4] if len(graph.levels) == 3 else []
    assert [level.states for level in plan.levels] == [8, *stages, 1]
    plan = encoder.plan(torch.cat([dense, batch_of(graph, groups, rng, 2), dense]))
    assert plan.levels[-1].states == 3
    assert plan.which[0] == plan.which[3]


def test_a_plan_is_good_for_any_encoder_of_the_graph(graph, groups, encoder, rng):
    features = batch_of(graph, groups, rng, 3)
    other = GraphEncoder(graph.levels, graph.shape[1], dim=16)
    assert torch.equal(other(encoder.plan(features)), other(other.plan(features)))


def test_the_embedding_follows_where_a_motif_sits(groups, graph, encoder):
    """Two blocks that swap their states make another network."""
    widths = groups.widths.copy()
    first, second = widths.copy(), widths.copy()
    first[groups.names.index("layer1.0.conv1")] //= 2
    second[groups.names.index("layer2.0.conv1")] //= 2
    a, b = (embed(encoder, torch.tensor(graph.features(w))[None]) for w in (first, second))
    assert not torch.allclose(a, b, atol=1e-3)


def test_gradients_reach_every_parameter(graph, groups, encoder, rng):
    actor = Actor(encoder, torch.zeros(6), torch.ones(6), (8,))
    actor(encoder.plan(batch_of(graph, groups, rng, 4))).square().sum().backward()
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
    middle = actor(actor.encoder.plan(torch.randn(100, 3)))
    assert torch.allclose(middle, ((low + high) / 2).expand(100, 2), atol=0.05)
    torch.nn.init.normal_(actor.mlp[-1].weight, std=50)
    extreme = actor(actor.encoder.plan(torch.randn(1000, 3)))
    assert (extreme >= low).all()
    assert (extreme <= high).all()
    assert extreme[:, 0].max() > 1.9


def test_the_critic_sees_the_action(graph, groups, encoder, rng):
    critic = Critic(encoder, 6, (8,))
    features = batch_of(graph, groups, rng, 1).expand(2, -1, -1)
    values = critic(embed(encoder, features), torch.rand(2, 6))
    assert values.shape == (2,)
    assert values[0] != values[1]


def test_constants_are_not_saved(encoder):
    assert all(v.is_floating_point() for v in encoder.state_dict().values())


def test_the_same_observation_is_taken_apart_once(graph, groups, encoder, rng):
    dense = torch.tensor(graph.features(groups.widths))[None]
    first = encoder.plan(dense)
    again = encoder.plan(dense.clone().expand(5, -1, -1))
    assert again.levels is first.levels
    assert again.which.tolist() == [0] * 5
    other = batch_of(graph, groups, rng, 1)
    assert encoder.plan(other).levels is not first.levels
    fresh = GraphEncoder(graph.levels, graph.shape[1], dim=16)
    fresh.load_state_dict(encoder.state_dict())
    assert torch.equal(embed(fresh, other), embed(encoder, other))
