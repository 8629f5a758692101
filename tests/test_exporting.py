import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers.networks import Gated, Pyramid
from torch import nn

from gnnrl_ray import Data, prune, trace
from gnnrl_ray.data.loader import Loader
from gnnrl_ray.jobs.exporting import ENDS, ExportError, export
from gnnrl_ray.pruning.removal import standing_alone
from gnnrl_ray.run import directory


def halved(network, shape):
    groups = trace(network.eval(), shape)
    many = groups.multiple_of
    return prune(network, groups, np.maximum(groups.widths // 2 // many, 1) * many).eval()


@pytest.fixture
def smaller(network):
    return halved(network, (3, 32, 32))


@pytest.mark.parametrize("end", ["onnx", "pt2", "pt"])
def test_a_file_predicts_what_the_network_does(smaller, digits, tmp_path, end):
    found = export(smaller, digits.validation, tmp_path / f"a.{end}")
    assert found.agree == found.images == len(digits.validation)
    assert found.difference < 1e-5
    assert (tmp_path / f"a.{end}").stat().st_size > 1000


@pytest.mark.parametrize("end", ["onnx", "pt2", "pt"])
def test_images_that_are_changed_in_place_are_those_of_the_file_too(tmp_path, end):
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 6, 3), nn.Linear(6, 4)

        def forward(self, x):
            return self.fc(self.conv(x.sub_(0.5).div_(0.2)).relu().mean((2, 3)))

    images = torch.rand(8, 3, 8, 8)
    kept = images.clone()
    found = export(
        halved(InPlace(), (3, 8, 8)), Loader([(images, torch.zeros(8).long())]),
        tmp_path / f"a.{end}",
    )  # fmt: skip
    assert found.difference < 1e-5
    assert torch.equal(images, kept)


def test_whole_numbers_predict_nearly_that(smaller, digits, tmp_path):
    path = tmp_path / "a.onnx"
    exact = export(smaller, digits.validation, path)
    size = path.stat().st_size
    found = export(smaller, digits.validation, path, calibration=digits.train)
    assert 0 < found.difference < 0.5
    assert found.agree > 0.8 * found.images
    assert abs(found.accuracy - exact.accuracy) < 0.1
    assert path.stat().st_size != size


def test_files_of_torch_load_without_this_package(smaller, digits, tmp_path):
    for end in ("pt2", "pt"):
        export(smaller, digits.validation, tmp_path / f"a.{end}")
    images = next(digits.validation.batches(5))[0]
    torch.save(images, tmp_path / "images")
    script = f"""
import sys
sys.modules["gnnrl_ray"] = None  # as where it is not installed
import torch
images = torch.load("{tmp_path}/images")
first = torch.load("{tmp_path}/a.pt", weights_only=False)
second = torch.export.load("{tmp_path}/a.pt2").module()
with torch.no_grad():
    torch.save([first(images), second(images)], "{tmp_path}/outputs")
"""
    subprocess.run([sys.executable, "-c", script], check=True)
    with torch.no_grad():
        for found in torch.load(tmp_path / "outputs"):
            assert torch.allclose(found, smaller(images), atol=1e-5)


@pytest.mark.parametrize(("network", "shape"), [(Pyramid, (3, 16, 16)), (Gated, (3, 8, 8))])
def test_graphs_of_torch_alone(network, shape):
    """Dictionaries, gates, shuffles: what is pickled says what the network does."""
    one = halved(network(), shape)
    x = torch.randn(3, *shape)
    found, expected = standing_alone(one, shape)(x), one(x)
    if isinstance(expected, dict):
        assert all(torch.allclose(found[k], expected[k], atol=1e-5) for k in expected)
    else:
        assert torch.allclose(found, expected, atol=1e-5)


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 8, 3), nn.Conv2d(1, 8, 3, 2)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, left, right):
        both = torch.relu(self.left(left)) + torch.relu(self.right(right))
        return {"map": self.head(both)}


def test_several_images_and_a_dictionary(tmp_path):
    one = halved(Pair(), ((3, 8, 8), (1, 13, 13)))
    assert one.left.out_channels == 4
    batch = [((torch.rand(6, 3, 8, 8), torch.rand(6, 1, 13, 13)), torch.zeros(6))]
    for end in ("onnx", "pt2", "pt"):
        found = export(one, Data.of(batch, batch).validation, tmp_path / f"a.{end}")
        assert found.agree == found.images == 6
        assert found.accuracy is None


class Dated(nn.Module):
    """An operation that no format has words for."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 10, 1)

    def forward(self, x):
        y = self.one(x)
        if y.sum() > 1e9:  # which depends on the image
            y = -y
        return self.two(y).mean((2, 3))


def test_what_cannot_be_written_is_named_and_leaves_nothing(digits, tmp_path):
    for end in ("onnx", "pt2", "pt"):
        with pytest.raises((ExportError, ValueError), match=r"cannot (be written|follow)"):
            export(Dated().eval(), digits.validation, tmp_path / f"a.{end}")
    assert not list(tmp_path.iterdir())
    for name, settings, said in (
        ("a.doc", {}, "ends in none of .onnx, .pt2, .pt"),
        ("a.pt", {"calibration": digits.train}, "--int8 is of --format onnx"),
    ):
        with pytest.raises(ValueError, match=said):
            export(Dated().eval(), digits.validation, tmp_path / name, **settings)


def test_export_command(tmp_path, monkeypatch, capsys):
    from gnnrl_ray import cli

    monkeypatch.setenv("GNNRL_HOME", str(tmp_path))
    torch.manual_seed(0)
    from gnnrl_ray.zoo import build_network
    from gnnrl_ray.zoo.weights import save_weights

    save_weights(build_network("resnet20"), tmp_path / "w.safetensors")
    run = str(tmp_path / "run")

    def command(*words):
        monkeypatch.setattr(sys, "argv", ["gnnrl-ray", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, *capsys.readouterr()

    assert command(
        "search", "--weights", f"{tmp_path}/w.safetensors", "--method", "uniform",
        "--finetune", "none", "--epochs", "0", "--out", run, "--quiet",
    )[0] == 0  # fmt: skip
    code, out, err = command("export", run, "--format", "torch", "--json")
    assert code == 0, err
    assert json.loads(out)["path"] == f"{run}/pruned.pt"
    every = {f"pruned{end}" for end in (*ENDS.values(), f".int8{ENDS['onnx']}")}
    assert every == directory._OF_WEIGHTS["pruned"]  # put aside where the winner changes
    assert command("export", run, "--format", "pt2")[0] == 0
    card = (tmp_path / "run/model_card.md").read_text()
    for said in (
        "resnet20", "SHA-256 of weights", "| seed | 0 |", "pruned.pt:", "pruned.pt2:",
        "layer1.",
    ):  # fmt: skip
        assert said in card
    for wrong, said in (
        (("--format", "caffe"), "'caffe' is not one of 'onnx', 'pt2', 'torch'"),
        (("--weights", "finetuned"), "has pruned"),
        (("--int8", "--format", "pt2"), "--int8 is of --format onnx"),
    ):
        code, _, err = command("export", run, *wrong)
        assert code == 2
        assert said in " ".join(err.replace("│", " ").split())
