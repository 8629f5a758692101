import copy

import numpy as np
import pytest
import torch
from helpers.widths import random_widths
from test_groups import Zoo

from gnnrl_ray import mask, prune, trace
from gnnrl_ray.pruning.importance import IMPORTANCES, rank
from gnnrl_ray.pruning.removal import keep, remove
from gnnrl_ray.zoo import build_network


@pytest.mark.parametrize("importance", IMPORTANCES)
@pytest.mark.parametrize("seed", range(4))
def test_removed_equals_masked(network, groups, importance, seed):
    widths = random_widths(groups, np.random.default_rng(seed))
    network = network.double()
    x = torch.randn(4, 3, 32, 32, dtype=torch.double)
    batch = (x, torch.arange(4))
    smaller = prune(network, groups, widths, importance, seed, batch)
    silenced = mask(network, groups, widths, importance, seed, batch)
    assert smaller.conv1.out_channels == widths[0]
    assert silenced.conv1.out_channels == 16
    assert torch.allclose(smaller(x), silenced(x), rtol=1e-8, atol=1e-10)
    assert not torch.allclose(smaller(x), network(x), rtol=1e-2)


@pytest.mark.parametrize("name", ["resnet20", "resnet56", "resnet110"])
def test_removed_equals_masked_in_single_precision(name):
    torch.manual_seed(0)
    network = build_network(name).eval()
    groups = trace(network, (3, 32, 32))
    widths = np.maximum(1, groups.widths // 2)
    x = torch.randn(8, 3, 32, 32)
    smaller = prune(network, groups, widths)(x)
    scale = smaller.abs().max()
    assert (smaller - mask(network, groups, widths)(x)).abs().max() < 1e-4 * scale


def test_other_shapes_of_network():
    network = Zoo().double().eval()
    groups = trace(network, (3, 8, 8))
    x = torch.randn(2, 3, 8, 8, dtype=torch.double)
    smaller = prune(network, groups, [2, 5])
    assert smaller.depthwise.groups == 7
    assert torch.allclose(smaller(x), mask(network, groups, [2, 5])(x), rtol=1e-8)


def test_full_widths_are_the_network_itself(network, groups):
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(prune(network, groups, groups.widths)(x), network(x))


def test_the_dense_network_stays_as_it_is(network, groups, rng):
    before = copy.deepcopy(network.state_dict())
    prune(network, groups, random_widths(groups, rng))
    mask(network, groups, random_widths(groups, rng))
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


def test_narrower_candidates_nest(network, groups, rng):
    ranking = rank(network, groups)
    wide = np.maximum(2, random_widths(groups, rng))
    narrow = np.maximum(1, wide // 2)
    for few, many in zip(keep(ranking, narrow), keep(ranking, wide), strict=True):
        assert set(few) <= set(many)
    # Removing in two steps is removing at once.
    kept = keep(ranking, wide)
    inner = [
        np.searchsorted(b, a) for a, b in zip(keep(ranking, narrow), kept, strict=True)
    ]
    once = remove(network, groups, keep(ranking, narrow))
    step = remove(network, groups, kept)
    twice = remove(step, trace(step, (3, 32, 32)), inner)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(once(x), twice(x))


def test_a_removed_network_trains_copies_and_exports(network, groups, rng):
    smaller = prune(network, groups, random_widths(groups, rng))
    x = torch.randn(4, 3, 32, 32)
    expected = smaller(x)
    assert torch.equal(copy.deepcopy(smaller)(x), expected)
    exported = torch.export.export(smaller, (x,)).module()
    assert torch.allclose(exported(x), expected, atol=1e-5)
    smaller.train()(x).square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in smaller.parameters())
    # And where its shortcuts take their channels from.
    keys = {key for key in smaller.state_dict() if "taken_" not in key}
    assert keys == set(network.state_dict())
