import numpy as np
import pytest
from helpers.networks import count_macs
from helpers.widths import random_widths

from gnnrl_ray import Budget, SearchSettings, prune, trace
from gnnrl_ray.errors import InputError
from gnnrl_ray.pruning.budget import BudgetError
from gnnrl_ray.zoo import build_network


def flops(groups, share, min_keep=0.0, **bounds):
    return Budget(groups, {"flops": share}, min_keep=min_keep, **bounds)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("seed", range(5))
def test_projection_uses_the_budget_and_never_more(groups, costs, share, seed):
    rng, budget = np.random.default_rng(seed), flops(groups, share)
    end = np.maximum(groups.widths * (1 - rng.random(len(groups.widths))), 1)
    if not budget.meets(np.rint(end)):
        end = budget.min_widths
    widths = budget.project(groups.widths, end)
    assert budget.meets(widths)
    assert costs.macs(widths) <= share * costs.macs(groups.widths)
    assert (np.rint(end) <= widths).all()
    assert (widths <= groups.widths).all()
    # Further along, one more channel for every group that is not whole costs too much.
    assert not budget.meets(np.minimum(widths + 1, groups.widths))


def test_resnet56_comes_within_two_percent_of_half():
    groups = trace(build_network("resnet56"), (3, 32, 32))
    budget, rng = flops(groups, 0.5), np.random.default_rng(0)
    for _ in range(50):
        end = np.maximum(groups.widths * (1 - rng.random(len(groups.widths))), 2)
        if budget.meets(np.rint(end)):
            used = budget.usage(budget.project(groups.widths, end))["flops"]
            assert 0.48 <= used["cost"] / used["dense"] <= 0.5


@pytest.mark.parametrize("share", [0.0, 1.0, 1.5, -1.0, 0.01, 5e10])
def test_budgets_out_of_reach_name_the_smallest(groups, costs, share):
    bounds = flops(groups, 0.5, 0.2)
    least = costs.macs(bounds.min_widths)
    with pytest.raises(BudgetError) as error:
        flops(groups, share, 0.2)
    assert f"--flops {share} cannot be reached: with --min-keep 0.2" in str(error.value)
    assert f"from {least:,} up to, but not, {costs.dense:,}" in str(error.value)
    shown = float(str(error.value).split("a share from ")[1].split()[0])
    assert flops(groups, shown, 0.2).meets(bounds.min_widths)


def test_the_smallest_budget_is_reachable(groups, costs):
    for min_keep in np.linspace(0.01, 0.9, 40):
        least = costs.macs(flops(groups, 0.95, min_keep).min_widths)
        for given in (float(least), float(least / costs.dense)):
            budget = flops(groups, given, min_keep)
            widths = budget.project(groups.widths, budget.min_widths)
            assert np.array_equal(widths, budget.min_widths)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("round_to", [4, 8, 12])
def test_widths_are_rounded_to_multiples_or_stay_whole(groups, round_to, seed):
    budget = flops(groups, 0.5, 0.1, round_to=round_to)
    rng, least = np.random.default_rng(seed), budget.min_widths
    target = np.maximum(groups.widths * rng.random(len(groups.widths)), least)
    for widths in (least, budget.round(target), budget.project(target, least)):
        assert ((widths % round_to == 0) | (widths == groups.widths)).all()
        assert (widths >= least).all()
    assert budget.meets(budget.project(target, least))
    assert np.array_equal(budget.round(groups.widths), groups.widths)


def test_groups_of_multiples_are_projected_in_multiples():
    groups = trace(build_network("shufflenet_v1"), (3, 32, 32))
    budget = flops(groups, 0.58, 0.1, round_to=2)
    assert (budget.multiple_of == 6).all()
    widths = budget.project(groups.widths, budget.min_widths)
    assert (widths % 6 == 0).all()
    used = budget.usage(widths)["flops"]
    assert 0.56 < used["cost"] / used["dense"] <= 0.58


