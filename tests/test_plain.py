"""Layers with forwards of their own, weights that are computed, what training changes."""

import copy
import io
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.networks import outputs, shaken
from helpers.widths import cut
from test_properties import check_costs, check_removed_equals_masked
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from gnnrl_ray import prune, trace
from gnnrl_ray.pruning import removal
from gnnrl_ray.pruning.budget import Budget, BudgetError
from gnnrl_ray.scoring.training import recalibrate
from gnnrl_ray.tracing.network import TraceError
from gnnrl_ray.tracing.operations import Operation

SHAPE = (3, 8, 8)


class NormAct(nn.BatchNorm2d):
    """As timm's: the function, and an activation behind it."""

    def __init__(self, channels):
        super().__init__(channels)
        self.act = nn.ReLU()

    def forward(self, x):
        return self.act(
            F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias,
                self.training, self.momentum, self.eps,
            )
        )  # fmt: skip


class SameConv(nn.Conv2d):
    """Pads as TensorFlow does, from the size of its kernel."""

    def forward(self, x):
        rows, columns = self.weight.shape[-2:]
        x = F.pad(x, (0, columns - 1, 0, rows - 1))
        return F.conv2d(
            x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups
        )


class FrozenNorm(nn.Module):
    def __init__(self, channels):
        super().__init__()
        for name in ("weight", "bias", "mean", "var"):
            self.register_buffer(name, torch.rand(channels) + 0.5)

    def forward(self, x):
        scale = self.weight.reshape(1, -1, 1, 1) * (self.var + 1e-5).rsqrt().view(
            1, -1, 1, 1
        )
        return x * scale + (self.bias[:, None, None] - self.mean[:, None, None])


class OwnNorm(nn.Module):
    """Statistics by other names, and a mode that is passed on."""

    def __init__(self, channels):
        super().__init__()
        self.gain = nn.Parameter(torch.rand(channels) + 0.5)
        self.register_buffer("mean", torch.rand(channels))
        self.register_buffer("var", torch.rand(channels) + 0.5)

    def forward(self, x):
        return F.batch_norm(x, self.mean, self.var, self.gain, None, self.training)


class Network(nn.Module):
    def __init__(self, conv=nn.Conv2d, norm=nn.BatchNorm2d):
        super().__init__()
        self.register_buffer("mean", torch.rand(3))
        self.a, self.n = conv(3, 12, 3), norm(12)
        self.b, self.m = conv(12, 10, 3), norm(10)
        self.h = nn.Linear(10, 4)

    def forward(self, x):
        x = x - self.mean.view(1, 3, 1, 1)
        x = self.m(self.b(self.n(self.a(x))))
        return self.h(F.dropout(x.mean((2, 3)), 0.5, self.training))


class DropPath(nn.Module):
    def forward(self, x):
        return x * torch.rand(len(x), 1, 1, 1) if self.training else x


@pytest.mark.parametrize("conv", [nn.Conv2d, SameConv])
@pytest.mark.parametrize(
    "norm",
    [NormAct, FrozenNorm, OwnNorm, lambda n: nn.Sequential(DropPath(), NormAct(n))],
)
def test_layers_with_forwards_of_their_own(conv, norm):
    torch.manual_seed(0)
    network = shaken(Network(conv, norm)).double()
    groups, x = trace(network, SHAPE), torch.randn(2, *SHAPE, dtype=torch.double)
    assert groups.names == ("a", "b")
    removed = check_removed_equals_masked(network, SHAPE, groups, [5, 7], x)
    assert type(removed) is Network
    assert removed.state_dict().keys() == network.state_dict().keys()
    check_costs(removed, SHAPE, groups, [5, 7])


def test_what_training_changes_is_changed_in_the_graph_too(digits):
    torch.manual_seed(0)
    network = shaken(Network(norm=NormAct))
    groups = trace(network, (3, 32, 32))
    for removed in (cut(network, groups, [5, 7]), prune(network, groups, [5, 7])):
        x = torch.randn(64, 3, 32, 32)
        assert torch.equal(removed.eval()(x), removed(x))
        before = copy.deepcopy(removed.state_dict())
        assert not torch.equal(removed.train()(x), removed(x))
        recalibrate(removed, digits.train, seed=0)
        for name, value in removed.state_dict().items():
            if "tracked" not in name:
                changed = not torch.equal(value, before[name])
                assert changed == ("running" in name), name


def test_a_mode_that_is_passed_on_is_that_of_the_graph():
    network = shaken(Network(norm=OwnNorm))
    graph = cut(network, trace(network, SHAPE), [5, 7])
    x = torch.randn(64, *SHAPE)
    before = graph.n.mean.clone()
    assert torch.equal(graph.eval()(x), graph(x))
    assert torch.equal(graph.n.mean, before)
    assert not torch.equal(graph.train()(x), graph(x))
    assert not torch.equal(graph.n.mean, before)


def weight_norm(layer):
    return parametrizations.weight_norm(layer)


def spectral_norm(layer):
    return parametrizations.spectral_norm(layer)


class LowRank(nn.Module):
    """What is learnt of a layer that stays, as the product of two small matrices."""

    def __init__(self, rows, columns):
        super().__init__()
        self.a, self.b = (
            nn.Parameter(torch.rand(2, columns)),
            nn.Parameter(torch.rand(rows, 2)),
        )

    def forward(self, weight):
        return weight + (self.b @ self.a).view_as(weight)


