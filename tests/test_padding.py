"""Training among zeros, beside training what was removed."""

import copy

import numpy as np
import pytest
import torch
from helpers.networks import Gated
from helpers.widths import random_widths
from torch import nn

from gnnrl_ray import trace
from gnnrl_ray.pruning.importance import rank
from gnnrl_ray.pruning.removal import deliver, keep, remove
from gnnrl_ray.scoring.padding import Padded, padded
from gnnrl_ray.scoring.training import train
from gnnrl_ray.tracing.network import TraceError
from gnnrl_ray.zoo import build_network
from gnnrl_ray.zoo.resnet import ResNet


def in_double(network):
    return copy.deepcopy(network).double()


def kept_of(network, groups, widths):
    return keep(rank(network, groups, "random", int(widths[0])), widths)


def channels(network):
    return {m.out_channels for m in network.modules() if isinstance(m, nn.Conv2d)}


@pytest.mark.parametrize(
    ("name", "seed"), [("resnet8", 0), ("resnet8", 1), ("resnet8", 2), ("mobilenet_v2", 0)]
)
def test_what_is_learnt_among_zeros_is_what_is_learnt_without(name, seed):
    torch.manual_seed(0)
    rng = np.random.default_rng(seed)
    network = ResNet(8) if name == "resnet8" else build_network(name, 10, 32)
    network = network.eval().double()
    for module in network.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0  # draws as many numbers as there are channels
    groups = trace(network, (3, 32, 32))
    widths = random_widths(groups, rng)
    kept = kept_of(network, groups, widths)
    alone, among = remove(network, groups, kept), remove(network, groups, kept)
    wider = Padded(among, network, groups, kept)
    assert channels(wider.network) != channels(among)
    images, labels = torch.rand(12, 3, 32, 32).double(), torch.arange(12) % 10
    for one, hold in ((alone, None), (wider.network, wider.hold)):
        one.train()
        how = torch.optim.SGD(one.parameters(), 0.05, 0.9, weight_decay=0.01, nesterov=True)
        for _ in range(4):
            how.zero_grad()
            nn.functional.cross_entropy(one(images), labels).backward()
            how.step()
            if hold is not None:
                hold()
    before = in_double(among).state_dict()
    wider.unload()
    changed = 0
    for name, value in alone.state_dict().items():
        found = among.state_dict()[name]
        assert torch.allclose(found.double(), value.double(), rtol=1e-6, atol=1e-9), name
        changed += not torch.equal(found.double(), before[name].double())
    assert changed > len(before) / 2


def test_numbers_of_channels_are_eights_where_the_network_has_as_many(network, groups, rng):
    widths = np.minimum(random_widths(groups, rng), groups.widths - 1)
    kept = kept_of(network, groups, widths)
    wider = Padded(remove(network, groups, kept), network, groups, kept)
    assert all(count % 8 == 0 for count in channels(wider.network))


def test_a_network_of_its_own_class_gets_its_weights_back(network, groups, digits, rng):
    inner = ["." in name and name.endswith("conv1") for name in groups.names]
    widths = np.where(inner, random_widths(groups, rng), groups.widths)
    kept = kept_of(network, groups, widths)
    smaller = deliver(network, groups, kept)
    assert isinstance(smaller, ResNet)
    by_hand = copy.deepcopy(smaller)
    smaller.linear.weight.requires_grad_(False)
    by_hand.linear.weight.requires_grad_(False)
    wider = Padded(smaller, network, groups, kept)
    train(wider.network, digits.train, steps=3, seed=1, hold=wider.hold)
    train(by_hand, digits.train, steps=3, seed=1)
    wider.unload()
    for name, value in by_hand.state_dict().items():
        assert torch.allclose(smaller.state_dict()[name], value, rtol=1e-2, atol=1e-3), name
    assert torch.equal(smaller.linear.weight, by_hand.linear.weight)


def test_a_graph_that_viewed_in_one_order_is_the_same_among_zeros():
    torch.manual_seed(0)
    network = Gated().eval()
    groups = trace(network, (3, 8, 8))
    kept = kept_of(network, groups, np.maximum(1, groups.widths // 2))
    smaller = remove(network, groups, kept)
    wider, images = Padded(smaller, network, groups, kept), torch.rand(3, 3, 8, 8)
    assert torch.allclose(wider.network(images), smaller(images), atol=1e-5)


def test_what_is_not_the_same_among_zeros_is_refused(network, groups, rng, monkeypatch):
    kept = kept_of(network, groups, random_widths(groups, rng))
    smaller = remove(network, groups, kept)
    monkeypatch.setattr(Padded, "_load", lambda self: None)  # with weights of its own
    with pytest.raises(TraceError, match="among zeros"):
        Padded(smaller, network, groups, kept)


def test_on_a_cpu_nothing_is_padded(network, groups, rng):
    kept = kept_of(network, groups, random_widths(groups, rng))
    smaller = remove(network, groups, kept)
    with padded(smaller, network, groups, kept) as (trained, hold):
        assert trained is smaller
        assert hold is None


@pytest.mark.gpu
@pytest.mark.parametrize("fails", [False, True])
def test_on_a_gpu_what_is_learnt_comes_back(network, groups, digits, rng, fails):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    network, data = network.cuda(), digits.to(torch.device("cuda"))
    kept = kept_of(network, groups, random_widths(groups, rng))
    alone, among = (remove(network, groups, kept) for _ in range(2))
    steps = 8
    try:
        with padded(among, network, groups, kept) as (trained, hold):
            assert trained is not among
            train(trained, data.train, steps=steps, lr=0.01, seed=1, hold=hold)
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert fails
    train(alone, data.train, steps=steps, lr=0.01, seed=1)
    for name, value in alone.state_dict().items():
        off = (value - among.state_dict()[name]).float().norm()
        assert off <= 0.02 * (1 + value.float().norm()), name
