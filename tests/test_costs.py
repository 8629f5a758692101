import numpy as np
import pytest
from helpers.networks import count_macs
from helpers.widths import random_widths

from gnnrl_ray import Costs, prune, trace
from gnnrl_ray.zoo import build_network


@pytest.mark.parametrize(
    ("name", "macs", "params"),
    [("resnet20", 40_551_040, 269_722), ("resnet56", 125_485_696, 853_018)],
)
def test_dense_costs(name, macs, params):
    groups = trace(build_network(name), (3, 32, 32))
    assert Costs(groups).macs(groups.widths) == macs
    assert Costs(groups).params(groups.widths) == params


@pytest.mark.parametrize("seed", range(5))
def test_closed_form_equals_what_the_smaller_network_has(network, groups, costs, seed):
    widths = random_widths(groups, np.random.default_rng(seed))
    smaller = prune(network, groups, widths)
    assert costs.macs(widths) == count_macs(smaller)
    assert costs.params(widths) == sum(p.numel() for p in smaller.parameters())


def test_costs_are_vectorised(groups, costs, rng):
    many = np.stack([random_widths(groups, rng) for _ in range(20)]).reshape(4, 5, -1)
    for cost in (costs.macs, costs.params, costs.activations):
        assert cost(many).shape == (4, 5)
        assert cost(many)[2, 3] == cost(many[2, 3])


def test_activations_are_the_largest_output(groups, costs):
    assert costs.activations(groups.widths) == 16 * 32 * 32
