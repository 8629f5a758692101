"""The rows of the paper's tables, as files that can be run."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gnnrl_ray.display.paper import ACCURACIES
from gnnrl_ray.jobs.comparing import Comparison, compare
from gnnrl_ray.zoo import build_network
from gnnrl_ray.zoo.weights import save_weights, weights_path

FILES = sorted((Path(__file__).parent.parent / "tuned_examples/paper").glob("*.toml"))
QUICK = ("resnet20_deep",)


def about(comparison):
    (cell,) = {(c.network, c.method) for c in comparison.cells()}
    return cell[0], comparison.source(next(comparison.cells())).data_name, cell[1]


def test_every_row_has_a_file_that_says_what_the_paper_has():
    found = {}
    for file in FILES:
        text, comparison = file.read_text(), Comparison.read(file)
        said = re.search(
            r"^# paper: ([\d.]+) % at ([\d.]+) % of the FLOPs, (\S+) ", text, re.M
        )
        accuracy, share, change = map(float, said.groups())
        found[about(comparison)] = share, accuracy, change
        assert re.search(r"^# ours: (not run yet|\d\d\.\d\d .*seeds.*20\d\d)", text, re.M)
        assert f"gnnrl-ray compare tuned_examples/paper/{file.name}" in text
        (budget,) = comparison.budgets
        assert budget["flops"] * 100 >= share
        assert comparison.tuning.only_pruned
        assert comparison.tuning.epochs == (150 if "cifar100" in text else 100)
        for cell in comparison.cells():
            assert comparison.settings(cell).finalists == 0
    assert found == ACCURACIES


def test_changes_are_those_to_the_networks_of_the_paper():
    """Section 4, headings of Tables 1 and 2: what the dense networks have."""
    dense = {
        "resnet110": 93.68, "resnet56": 93.39, "resnet44": 93.10, "resnet32": 92.63,
        "resnet20": 91.73, "vgg16": 70.5, "mobilenet_v1": 64.88, "mobilenet_v2": 65.74,
        "shufflenet_v1": 68.64, "shufflenet_v2": 68.85,
    }  # fmt: skip
    for (network, _, method), (_, accuracy, change) in ACCURACIES.items():
        # As printed, one row does not add up.
        odd = (network, method) == ("shufflenet_v1", "gnn-rl")
        assert abs(dense[network] + change - accuracy) < (1.4 if odd else 0.06)


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A few images of every data set, and weights of every network, as people have them."""
    monkeypatch.setenv("GNNRL_HOME", str(tmp_path))
    rng = np.random.default_rng(0)
    for name, classes in (("cifar10", 10), ("cifar100", 100)):
        arrays = {}
        for part, count in (("train", 300), ("test", 40)):
            arrays[f"x_{part}"] = rng.integers(0, 256, (count, 32, 32, 3), np.uint8)
            arrays[f"y_{part}"] = rng.integers(0, classes, count)
        (tmp_path / "data").mkdir(exist_ok=True)
        np.savez(tmp_path / f"data/{name}.npz", **arrays)
    for part, each in (("train", 8), ("val", 4)):
        for label in ("n01440764", "n01443537", "n01484850"):
            folder = tmp_path / "data/imagenet" / part / label
            folder.mkdir(parents=True)
            for n in range(each):
                image = rng.integers(0, 256, (80, 100 + n, 3), np.uint8)
                Image.fromarray(image).save(folder / f"{n}.JPEG")
    return tmp_path


@pytest.mark.parametrize(
    "file",
    [pytest.param(f, id=f.stem, marks=[pytest.mark.slow] * (f.stem not in QUICK))
     for f in FILES],
)  # fmt: skip
def test_every_row_runs(tiny, file, monkeypatch):
    """From the file to its table, with tiny numbers; weights are random."""
    comparison = Comparison.read(file)
    network, data, method = about(comparison)
    few = {"episodes": 2, "precision": "float32", "device": "cpu"}
    if data == "imagenet":
        few |= {"image_size": 72, "precision": "plain"}
    if method == "fp":  # which scores every group four times
        few |= {"finetune": "none"}
    if method in ("gnn-rl", "amc", "agmc"):
        agent = {"warmup_episodes": 1, "updates_per_step": 1}
        few |= {"agent": comparison.search.get("agent", {}) | agent}
    comparison = replace(
        comparison, seeds=[0], search=comparison.search | few,
        finetune=comparison.finetune | {"epochs": 1, "batch_size": 8},
    )  # fmt: skip
    torch.manual_seed(0)
    classes = {"cifar10": 10, "cifar100": 100, "imagenet": 3}[data]
    weights = weights_path(network, comparison.search["dataset"])
    if weights.suffix == ".th":  # a published file, whose hash is its name
        weights = weights.with_name("mine.safetensors")
        comparison = replace(
            comparison, search=comparison.search | {"weights": str(weights)}
        )
    size = 72 if data == "imagenet" else 32
    save_weights(build_network(network, classes, size), weights)
    table = compare(comparison, str(tiny / "out"))
    assert "error" not in table, table["error"].tolist()
    (row,) = table.to_dict("records")
    probes = 4 * 15 + 1 if method == "fp" else 0  # of VGG-16's groups, and the dense one
    assert row["evaluations"] - probes in (1, 2)
    assert row["macs_share"] <= comparison.budgets[0]["flops"]
    assert 0 <= row["tuned_test"] <= 1
    assert json.loads((tiny / "out/rows").joinpath(f"{row['run'][5:]}.json").read_text())
