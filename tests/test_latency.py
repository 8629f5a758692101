import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gnnrl_ray import Budget, Costs, trace
from gnnrl_ray.pruning import latency as arithmetic
from gnnrl_ray.pruning.latency import LatencyTable
from gnnrl_ray.scoring import latency
from gnnrl_ray.scoring.latency import latency_table, measure_latency
from gnnrl_ray.zoo.resnet import ResNet


def drawn(groups, count, seed=0):
    return np.random.default_rng(seed).integers(
        1, groups.widths + 1, (count, len(groups.widths))
    )


def true_times(costs, widths):
    """A device whose layers take so long: what is to be found again."""
    inputs, outputs = costs.layer_widths(widths)
    layers = 3 + 0.1 * inputs + 0.02 * inputs * outputs
    return layers, layers.sum(-1) + 40 + 1e-3 * costs.elements(widths)


@pytest.fixture(scope="module")
def groups():
    return trace(ResNet(14).eval(), (3, 32, 32))


@pytest.fixture(scope="module")
def table(groups):
    costs, widths = Costs(groups), drawn(groups, 40)
    layers, passes = true_times(costs, widths)
    return LatencyTable.fitted(costs, widths, layers, passes, device="x", batch=4)


def test_what_layers_take_is_found_again(groups, table):
    costs, widths = Costs(groups), drawn(groups, 30, seed=1)
    _, passes = true_times(costs, widths)
    assert np.allclose(table(costs, widths), passes, rtol=0.02)


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_narrower_is_never_slower(groups, seed):
    """Whatever was measured, noise included."""
    generator = np.random.default_rng(seed)
    costs, widths = Costs(groups), drawn(groups, 20, seed)
    layers = generator.exponential(5, (20, len(groups.layers)))
    passes = layers.sum(1) + generator.exponential(50, 20)
    table = LatencyTable.fitted(costs, widths, layers, passes, device="x", batch=1)
    wide = drawn(groups, 200, seed + 1)
    narrow = generator.integers(1, wide + 1)
    assert (table(costs, narrow) <= table(costs, wide) + 1e-9).all()


def test_a_table_survives_json(groups, table):
    again = LatencyTable.from_dict(json.loads(json.dumps(table.to_dict())))
    widths = drawn(groups, 5)
    assert np.array_equal(again(Costs(groups), widths), table(Costs(groups), widths))
    for wrong in (
        {"layers": [[-1.0] * 9]}, {"rest": [1.0]}, {"layers": "x"}, {"error": None},
    ):  # fmt: skip
        with pytest.raises((ValueError, TypeError)):
            LatencyTable.from_dict(table.to_dict() | wrong)


def test_candidates_meet_a_limit_of_latency(groups, table):
    budget = Budget(groups, {"latency": 0.6}, latency=table)
    dense = table(budget.costs, groups.widths)
    for ratios in np.random.default_rng(0).uniform(0, 1, (50, len(groups.widths))):
        assert table(budget.costs, budget.reach(ratios)) <= 0.6 * dense
    assert (table(budget.costs, budget.reach_all(np.zeros((3, len(groups.widths)))))
            <= 0.6 * dense).all()  # fmt: skip
    usage = budget.usage(groups.widths)["latency"]
    assert usage["unit"] == "microseconds at batch 4 on x"
    with pytest.raises(
        ValueError, match=r"--latency 0.01 cannot be reached: .*microseconds"
    ):
        Budget(groups, {"latency": 0.01}, latency=table)
    with pytest.raises(ValueError, match="needs the table"):
        Budget(groups, {"latency": 0.5})


def test_networks_are_timed_once_and_the_table_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("GNNRL_HOME", str(tmp_path))
    for name, value in {"_SCALES": 3, "_RANDOM": 4, "_HELD": 2, "_PASSES": 2}.items():
        monkeypatch.setattr(latency, name, value)
    network = ResNet(8).eval()
    groups, cpu, told = trace(network, (3, 32, 32)), torch.device("cpu"), []
    before = {name: t.clone() for name, t in network.state_dict().items()}
    table = latency_table(network, groups, cpu, 2, lambda *said: told.append(said))
    assert told == [(n, 9) for n in range(1, 10)]
    assert all(torch.equal(t, before[n]) for n, t in network.state_dict().items())
    assert 0 <= table.error < 5
    costs = Costs(groups)
    assert table(costs, groups.widths) > table(costs, np.ones_like(groups.widths)) > 0
    monkeypatch.setattr(latency, "measure_latency", lambda *_: pytest.fail("again"))
    assert latency_table(network, groups, cpu, 2).to_dict() == table.to_dict()
    again = ResNet(8).eval()
    again.load_state_dict(network.state_dict())
    same = latency_table(again, trace(again, (3, 32, 32)), cpu, 2)
    assert same.to_dict() == table.to_dict()
    # Of another batch, of the same layers with something else between, or damaged, it is
    # another table.
    with pytest.raises(pytest.fail.Exception):
        latency_table(network, groups, cpu, 3)
    monkeypatch.setattr("torch.nn.functional.relu", torch.nn.functional.gelu)
    other = trace(again, (3, 32, 32))
    assert np.array_equal(other.widths, groups.widths)
    with pytest.raises(pytest.fail.Exception):
        latency_table(again, other, cpu, 2)
    monkeypatch.undo()
    monkeypatch.setenv("GNNRL_HOME", str(tmp_path))
    monkeypatch.setattr(latency, "measure_latency", lambda *_: pytest.fail("again"))
    (file,) = (tmp_path / "latency").iterdir()
    file.write_text("{}")
    with pytest.raises(pytest.fail.Exception):
        latency_table(network, groups, cpu, 2)


@pytest.mark.slow
def test_the_table_is_right_about_whole_networks():
    """On a quiet machine."""
    network = ResNet(20).eval()
    groups = trace(network, (3, 32, 32))
    errors = [measure_latency(network, groups, torch.device("cpu")).error for _ in range(3)]
    assert min(errors) < 0.15


def test_terms_grow_with_channels(groups):
    costs, widths = Costs(groups), drawn(groups, 10)
    wider = np.minimum(widths + 1, groups.widths)
    assert (arithmetic._terms(costs, wider) >= arithmetic._terms(costs, widths)).all()
