import io
import json

import numpy as np
import pandas as pd
import pytest
from helpers.networks import count_macs
from helpers.widths import random_widths
from rich.console import Console

from gnnrl_ray import Costs, HierarchicalGraph, accuracy, prune, search
from gnnrl_ray.display import report
from gnnrl_ray.run.directory import Run
from gnnrl_ray.scoring.measures import measure


def said(table):
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def test_measures_are_counted_and_scored(network, groups, digits, rng):
    costs, widths = Costs(groups), random_widths(groups, rng)
    smaller = prune(network, groups, widths)
    dense = measure(network, digits, costs)
    found = measure(smaller, digits, costs, widths)
    assert found["macs"] == count_macs(smaller)
    assert found["params"] == sum(p.numel() for p in smaller.parameters())
    for part in ("validation", "holdout", "test"):
        assert found[part] == pytest.approx(accuracy(smaller, getattr(digits, part)))
    table = said(report.measures_table({"dense": dense, "pruned": found}, digits))
    assert f"{found['macs']:,}" in table
    assert f"{100 * found['macs'] / dense['macs']:.1f}" in table


def test_tables_name_groups_motifs_and_what_stays(groups):
    graph = HierarchicalGraph(groups, 3)
    assert all(name in said(report.groups_table(groups)) for name in groups.names)
    assert "network's output" in said(report.whole_table(groups))
    assert "M1" in said(report.motifs_table(graph))
    assert report.left_table(groups).row_count == 0


def test_descriptions_are_json(groups):
    facts = json.loads(json.dumps(report.describe(HierarchicalGraph(groups))))
    channels = [group["channels"] for group in facts["groups"].values()]
    assert channels == groups.widths.tolist()
    assert facts["macs"] == Costs(groups).dense


def test_a_sweep_is_a_row_for_equal_settings():
    summary = pd.DataFrame({"noise": [0.5], "mean": [0.70123], "count": [3]})
    table = said(report.sweep_table(summary, 3))
    assert "3 searches" in table
    assert "0.7012" in table


@pytest.mark.parametrize("limits", [{"flops": 0.5}, {"params": 0.4, "flops": 0.8}])
def test_a_search_is_drawn_whatever_its_budget(network, digits, tmp_path, limits):
    search(network, digits, method="random", episodes=3, finetune="none",
           precision="float32", out=tmp_path / "run", **limits)  # fmt: skip
    run = Run.open(tmp_path / "run")
    report.draw_search(run)
    assert (tmp_path / "run/search.png").read_bytes().startswith(b"\x89PNG")
    used = run.best()["budget"]
    assert list(used) == list(run.settings.budgets)
    for use in used.values():
        assert use["cost"] <= use["allowed"] < use["dense"]
    assert np.isclose(used["flops"]["cost"], run.best()["macs"])
