"""What must hold of every network, at random widths."""

import copy
import itertools
import warnings

import numpy as np
import pytest
import torch
from helpers.networks import EVERY, HEAVY, LARGE, WIDE, build, count_macs, outputs, shaken
from helpers.random_cnns import RandomCNN, recipes
from helpers.widths import random_widths
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gnnrl_ray import Costs, HierarchicalGraph, mask, prune, trace
from gnnrl_ray.pruning.importance import rank
from gnnrl_ray.pruning.removal import keep, remove


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=[pytest.mark.slow] * (name in (*WIDE, *LARGE)))
        for name in (*EVERY, *LARGE)
    ],
)
def subject(request):
    """The network in double precision, its input shape and its groups."""
    network, shape = build(request.param)
    network = network.double()
    return network, shape, trace(network, shape)


def close(first, second):
    return torch.allclose(first, second, rtol=1e-8, atol=1e-8 * second.abs().max().item())


def check_removed_equals_masked(network, shape, groups, widths, x):
    removed, masked = prune(network, groups, widths), mask(network, groups, widths)
    assert close(outputs(removed, x), outputs(masked, x))
    return removed


def check_costs(removed, shape, groups, widths):
    costs = Costs(groups)
    assert count_macs(removed, shape) == costs.macs(widths)
    assert sum(p.numel() for p in removed.parameters()) == costs.params(widths)


def check_trains(removed, x):
    removed.train()
    try:
        result = removed(x)
    except ValueError as error:
        # torch's, of one channel of one pixel, which is its own mean.
        assert "more than 1 value per channel" in str(error)  # noqa: PT017
        return
    parts = result.values() if isinstance(result, dict) else [result]
    sum(part.square().mean() for part in parts).backward()
    gradients = [p.grad for p in removed.parameters() if p.grad is not None]
    assert gradients
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    with torch.no_grad():
        for parameter in removed.parameters():
            if parameter.grad is not None:
                parameter -= 1e-3 * parameter.grad
    removed.eval()


def find_origin(again, groups, kept):
    """int [channels of ``again``]: which of ``groups``' channels each of them was."""
    flags = np.zeros(groups.offsets[-1] + 1, bool)
    for offset, index in zip(groups.offsets, kept, strict=False):
        flags[offset + index] = True
    flags[-1] = True  # of channels that are in no group
    origin = np.full(again.offsets[-1] + 1, -1)
    before = {op.name: op.outputs[flags[op.outputs]] for op in groups.operations}
    for op in again.operations:
        origin[op.outputs] = before[op.name]
    for op in again.operations:
        assert np.array_equal(origin[op.outputs], before[op.name])
    return origin[:-1]


def check_nesting(network, shape, groups, rng, x):
    """Removing in two steps is removing at once."""
    ranking, steps = rank(network, groups), groups.multiple_of
    # Groups of one channel left cannot be pruned, and so are none.
    most = groups.widths // steps
    wide = np.minimum(rng.integers(2, most + 1, endpoint=True), most) * steps
    narrow = rng.integers(1, wide // steps, endpoint=True) * steps
    outer, inner = keep(ranking, wide), keep(ranking, narrow)
    step = remove(network, groups, outer)
    again = trace(step, shape)
    found = find_origin(again, groups, outer)
    origin = [found[a:b] for a, b in itertools.pairwise(again.offsets)]
    # Of two groups that one layer makes, the other may come first now.
    order = [int(groups.group_of(channels[:1])[0]) for channels in origin]
    assert sorted(order) == list(range(len(wide)))
    assert np.array_equal(again.widths, wide[order])
    assert np.array_equal(again.multiple_of, steps[order])
    chosen = [
        np.flatnonzero(np.isin(channels - groups.offsets[g], inner[g]))
        for g, channels in zip(order, origin, strict=True)
    ]
    once, twice = remove(network, groups, inner), remove(step, again, chosen)
    assert close(outputs(twice, x), outputs(once, x))


def check_features(groups, widths):
    """The graph's features change exactly where widths change."""
    graph, operations = HierarchicalGraph(groups), groups.operations
    changed = (graph.features(widths) != graph.features(groups.widths)).any(1)
    different = np.append(np.repeat(widths != groups.widths, groups.widths), False)
    touched = [
        bool(different[operations[i].outputs].any())
        or bool(p >= 0 and different[operations[p].outputs].any())
        for i, op in enumerate(operations)
        for p in op.parents
    ]
    assert changed.tolist() == touched


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(s, marks=pytest.mark.slow) for s in (1, 2, 3))]
)
def test_properties(subject, seed):
    print(f"seed {seed}")
    network, shape, groups = subject
    rng = np.random.default_rng(seed)
    widths = random_widths(groups, rng)
    x = torch.randn(2, *shape, dtype=torch.double)
    removed = check_removed_equals_masked(network, shape, groups, widths, x)
    assert not close(outputs(removed, x), outputs(network, x))
    check_costs(removed, shape, groups, widths)
    check_nesting(network, shape, groups, rng, x)
    check_features(groups, widths)
    check_trains(removed, x)


