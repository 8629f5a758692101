import numpy as np
import pytest
from conftest import random_widths
from networks import count_macs

from gnnrl_ray import Costs, prune, trace
from gnnrl_ray.costs import BudgetError
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


@pytest.mark.parametrize("budget", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("seed", range(5))
def test_fit_uses_the_budget_and_never_more(groups, costs, budget, seed):
    rng = np.random.default_rng(seed)
    end = np.maximum(groups.widths * (1 - rng.random(len(groups.widths))), 1)
    if costs.macs(np.rint(end)) > budget * costs.macs(groups.widths):
        end = costs.floor(0.0)
    widths = costs.fit(groups.widths, end, budget)
    allowed = budget * costs.macs(groups.widths)
    assert costs.macs(widths) <= allowed
    assert (np.rint(end) <= widths).all()
    assert (widths <= groups.widths).all()
    # Further along, one more channel for every group that is not whole would not fit.
    wider = np.minimum(widths + 1, groups.widths)
    assert costs.macs(wider) > allowed


def test_resnet56_comes_within_two_percent_of_half():
    groups = trace(build_network("resnet56"), (3, 32, 32))
    costs, rng = Costs(groups), np.random.default_rng(0)
    for _ in range(50):
        end = np.maximum(groups.widths * (1 - rng.random(len(groups.widths))), 2)
        if costs.macs(np.rint(end)) > costs.macs(groups.widths) / 2:
            continue
        share = costs.macs(costs.fit(groups.widths, end, 0.5)) / costs.macs(groups.widths)
        assert 0.48 <= share <= 0.5


@pytest.mark.parametrize("budget", [0.0, 1.0, 1.5, -1.0, float("nan"), "abc", 0.01])
def test_budgets_out_of_reach_name_the_smallest(groups, costs, budget):
    least = costs.macs(costs.floor(0.2)) / costs.macs(groups.widths)
    with pytest.raises(BudgetError, match=f"--flops {budget} .* {least:.4f}"):
        costs.check_budget(budget, 0.2)


def test_the_smallest_budget_is_reachable(groups, costs):
    least = float(costs.macs(costs.floor(0.2)) / costs.macs(groups.widths))
    assert costs.check_budget(least, 0.2) == least
    widths = costs.fit(groups.widths, costs.floor(0.2), least)
    assert np.array_equal(widths, costs.floor(0.2))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("round_to", [4, 8, 12])
def test_widths_are_rounded_to_multiples_or_stay_whole(groups, round_to, seed):
    rounded, rng = Costs(groups, round_to), np.random.default_rng(seed)
    floor = rounded.floor(0.1)
    target = np.maximum(groups.widths * rng.random(len(groups.widths)), floor)
    for widths in (floor, rounded.round(target), rounded.fit(target, floor, 0.5)):
        assert ((widths % round_to == 0) | (widths == groups.widths)).all()
        assert (widths >= floor).all()
    assert rounded.macs(rounded.fit(target, floor, 0.5)) <= 0.5 * rounded.macs(
        groups.widths
    )
    assert np.array_equal(rounded.round(groups.widths), groups.widths)


def test_groups_with_a_step_are_fitted_in_steps():
    groups = trace(build_network("shufflenet_v1"), (3, 32, 32))
    costs = Costs(groups, round_to=2)
    assert (costs.steps == 6).all()
    widths = costs.fit(groups.widths, costs.floor(0.1), 0.58)
    assert (widths % 6 == 0).all()
    share = costs.macs(widths) / costs.macs(groups.widths)
    assert 0.56 < share <= 0.58


def test_round_to_is_at_least_one(groups):
    with pytest.raises(ValueError, match="--round-to 0"):
        Costs(groups, 0)
