import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from gnnrl_ray import cli
from gnnrl_ray.zoo import build_network
from gnnrl_ray.zoo.weights import save_weights, weights_path


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A home with weights of ResNet-20 for digits, so that nothing is trained here."""
    monkeypatch.setenv("GNNRL_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    save_weights(build_network("resnet20"), weights_path("resnet20", "digits"))
    return tmp_path


@pytest.fixture
def command(capsys, monkeypatch):
    """Run a command line; return exit code, output and errors."""

    def command(*words):
        monkeypatch.setattr(sys, "argv", ["gnnrl-ray", *map(str, words)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
        output = capsys.readouterr()
        # Boxes and line breaks are for people.
        return code, output.out, " ".join(output.err.replace("│", " ").split())

    return command


SHORT = ("--method", "random", "--episodes", "3", "--finetune", "none", "--epochs", "0")


def test_search_finetune_evaluate(command, home):
    code, out, err = command("search", *SHORT, "--out", "run")
    assert code == 0, err
    assert "best of 3" in out
    assert "random on resnet20 3/3" in err
    assert (home / "run/search.png").stat().st_size > 10_000
    code, out, err = command("finetune", "run", "--epochs", "1", "--json")
    assert code == 0, err
    first = json.loads(out)
    assert set(first) == {"dataset", "validation", "dense", "pruned", "finetuned"}
    assert first["finetuned"]["macs"] == first["pruned"]["macs"]
    assert first["finetuned"]["macs"] <= first["dense"]["macs"] / 2
    code, out, _ = command("evaluate", "run", "--json")
    assert json.loads(out) == first


def test_a_finished_run_is_refused_resumed_and_overwritten(command):
    assert command("search", *SHORT, "--out", "run")[0] == 0
    code, _, err = command("search", *SHORT, "--out", "run")
    assert code == 2
    assert "--resume run" in err
    code, out, _ = command("search", "--resume", "run", "--epochs", "0")
    assert code == 0
    assert "best of 3" in out
    assert command("search", *SHORT, "--out", "run", "--overwrite")[0] == 0


@pytest.mark.parametrize("flops", ["0", "1", "1.5", "-0.1", "abc", "0.001", "nan"])
def test_impossible_budgets_name_the_smallest(command, home, flops):
    code, _, err = command("search", "--flops", flops, "--out", "run")
    assert code == 2
    assert "cannot be reached" in err
    assert flops.lstrip("-") in err
    assert "from 0.0" in err
    assert not (home / "run").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--network", "resnet21"), "unknown network 'resnet21'; known: resnet20"),
        (("--dataset", "mnist"), "unknown dataset 'mnist'; known: digits, cifar10"),
        (("--method", "dice"), "'dice' is not one of 'gnn-rl', 'uniform', 'random'"),
        (("--finetune", "some"), "--finetune 'some' is not none"),
        (("--importance", "l3"), "'l3' is not one of 'l1', 'l2'"),
        (("--validation", "test"), "'test' is not one of 'test-5k', 'train-5k'"),
        (("--weights", "nowhere.th"), "no weights file at nowhere.th"),
        (("--min-keep", "2"), "--min-keep 2 must lie in"),
        (("--on-timeout", "wait"), "'wait' is not one of 'fit', 'penalty'"),
    ],
)
def test_misuse_is_said_in_one_line(command, home, words, message):
    code, _, err = command("search", *words, "--out", "run")
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    assert not (home / "run").exists()


def test_evaluate_needs_one_thing(command):
    assert command("evaluate")[0] == 2
    assert command("evaluate", "run", "--network", "resnet20")[0] == 2
    code, _, err = command("evaluate", "nowhere")
    assert code == 2
    assert "nowhere is not a finished run" in err


def test_evaluate_a_dense_network(command):
    code, out, _ = command("evaluate", "--network", "resnet20", "--json")
    assert code == 0
    assert json.loads(out)["dense"]["macs"] == 40_551_040


def test_inspect(command):
    code, out, _ = command("inspect", "--network", "resnet56", "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["macs"] == 125_485_696
    assert len(facts["groups"]) == 30
    assert [m["instances"] for m in facts["levels"][0]][1:3] == [25, 2]
    assert "30 channel groups" in command("inspect", "--network", "resnet56")[1]


@pytest.mark.parametrize("words", [(), *((c,) for c in ("search", "finetune", "evaluate"))])
def test_help_teaches(command, words):
    code, out, _ = command(*words, "--help")
    assert code == 0
    assert "Usage" in out


def test_ctrl_c_keeps_what_there_is(home):
    words = [
        sys.executable,
        "-m",
        "gnnrl_ray",
        "search",
        "--method",
        "random",
        "--out",
        "run",
    ]
    process = subprocess.Popen(
        words,
        cwd=home,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"COLUMNS": "200"},
    )
    journal = Path(home / "run/journal.jsonl")
    deadline = time.monotonic() + 120
    while not (journal.exists() and journal.read_text().count("\n") >= 2):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Interrupted" in errors
    assert "--resume run" in errors
    assert "Traceback" not in errors
    for file in ("journal.jsonl", "best.json", "pruned.safetensors", "run.json"):
        assert (home / "run" / file).is_file()
