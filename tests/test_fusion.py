"""A fused network returns what the network returns."""

import copy
import operator

import pytest
import torch
import torch.nn.functional as F
from helpers.networks import EVERY, HEAVY, build, outputs, shaken
from helpers.random_cnns import RandomCNN, recipes
from helpers.widths import cut, random_widths
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import fx, nn

from gnnrl_ray import trace
from gnnrl_ray.scoring.fusion import fuse


def calls(fused):
    """How often each operation of oneDNN is called."""
    names = [str(n.target) for n in fused.graph.nodes if n.op == "call_function"]
    return {name: names.count(name) for name in set(names) if "mkldnn" in name}


def images(shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, *shape, generator=generator)
    return x.to(dtype, memory_format=torch.channels_last)


def check(network, shape):
    expected = outputs(network, images(shape))
    scale = expected.abs().max()
    with torch.inference_mode():
        wide = outputs(fuse(network, shape, torch.float32), images(shape))
        narrow = fuse(network, shape, torch.bfloat16)
        narrow = outputs(narrow, images(shape, torch.bfloat16))
    assert torch.allclose(wide / scale, expected / scale, atol=1e-4)
    return narrow.float() / scale, expected / scale


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in HEAVY)) for name in EVERY],
)
def test_every_network(name, rng):
    network, shape = build(name)
    groups = trace(network, shape)
    removed = cut(network, groups, random_widths(groups, rng))
    before = {key: value.clone() for key, value in removed.state_dict().items()}
    narrow, _ = check(removed, shape)
    assert torch.isfinite(narrow).all()
    for key, value in removed.state_dict().items():
        assert torch.equal(value, before[key])
        assert value.dtype == before[key].dtype


def test_statistics_of_several_processes_are_those_of_one(network, groups, rng):
    """Trained on several GPUs, a network may come with ``SyncBatchNorm``."""
    theirs = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(network)).eval()
    found = trace(theirs, (3, 32, 32))
    assert found.names == groups.names
    widths = random_widths(groups, rng)
    removed = cut(theirs, found, widths)
    check(removed, (3, 32, 32))
    fused = [calls(fuse(n, (3, 32, 32), torch.float32))
             for n in (removed, cut(network, groups, widths))]  # fmt: skip
    assert fused[0] == fused[1]
    x = images((3, 32, 32))
    assert torch.allclose(outputs(removed.train(), x),
                          outputs(cut(network, groups, widths).train(), x))  # fmt: skip


def test_narrow_numbers_are_nearly_right(network, groups, rng):
    removed = cut(network, groups, random_widths(groups, rng))
    narrow, expected = check(removed, (3, 32, 32))
    assert torch.allclose(narrow, expected, atol=0.05)
    assert not torch.equal(narrow, expected)


