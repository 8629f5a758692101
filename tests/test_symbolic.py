import copy
from types import MethodType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import StochasticDepth

from gnnrl_ray import mask, prune, trace
from gnnrl_ray.errors import Notice
from gnnrl_ray.tracing.network import TraceError, get_tensor
from gnnrl_ray.tracing.shapes import ShapeRun
from gnnrl_ray.tracing.symbolic import closed_in, symbolic


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return x if x.sum() > 0 else -self.scale * x


class Nested(nn.Module):
    """Two modules that cannot be traced, one of them only for what the other returns."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.inner = nn.Sequential(nn.ReLU(), Branches())

    def forward(self, x):
        return self.inner(self.conv(x))


def test_the_innermost_module_is_closed():
    network = nn.Sequential(Nested(), nn.Conv2d(4, 2, 1), Branches())
    graph = symbolic(network, (3, 4, 4), skip=True)
    assert closed_in(graph) == ("0.inner.1", "2")
    assert closed_in(symbolic(network, (3, 4, 4), closed_in(graph))) == closed_in(graph)
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(graph(x), network(x))


def test_a_network_that_is_one_branch_cannot_be_closed():
    with pytest.raises(TraceError, match="cannot follow the network itself"):
        symbolic(Branches(), (3, 4, 4), skip=True)


def test_modes_are_those_from_before():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout())
    network.train()
    network[1].eval()
    graph = symbolic(network, (3, 4, 4))
    assert [m.training for m in network.modules()] == [True, True, False, True]
    assert graph.training
    assert not graph.get_submodule("1").training


class Drops(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.depth = nn.Conv2d(3, 8, 1), StochasticDepth(0.5, "row")

    def forward(self, x):
        return self.depth(F.dropout(self.conv(x), 0.5, self.training))


def test_randomness_follows_the_mode_of_the_removed_network():
    torch.manual_seed(0)
    network = nn.Sequential(Drops(), nn.Conv2d(8, 2, 1)).train()
    removed = prune(network, trace(network, (3, 4, 4)), [5]).eval()
    x = torch.randn(64, 3, 4, 4)
    assert torch.equal(removed(x), removed(x))
    assert not torch.equal(removed.train()(x), removed(x))  # stochastic depth is back


def test_shapes_and_numbers_are_kept_without_storage():
    class Sized(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            x = self.conv(x)
            return x.view(x.size(0), -1)

    graph = symbolic(Sized(), (3, 6, 6))
    run = ShapeRun(graph, [n for n in graph.graph.nodes if n.op == "call_module"])
    run.run_on((3, 6, 6))
    values = {node.name: value for node, value in run.values.items()}
    assert values["conv"].shape == (2, 4, 4, 4)
    assert values["conv"].device.type == "meta"
    assert values["size"] == 2
    assert list(run.macs.values()) == [2 * 4 * 4 * 4 * 27]


def test_networks_that_cannot_be_run_are_named():
    with pytest.raises(TraceError, match="no parameters"):
        trace(nn.ReLU(), (3, 4, 4))
    with pytest.raises(TraceError, match=r"image of shape \(3, 2, 2\).*Kernel size"):
        trace(nn.Sequential(nn.Conv2d(3, 4, 5)), (3, 2, 2))


def test_tensors_by_name():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    assert get_tensor(network, "0.weight") is network[0].weight
    assert get_tensor(network, "1.running_mean") is network[1].running_mean


def test_graphs_stay_what_they_are():
    graph = symbolic(nn.Sequential(nn.Conv2d(3, 4, 1)), (3, 4, 4))
    assert symbolic(graph, (3, 4, 4)) is graph
    assert closed_in(symbolic(copy.deepcopy(graph), (3, 4, 4), skip=True)) == ()


def test_a_network_that_is_random_in_evaluation_is_said_to_be():
    class Dropping(Plain):
        def forward(self, x):
            return F.dropout(super().forward(x), 0.5)  # in training or not

    with pytest.warns(Notice, match="something else each time it is run"):
        groups = trace(Dropping(), (3, 8, 8))
    assert groups.names == ("a", "b")


def test_layers_that_are_made_anew_each_time_are_named():
    class Anew(Plain):
        def forward(self, x):
            return super().forward(nn.Conv2d(3, 3, 1)(x))

    with pytest.raises(TraceError, match="not installed as a submodule"):
        trace(Anew(), (3, 8, 8))


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3)
        self.fc = nn.Linear(6, 4)

    def forward(self, x):
        return self.fc(self.b(self.a(x)).mean((2, 3)))


def test_a_forward_may_be_of_one_module_alone():
    """What is written over its class's, as some packages do to networks of torchvision."""
    x, widths = torch.randn(3, 3, 8, 8), np.array([5, 4])
    network = Plain()
    network.forward = MethodType(
        lambda m, x: m.fc(m.b(m.a(x).relu()).amax((2, 3))), network
    )
    network.b.forward = MethodType(lambda m, x: nn.Conv2d.forward(m, x).tanh(), network.b)
    assert torch.equal(symbolic(network, (3, 8, 8))(x), network(x))
    groups = trace(network, (3, 8, 8))
    assert groups.names == ("a", "b")
    removed = prune(network, groups, widths)
    assert torch.allclose(removed(x), mask(network, groups, widths)(x), atol=1e-6)
    network.b.forward = MethodType(
        lambda m, x: nn.Conv2d.forward(m, x).softmax(1), network.b
    )
    groups = trace(network, (3, 8, 8))
    assert groups.names == ("a",)
    assert "softmax" in groups.whole["b"]
