"""Weights & Biases and MLflow, where they are installed: told of sweeps and of searches."""

import json
import os
import subprocess
import sys

import pytest

from gnnrl_ray.jobs.trackers import TrackerError, tracked, tracking

SWEEP = """
[search]
network = "resnet20"
dataset = "digits"
method = "random"
episodes = 4
finetune = "none"
precision = "float32"
[space]
seed = [0, 1]
"""


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_one_that_is_not_installed_is_named(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, f"ray.air.integrations.{name}", None)
    with pytest.raises(TrackerError, match=f"--{name}: .*pip install 'gnnrl-ray.{name}.'"):
        tracking("x", **{name: "y"})
    with pytest.raises(TrackerError, match=f"--{name}: .*pip install 'gnnrl-ray.{name}.'"):
        tracked("x", {}, **{name: "y"}).__enter__()


@pytest.mark.usefixtures("weights")
def test_they_are_told_of_a_sweep(tmp_path):
    pytest.importorskip("wandb")
    mlflow = pytest.importorskip("mlflow")
    file, uri = tmp_path / "sweep.toml", f"sqlite:///{tmp_path}/mlflow.db"
    file.write_text(SWEEP)
    found = {
        row["seed"]: row["accuracy"]
        for row in json.loads(gnnrl(tmp_path, "sweep", file, "--mlflow", uri))
    }
    assert len(list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))) == 2
    client = mlflow.MlflowClient(uri)
    (experiment,) = client.search_experiments(filter_string="name = 'sweep'")
    runs = [run.data for run in client.search_runs([experiment.experiment_id])]
    assert {int(r.params["seed"]): r.metrics["accuracy"] for r in runs} == found
    assert all(r.metrics["episode"] == 4 for r in runs)


@pytest.mark.usefixtures("weights")
def test_they_are_told_of_a_search(tmp_path):
    pytest.importorskip("wandb")
    mlflow = pytest.importorskip("mlflow")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    about = "--method random --episodes 4 --finetune none --precision float32 --epochs 0"
    gnnrl(tmp_path, "search", "--network", "resnet20", *about.split(), "--mlflow", uri)
    best = json.loads((tmp_path / "out/best.json").read_text())
    assert len(list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))) == 1
    client = mlflow.MlflowClient(uri)
    (experiment,) = client.search_experiments(filter_string="name = 'out'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["method"] == "random"
    assert run.data.params["network"] == "resnet20"
    history = client.get_metric_history(run.info.run_id, "accuracy")
    assert [metric.step for metric in history] == [1, 2, 3, 4]
    assert history[-1].value == pytest.approx(best["accuracy"])


def gnnrl(folder, *words):
    """Run a command that tells both; returns what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "gnnrl_ray", *map(str, words), "--json", "--out",
         str(folder / "out"), "--wandb", "pruning"],
        capture_output=True, text=True, check=False,
        env=os.environ | {"WANDB_MODE": "offline", "WANDB_DIR": str(folder)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(("name", "value"), [("mlflow", "nonsense://x"), ("wandb", "p")])
def test_one_that_refuses_is_named(name, value, tmp_path, monkeypatch):
    pytest.importorskip(name)
    monkeypatch.setenv("HOME", str(tmp_path))  # no key of Weights & Biases is there
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    with pytest.raises(TrackerError, match=f"--{name} {value}: "):
        tracking("x", **{name: value})
    with pytest.raises(TrackerError, match=f"--{name} {value}: "):
        tracked("x", {}, **{name: value}).__enter__()


def test_one_that_fails_later_does_not_end_the_search(tmp_path):
    mlflow = pytest.importorskip("mlflow")
    with tracked("x", {"a": 1}, mlflow=f"sqlite:///{tmp_path}/mlflow.db") as log:
        log({"accuracy": 0.5}, 1)
        mlflow.end_run()
        mlflow.set_tracking_uri("nonsense://x")
        with pytest.warns(UserWarning, match="--mlflow is told no more"):
            log({"accuracy": 0.6}, 2)
        log({"accuracy": 0.7}, 3)