@pytest.mark.parametrize("name", ["resnet20", "shufflenet_v2"])
@pytest.mark.parametrize(
    "limits",
    [{"params": 0.4}, {"activations": 0.5}, {"flops": 0.6, "params": 0.3},
     {"flops": 0.3, "params": 0.9, "activations": 0.9}, {"params": 250_000}],
)  # fmt: skip
def test_every_cost_is_kept_and_the_tightest_is_used(name, limits, rng):
    """Counted in the removed network, not by the closed forms that projection uses."""
    network = build_network(name)
    groups = trace(network, (3, 32, 32))
    budget = Budget(groups, limits, min_keep=0.05)
    for _ in range(3):
        widths = budget.reach(rng.random(len(groups.widths)))
        smaller, used = prune(network, groups, widths), budget.usage(widths)
        counted = {
            "flops": count_macs(smaller),
            "params": sum(p.numel() for p in smaller.parameters()),
            "activations": budget.costs.activations(widths),
        }
        shares = []
        for kind, given in limits.items():
            assert used[kind]["cost"] == counted[kind]
            allowed = given * used[kind]["dense"] if given < 1 else given
            assert counted[kind] <= allowed == used[kind]["allowed"]
            shares.append(counted[kind] / allowed)
        assert max(shares) > 0.85


def test_dropping_stays_between_the_narrowest_and_what_there_is(groups, rng):
    budget = flops(groups, 0.5, 0.25)
    for _ in range(20):
        widths = random_widths(groups, rng)
        target = budget.drop(widths, rng.uniform(-1, 2, len(widths)))
        assert (target <= widths).all()
        assert (target >= np.minimum(widths, budget.min_widths)).all()


def test_the_budget_of_settings(groups):
    settings = SearchSettings(params=0.5, activations=10_000, min_keep=0.2, round_to=4)
    budget = Budget.of(groups, settings)
    assert [limit.name for limit in budget.limits] == ["params", "activations"]
    assert (budget.multiple_of == 4).all()
    assert [limit.name for limit in Budget.of(groups, SearchSettings()).limits] == ["flops"]


def test_memory_is_limited_for_a_batch(groups, costs, rng):
    """With many images, hidden states weigh more than weights."""
    found = []
    for batch in (1, 64):
        settings = SearchSettings(memory=0.7, memory_batch=batch)
        budget = Budget.of(groups, settings)
        allowed = 0.7 * costs.memory(groups.widths, batch)
        for _ in range(20):
            widths = budget.reach(rng.random(len(groups.widths)))
            assert costs.memory(widths, batch) <= allowed
        found.append(budget.reach(np.full(len(groups.widths), 0.2)))
    assert not np.array_equal(*found)
    assert settings.limits == "--memory 0.7 --memory-batch 64"
    assert SearchSettings(memory=0.7).limits == "--memory 0.7"


@pytest.mark.parametrize("limits", [{"flops": 0.5}, {"params": 0.3}, {"flops": 0.9}])
@pytest.mark.parametrize("round_to", [1, 8])
def test_many_reach_at_once_what_each_reaches_alone(groups, limits, round_to, rng):
    budget = Budget(groups, limits, round_to=round_to)
    ratios = np.concatenate([rng.random((40, 6)), 0.2 * rng.random((10, 6)), [[0] * 6]])
    found = budget.reach_all(ratios)
    assert budget.meets(found).all()
    for row, alone in zip(found, map(budget.reach, ratios), strict=True):
        # Only what rounding leaves over is not given back.
        assert (np.abs(alone - row) <= budget.multiple_of * 1.01 + alone * 0.05).all()
        assert (budget.round(row) == row).all()


def test_slopes_are_what_one_more_channel_costs(groups, rng):
    budget = Budget(groups, {"flops": 0.5, "params": 0.6})
    widths = np.array([budget.reach(ratios) for ratios in rng.random((3, 6))])
    slopes = budget.slopes(widths)
    for row, slope in zip(widths, slopes, strict=True):
        for group in range(6):
            wider = row + (np.arange(6) == group)
            by_hand = sum(
                (limit.cost(wider) - limit.cost(row)) / limit.allowed
                for limit in budget.limits
            )
            assert slope[group] == pytest.approx(by_hand)


@pytest.mark.parametrize(
    ("limits", "settings", "message"),
    [
        (0.5, {}, "limits by kind"),
        ({}, {}, "limits by kind"),
        ({"flop": 0.5}, {}, "no setting of a budget; did you mean flops"),
        ({"flops": float("nan")}, {}, "flops nan is not a number"),
        ({"params": "half"}, {}, "params 'half' is not a number"),
        ({"latency": 0.5}, {}, "`latency` needs the table"),
        ({"flops": 0.5}, {"min_keep": 2}, "min-keep 2 must be less than 1"),
        ({"flops": 0.5}, {"round_to": 0}, "round-to '0' is not"),
        ({"memory": 0.5}, {"memory_batch": 0}, "memory-batch 0 must be at least 1"),
    ],
)
def test_limits_that_cannot_be_are_named(groups, limits, settings, message):
    with pytest.raises(InputError, match=message):
        Budget(groups, limits, **settings)
