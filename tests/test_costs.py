import numpy as np
import pytest
from helpers.networks import count_macs
from helpers.widths import random_widths
from torch import nn

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


def test_memory_is_of_weights_and_of_what_images_take_at_once():
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4),
    )  # fmt: skip
    groups = trace(network.eval(), (3, 16, 16))
    costs = Costs(groups)
    for first, second in ((8, 6), (2, 6), (1, 1)):
        # What the activation reads and makes, or the second one; images are the caller's.
        held = 256 * max(2 * first, first + second)
        params = 28 * first + (9 * first + 1) * second + (second + 1) * 4
        for images in (1, 7):
            found = costs.memory(np.array([first, second]), images)
            assert found == 4 * (images * held + params)


def test_widths_of_other_networks_are_not_counted(costs):
    for method in (costs.macs, costs.params, costs.activations, costs.memory):
        for wrong in ([4] * 5, [4] * 7, 4, [[4]]):
            with pytest.raises(ValueError, match="are 6 numbers of channels"):
                method(wrong)