def low_rank(layer):
    update = LowRank(len(layer.weight), layer.weight[0].numel())
    parametrize.register_parametrization(layer, "weight", update)


@pytest.mark.parametrize(
    "computed", [weight_norm, spectral_norm, low_rank, parametrizations.orthogonal]
)
def test_weights_that_are_computed_stay_whole_and_say_so(computed):
    network = Network()
    computed(network.b)
    groups = trace(network.eval(), SHAPE)
    assert groups.names == ()
    assert "weights that are computed" in groups.whole["a"]
    assert "weights that are computed" in groups.whole["b"]
    with pytest.raises(BudgetError, match=r"all channels .*computed; .*remove_param"):
        Budget(groups, {"flops": 0.5})
    parametrize.remove_parametrizations(network.b, "weight")
    assert trace(network.eval(), SHAPE).names


def test_a_branch_that_nobody_reads_is_counted_as_it_is_run():
    class Idle(Network):
        def forward(self, x):
            self.b(self.a(x))
            return super().forward(x)

    network = shaken(Idle()).double()
    groups = trace(network, SHAPE)
    check_costs(prune(network, groups, [5, 7]), SHAPE, groups, [5, 7])


def test_bounds_that_are_tensors():
    class Clamped(Network):
        def __init__(self):
            super().__init__()
            self.register_buffer("low", -torch.rand(1, 12, 1, 1))

        def forward(self, x):
            x = self.n(self.a(x))
            return self.h(self.m(self.b(torch.clamp(x, min=self.low))).mean((2, 3)))

    network, x = shaken(Clamped()).double(), torch.randn(2, *SHAPE, dtype=torch.double)
    groups = trace(network, SHAPE)
    removed = check_removed_equals_masked(network, SHAPE, groups, [5, 7], x)
    assert removed.low.shape == (1, 5, 1, 1)


LOAD = """
import sys, torch
sys.modules["gnnrl_ray"] = None  # not installed
network, x, y = torch.load(sys.argv[1], weights_only=False)
assert torch.equal(network(x), y)
"""


def test_what_is_pruned_loads_where_only_torch_is(network, groups, tmp_path):
    removed = prune(network, groups, groups.widths // 2).eval()
    # Where its shortcuts pad with channels, its own code cannot be used.
    assert type(removed) is not type(network)
    x = torch.randn(2, 3, 32, 32)
    torch.save((removed, x, removed(x)), tmp_path / "pruned.pt")
    subprocess.run([sys.executable, "-c", LOAD, tmp_path / "pruned.pt"], check=True)
    again = trace(removed, (3, 32, 32))
    assert np.array_equal(again.widths, groups.widths // 2)


def test_selections_are_in_the_state_dict(network, groups):
    """Weights of equal widths and other channels make the network that they are of."""
    widths = groups.widths // 2
    first, second = (prune(network, groups, widths, "random", seed) for seed in (0, 1))
    x = torch.randn(2, 3, 32, 32)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    assert not torch.equal(outputs(first, x), outputs(second, x))
    second.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(outputs(first, x), outputs(second, x))


class Blocks(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 6, 3, padding=1), *(Block() for _ in range(3)),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4),
        )  # fmt: skip


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)

    def forward(self, x):
        return x + self.norm(self.conv(x))


def compile_network(network):
    return torch.compile(network, backend="eager")


def compile_in_place(network):
    network.compile(backend="eager")
    network[1].compile(backend="eager")
    network[2].conv.compile(backend="eager")
    return network


def compile_layers(network):
    network[0] = torch.compile(network[0], backend="eager")
    network[2].conv = torch.compile(network[2].conv, backend="eager")
    return network


def compile_blocks(network):
    network = compile_layers(network)
    for n in (1, 2):
        network[n] = torch.compile(network[n], backend="eager")
    return compile_network(network)


def compile_forward(network):
    network[1].forward = torch.compile(network[1].forward, backend="eager")
    return network


@pytest.mark.parametrize(
    "compiled",
    [compile_network, compile_in_place, compile_layers, compile_blocks, compile_forward],
)
def test_compiled_networks_are_what_they_were_compiled_from(compiled):
    network, x = shaken(Blocks()), torch.rand(2, *SHAPE)
    plain, groups = copy.deepcopy(network), trace(network, SHAPE)
    network = compiled(network)
    found = trace(network, SHAPE)
    assert found.widths.tolist() == groups.widths.tolist()
    expected = outputs(prune(plain, groups, [4]), x)
    assert torch.allclose(outputs(prune(network, found, [4]), x), expected, atol=1e-5)
    assert torch.allclose(outputs(network, x), outputs(plain, x), atol=1e-5)


def test_what_does_not_return_what_it_should_is_refused(monkeypatch):
    """Were a rule wrong, nobody would get a wrong network."""
    network = shaken(Network())
    groups = trace(network, SHAPE)
    rules = removal._parts

    def wrong(graph, groups, flags):
        parts = rules(graph, groups, flags)
        parts[id(graph.a.weight)] = nn.Parameter(parts[id(graph.a.weight)] * 1.1)
        return parts

    monkeypatch.setattr(removal, "_parts", wrong)
    with pytest.raises(TraceError, match=r"the pruned graph returns something else .*%"):
        prune(network, groups, [5, 7])


def test_what_is_counted_is_what_torch_counts(monkeypatch):
    monkeypatch.setattr(Operation, "macs", 1)
    with pytest.raises(TraceError, match=r"3 multiply-accumulates have been counted where"):
        trace(Network(), SHAPE)