# What takes seconds for each of them is about large networks with the slow tests alone.
light = pytest.mark.parametrize(
    "subject",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name in (*HEAVY, *LARGE)))
        for name in (*EVERY, *LARGE)
    ],
    indirect=True,
)


@light
def test_full_widths_are_the_network_itself(subject):
    network, shape, groups = subject
    x = torch.randn(1, *shape, dtype=torch.double)
    whole = prune(network, groups, groups.widths)
    assert torch.equal(outputs(whole, x), outputs(network, x))


@light
def test_delivery(subject):
    """State dict, copy, torch.export and torch.jit.trace of a removed network."""
    network, shape, groups = subject
    widths = np.maximum(groups.widths // groups.multiple_of // 2, 1) * groups.multiple_of
    removed = prune(network, groups, widths).float()
    x = torch.randn(1, *shape)
    expected = outputs(removed, x)
    other = prune(network, groups, widths).float()
    for parameter in other.parameters():
        parameter.data.zero_()
    other.load_state_dict(removed.state_dict())
    assert torch.equal(outputs(other, x), expected)
    assert torch.equal(outputs(copy.deepcopy(removed), x), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.export.export(removed, (x,)).module()
        scripted = torch.jit.trace(removed, (x,), strict=False)
    scale = expected.abs().max()
    assert torch.allclose(outputs(exported, x) / scale, expected / scale, atol=1e-5)
    assert torch.allclose(outputs(scripted, x) / scale, expected / scale, atol=1e-5)


def check_random(recipe, seed):
    torch.manual_seed(seed)
    network, shape = shaken(RandomCNN(recipe)).double(), (3, 6, 6)
    x = torch.randn(2, *shape, dtype=torch.double)
    groups, rng = trace(network, shape), np.random.default_rng(seed)
    widths = random_widths(groups, rng)
    removed = check_removed_equals_masked(network, shape, groups, widths, x)
    check_costs(removed, shape, groups, widths)
    check_nesting(network, shape, groups, rng, x)
    check_features(groups, widths)
    check_trains(removed, x)
    return groups


# The same thirty each time; new ones come with the slow tests.
@settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
@given(recipes, st.integers(0, 2**16))
@example(
    [
        ("norm", 0, 0, 0),
        ("gate", 0, 2, 0),
        ("concat", 0, 0, 0),
        ("shuffle", 0, 2, 0),
        ("conv", 0, 0, 0),
        ("scale", 0, 0, 0),
        ("split", 2, 5, 0),
    ],
    15,
)  # the stem's groups change their order when it is traced again
@example(
    [*[("conv", 0, 0, 0)] * 8, ("pad", 0, 0, 1), ("pad", 0, 0, 1), ("last", 0, 1, 0)], 0
)  # what is padded is padded again
def test_random_networks(recipe, seed):
    check_random(recipe, seed)


@pytest.mark.slow
@settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck))
@given(recipes, st.integers(0, 2**16))
def test_many_random_networks(recipe, seed):
    check_random(recipe, seed)