def test_a_resnet_becomes_nothing_but_calls(network, groups):
    removed = cut(network, groups, groups.widths // 2)
    fused = fuse(removed, (3, 32, 32), torch.float32)
    blocks = 3
    assert calls(fused) == {
        # The stem and the first convolution of each block; the second one adds, to
        # memory of its own where the shortcut selects channels, else in place.
        "mkldnn._convolution_pointwise.default": 1 + blocks,
        "mkldnn._convolution_pointwise.binary": 2,
        "mkldnn._convolution_pointwise_.binary": 1,
    }
    left = {type(module) for module in fused.modules()}
    assert not left & {nn.BatchNorm2d, nn.Conv2d, nn.ReLU}


@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v2", "gated"])
def test_without_onednn_it_is_the_same(name, rng):
    """As on a GPU."""
    network, shape = build(name)
    groups = trace(network, shape)
    removed = cut(network, groups, random_widths(groups, rng))
    with torch.backends.mkldnn.flags(enabled=False):
        fused = fuse(removed, shape, torch.float32)
    assert not calls(fused)
    expected = outputs(removed, images(shape))
    found = outputs(fused, images(shape))
    assert torch.allclose(found, expected, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("width", [8, 16, 17])
def test_pixels_in_pairs_are_pixels(width, rng):
    """What a GPU does where channels are few."""
    torch.manual_seed(width)
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU()]
    for stride, height in ((1, 3), (1, 1), (2, 3), (1, 5)):
        layers += [
            nn.Conv2d(8, 8, (height, 3), stride, (height // 2, 1), bias=height == 3),
            nn.BatchNorm2d(8), nn.ReLU(),
        ]  # fmt: skip
    network = shaken(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                                   nn.Linear(8, 5))).eval()  # fmt: skip
    shape = (3, 12, width)
    traced = trace(network, shape).graph_of(network)
    with torch.backends.mkldnn.flags(enabled=False):
        fused = fuse(traced, shape, torch.float32)
    paired = sum("pairs" in str(node.target) for node in fused.graph.nodes)
    assert paired == {8: 2, 16: 2, 17: 1}[width]  # where a row has pairs, stride 1
    expected = outputs(network, images(shape))
    assert torch.allclose(outputs(fused, images(shape)), expected, atol=1e-4)


def test_pairs_are_added_to(network, groups):
    with torch.backends.mkldnn.flags(enabled=False):
        fused = fuse(groups.graph_of(network), (3, 32, 32), torch.float32)
    assert sum("pairs" in str(node.target) for node in fused.graph.nodes) == 2
    expected = outputs(network, images((3, 32, 32)))
    scale = expected.abs().max()
    found = outputs(fused, images((3, 32, 32)))
    assert torch.allclose(found / scale, expected / scale, atol=1e-5)


class Readers(nn.Module):
    """``x`` is added to, and perhaps read again after that."""

    def __init__(self, late):
        super().__init__()
        self.stem, self.inner, self.outer, self.last = (
            nn.Conv2d(3 if i == 0 else 4, 4, 3, padding=1) for i in range(4)
        )
        self.late = late

    def forward(self, x):
        x = F.relu(self.stem(x))
        y = F.relu(self.outer(F.relu(self.inner(x))) + x)
        y = self.last(y) + y  # reads what it would write over
        return y * x if self.late else y


@pytest.mark.parametrize("late", [True, False])
def test_what_is_read_later_is_not_written_over(late):
    torch.manual_seed(0)
    network = fx.symbolic_trace(Readers(late).eval())
    check(network, (3, 8, 8))
    counts = calls(fuse(network, (3, 8, 8), torch.float32))
    assert counts["mkldnn._convolution_pointwise.binary"] == (2 if late else 1)
    assert counts.get("mkldnn._convolution_pointwise_.binary", 0) == (0 if late else 1)


class Broadcast(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.gate = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)

    def forward(self, x):
        return F.relu6(self.layer(x) + self.gate(x.mean((2, 3), keepdim=True)))


def test_broadcast_sums_are_left_alone():
    network = fx.symbolic_trace(Broadcast().eval())
    check(network, (3, 8, 8))
    assert calls(fuse(network, (3, 8, 8), torch.float32)) == {
        "mkldnn._convolution_pointwise.default": 2
    }


@settings(
    max_examples=15, deadline=None, derandomize=True,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
@given(recipes, st.integers(0, 2**16))
def test_random_networks(recipe, seed):
    torch.manual_seed(seed)
    network, shape = shaken(RandomCNN(recipe)), (3, 6, 6)
    groups = trace(network, shape)
    removed = cut(network, groups, groups.widths)
    expected = outputs(removed, images(shape))
    with torch.inference_mode():
        found = outputs(fuse(removed, shape, torch.float32), images(shape))
    scale = expected.abs().max()
    assert torch.allclose(found / scale, expected / scale, atol=1e-4)


def _set(y):
    y[y < 0] = 0
    return y


class Changed(nn.Module):
    """What a convolution reads is changed in place before what is behind it is done."""

    def __init__(self, change):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.classifier = nn.BatchNorm2d(8), nn.Linear(8, 4)
        self.change = change

    def forward(self, x):
        y = self.a(x)
        behind = self.b(y)
        y = self.change(y)
        return self.classifier((y + self.norm(behind).relu()).mean((2, 3)))


@pytest.mark.parametrize(
    "change",
    [
        _set, torch.relu_, lambda y: y.add_(1), lambda y: operator.iadd(y, 1),
        lambda y: F.relu(y, inplace=True), lambda y: F.hardtanh(y, 0, 1, True),
        nn.ReLU(inplace=True), lambda y: y.zero_(),
    ],
)  # fmt: skip
def test_nothing_is_read_after_it_has_been_changed(change):
    torch.manual_seed(0)
    network, x = shaken(Changed(change)), torch.randn(3, 3, 8, 8)
    graph = trace(network, (3, 8, 8)).graph_of(network)
    fused = fuse(graph, (3, 8, 8), torch.float32)
    assert torch.allclose(fused(x.clone()), network(x.clone()), atol=1e-5)
