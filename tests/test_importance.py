from itertools import permutations

import numpy as np
import pytest
import torch
from helpers.networks import Gated, shaken
from torch import nn
from torch.nn import functional as F

from gnnrl_ray import trace
from gnnrl_ray.pruning.importance import IMPORTANCES, importances, rank
from gnnrl_ray.zoo import build_network

MADE = ("conv1", "layer1.0.conv2")  # the layers of ResNet-8's first group


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(10, (8,), generator=generator)
    return torch.randn(8, 3, 32, 32, generator=generator), labels


def by(score):
    return score.argsort(descending=True, stable=True).numpy()


def test_norms_sum_over_all_layers_of_a_group(network, groups):
    weights = [network.get_submodule(name).weight.detach() for name in MADE]
    l1 = sum(w.abs().sum((1, 2, 3)) for w in weights)
    l2 = sum(w.square().sum((1, 2, 3)) for w in weights)
    assert np.array_equal(rank(network, groups, "l1")[0], by(l1))
    assert np.array_equal(rank(network, groups, "l2")[0], by(l2))


def test_median_ranks_by_distance_from_all_others(network, groups):
    rows = torch.cat(
        [network.get_submodule(name).weight.detach().flatten(1) for name in MADE], 1
    )
    distance = torch.stack([(rows - row).norm(dim=1).sum() for row in rows])
    assert np.array_equal(rank(network, groups, "median")[0], by(distance))


def test_bn_adds_the_scales_of_all_normalisations(network, groups):
    scale = network.bn1.weight + network.layer1[0].bn2.weight
    assert np.array_equal(rank(network, groups, "bn")[0], by(scale.detach().abs()))


def test_bn_falls_back_to_l2_where_nothing_is_normalised():
    network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 3))
    groups = trace(network, (3, 8, 8))
    assert np.array_equal(rank(network, groups, "bn")[0], rank(network, groups, "l2")[0])


def test_taylor_is_the_change_of_the_loss_to_first_order(network, groups, batch):
    images, labels = batch
    loss = F.cross_entropy(network(images), labels)
    weights = [network.get_submodule(name).weight for name in MADE]
    slopes = torch.autograd.grad(loss, weights)
    change = sum(
        (w * s).sum((1, 2, 3)) for w, s in zip(weights, slopes, strict=True)
    ).square()
    ranking = rank(network, groups, "taylor", batch=batch)
    assert np.array_equal(ranking[0], by(change.detach()))
    assert all(p.grad is None for p in network.parameters())


def test_taylor_needs_a_batch(network, groups):
    with pytest.raises(ValueError, match="needs a batch"):
        rank(network, groups, "taylor")


def test_random_follows_its_seed(network, groups):
    first, again = rank(network, groups, "random", 1), rank(network, groups, "random", 1)
    other = rank(network, groups, "random", 2)
    assert all(map(np.array_equal, first, again))
    assert not all(map(np.array_equal, first, other))


def test_unknown_importance_lists_the_known(network, groups):
    with pytest.raises(ValueError, match="known: l1, l2, median, bn, taylor, random"):
        rank(network, groups, "l3")


@pytest.mark.parametrize("importance", [i for i in IMPORTANCES if i != "taylor"])
def test_every_importance_ranks_every_channel_once(importance):
    network = shaken(Gated())
    groups = trace(network, (3, 16, 16))
    for order, width in zip(rank(network, groups, importance), groups.widths, strict=True):
        assert np.array_equal(np.sort(order), np.arange(width))


def test_convolutions_in_groups_stay_balanced_before_and_after_a_shuffle():
    torch.manual_seed(0)
    network = build_network("shufflenet_v1")
    groups = trace(network, (3, 32, 32))
    ranking = rank(network, groups)
    g = groups.names.index("stages.1.1.compress")
    made = np.arange(120) // 40  # the group of the first convolution
    place = np.arange(120).reshape(3, 40).T.ravel()  # the shuffle: place -> channel
    read = np.empty(120, int)
    read[place] = np.arange(120) // 40  # the group of the second
    score = network.stages[1][1].compress.weight.detach().flatten(1).norm(dim=1).numpy()
    for width in range(3, 121, 3):
        kept = ranking[g][:width]
        assert (np.bincount(made[kept], minlength=3) == width // 3).all()
        assert (np.bincount(read[kept], minlength=3) == width // 3).all()
    # The first three are the best that are balanced.
    best = max(
        sum(score[(made == a) & (read == b)].max() for a, b in enumerate(order))
        for order in permutations(range(3))
    )
    assert score[ranking[g][:3]].sum() == pytest.approx(best)


def test_large_images_are_differentiated_in_parts(network, groups, digits, monkeypatch):
    batch = next(digits.train.batches(50, torch.Generator().manual_seed(0)))
    whole = importances(network, groups, "taylor", batch=batch)
    monkeypatch.setattr("gnnrl_ray.pruning.importance._PIXELS", 7 * 32 * 32 + 5)
    sizes = []
    network.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    parts = importances(network, groups, "taylor", batch=batch)
    assert sizes == [7] * 7 + [1]
    for one, other in zip(whole, parts, strict=True):
        assert np.allclose(one, other, rtol=1e-3, atol=1e-9 + 1e-4 * one.max())
