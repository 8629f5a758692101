import json

import numpy as np
import pytest
import torch
from conftest import random_widths

from gnnrl_ray import load_pruned, prune, trace
from gnnrl_ray.pruner import keep, rank
from gnnrl_ray.run import Run, RunError
from gnnrl_ray.zoo import WeightsError, build_network


@pytest.fixture
def finished(tmp_path, digits):
    """A run of the zoo's ResNet-20, its winner written; returns folder and winner."""
    torch.manual_seed(0)
    network = build_network("resnet20").eval()
    groups = trace(network, (3, 32, 32))
    widths = random_widths(groups, np.random.default_rng(0))
    folder = tmp_path / "run"
    run = Run.create(folder, {"name": "resnet20"}, {"dataset": "digits"})
    from gnnrl_ray import Objective

    objective = Objective(network, groups, digits, budget=0.5, finetune="none")
    run.journal.append(7, objective(widths))
    facts = {"network": "resnet20", "classes": 10, "budget": 0.5, "method": "random"}
    run.write_best(groups, keep(rank(network, groups), widths), facts)
    winner = prune(network, groups, widths)
    run.save_network("pruned", winner)
    return folder, winner


def test_the_winner_is_rebuilt_without_the_dense_weights(finished):
    folder, winner = finished
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(load_pruned(folder)(x), winner(x))


def test_finetuned_weights_come_first(finished):
    folder, winner = finished
    with torch.no_grad():
        winner.linear.bias += 1
    Run.open(folder).save_network("finetuned", winner)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(load_pruned(folder)(x), winner(x))
    assert not torch.equal(load_pruned(folder, weights="pruned")(x), winner(x))


def test_best_says_everything(finished):
    folder, winner = finished
    best = json.loads((folder / "best.json").read_text())
    assert best["episode"] == 7
    assert best["params"] == sum(p.numel() for p in winner.parameters())
    assert best["macs_ratio"] == best["macs"] / best["macs_dense"]
    assert (
        best["groups"]["conv1"] == winner.conv1.out_channels == len(best["kept"]["conv1"])
    )
    assert best["error"] == 1 - best["accuracy"]


def test_settings_versions_and_hardware_are_kept(finished):
    facts = json.loads((finished[0] / "run.json").read_text())
    assert facts["settings"] == {"name": "resnet20"}
    assert facts["data"] == {"dataset": "digits"}
    assert facts["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    assert facts["hardware"]["cores"] >= 1


def test_a_run_in_the_way_is_not_touched(finished):
    folder, _ = finished
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(RunError, match=r"--resume .*--overwrite.*--out"):
        Run.create(folder, {}, {})
    assert before == {p.name: p.read_bytes() for p in folder.iterdir()}
    assert len(Run.create(folder, {}, {}, overwrite=True).journal) == 0


def test_overwrite_spares_folders_that_are_no_runs(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError):
        Run.create(tmp_path, {}, {}, overwrite=True)
    assert (tmp_path / "thesis.tex").exists()


def test_damaged_and_missing_files_are_named(finished, tmp_path):
    folder, _ = finished
    with pytest.raises(RunError, match=r"no run\.json"):
        Run.open(tmp_path / "elsewhere")
    weights = folder / "pruned.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(WeightsError, match="truncated or damaged"):
        load_pruned(folder)
    (folder / "best.json").write_text("{")
    with pytest.raises(RunError, match=r"best\.json is damaged"):
        load_pruned(folder)
