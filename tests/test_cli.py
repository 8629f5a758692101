import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

import gnnrl_ray
from gnnrl_ray import SearchSettings, cli
from gnnrl_ray.errors import Notice
from gnnrl_ray.jobs.comparing import Comparison
from gnnrl_ray.jobs.sweep import Sweep
from gnnrl_ray.tracing.tracer import Tracer
from gnnrl_ray.zoo.weights import save_weights


@pytest.fixture(autouse=True)
def home(tmp_path, weights, few_digits, monkeypatch):
    """A home with weights of ResNet-20 for digits, so that nothing is trained here."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


SHORT = (
    "--method", "random", "--episodes", "3", "--finetune", "none", "--epochs", "0",
    "--precision", "float32",
)  # fmt: skip


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return tmp_path_factory.mktemp("kept") / "run"


@pytest.fixture
def searched(kept, command, home):
    """What a short search leaves in ``run``; searched once for all that begin with it."""
    if not kept.exists():
        code, _, err = command("search", *SHORT, "--out", "run")
        assert code == 0, err
        shutil.copytree(home / "run", kept)
    else:
        shutil.copytree(kept, home / "run")
    return home / "run"


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
    trained = (home / "run/finetuned.safetensors").read_bytes()
    code, _, err = command("finetune", "run", "--epochs", "1", "--seed", "3")
    assert code == 2
    assert "is there already; replace it with --overwrite." in err
    assert (home / "run/finetuned.safetensors").read_bytes() == trained


def test_a_finished_run_is_refused_resumed_and_overwritten(command, searched):
    code, _, err = command("search", *SHORT, "--out", "run")
    assert code == 2
    assert "--resume run" in err
    code, out, _ = command("search", "--resume", "run", "--epochs", "0")
    assert code == 0
    assert "best of 3" in out
    assert command("search", *SHORT, "--out", "run", "--overwrite")[0] == 0


@pytest.mark.parametrize("flops", ["1", "1.5", "0.001", "1e12"])
def test_impossible_budgets_name_the_smallest(command, home, flops):
    code, _, err = command("search", "--flops", flops, "--out", "run")
    assert code == 2
    assert "cannot be reached" in err
    assert f"--flops {float(flops)}" in err
    assert "from 0.0" in err
    assert not (home / "run").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--network", "resnet21"), "unknown network 'resnet21'; known: resnet20"),
        (("--dataset", "mnist"), "unknown dataset 'mnist'; known: digits, cifar10"),
        (("--method", "dice"), "'dice' is not one of 'gnn-rl', 'uniform', 'shallow'"),
        (("--finetune", "some"), "--finetune 'some' is not none"),
        (("--importance", "l3"), "'l3' is not one of 'l1', 'l2', 'median', 'bn'"),
        (("--network", "torchvision:resnet51"), "torchvision has no network 'resnet51'"),
        (("--network", "nowhere:net"), "cannot import 'nowhere'"),
        (("--network", "json:net"), "json has no callable 'net'"),
        (("--network", "builtins:dict"), "returned a dict, not an nn.Module"),
        (("--network", "json:JSONDecoder"), "returned a JSONDecoder, not an nn.Module"),
        (("--keep", "("), "--keep '(' is no regular expression"),
        (("--keep", "layer9"), "--keep 'layer9' matches no layer"),
        (("--round-to", "0"), "--round-to '0' is not auto or a whole number"),
        (("--round-to", "64"), "--flops 0.5 cannot be reached"),
        (("--keep", "."), "nothing can be pruned"),
        (("--levels", "4"), "--levels 4 must be less than 4"),
        (("--levels", "2.5"), "--levels '2.5' is not a whole number"),
        (("--flops", "0"), "--flops 0.0 must be more than 0"),
        (("--flops", "-0.1"), "--flops -0.1 must be more than 0"),
        (("--flops", "abc"), "--flops 'abc' is not a number"),
        (("--flops", "nan"), "--flops nan is not a number"),
        (("--params", "1e9"), "--params 1000000000.0 cannot be reached"),
        (("--episodes", "0"), "--episodes 0 must be at least 1"),
        (("--device", "tpu"), "--device 'tpu' is not cpu or cuda:N"),
        (("--device", "cuda:77"), "--device cuda:77: this machine has"),
        (
            ("--validation", "test"),
            "unknown validation 'test'; known: test-5k, train-5k",
        ),
        (("--weights", "nowhere.th"), "no weights file at nowhere.th"),
        (("--min-keep", "2"), "--min-keep 2.0 must be less than 1"),
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
    assert facts["groups"]["layer1.0.conv1"]["read"] == ["layer1.0.conv2"]
    assert facts["whole"] == {"linear": "the network's output"}
    assert [m["instances"] for m in facts["levels"][0]][1:3] == [25, 2]
    assert [m["instances"] for m in facts["levels"][1]] == [1, 2, 1]
    assert "30 channel groups" in command("inspect", "--network", "resnet56")[1]


MINE = """
import torch
from torch import nn


class Sorted(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def small(num_classes):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 12, 3, 2), nn.BatchNorm2d(12),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, num_classes),
    )


def odd():
    first, second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)
    return nn.Sequential(first, second, Sorted(), nn.Conv2d(8, 4, 1))


def volumes():
    return nn.Sequential(
        nn.Conv3d(1, 8, 3), nn.ReLU(), nn.Conv3d(8, 12, 3), nn.BatchNorm3d(12),
        nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(12, 4),
    )


def signals():
    return nn.Sequential(
        nn.Conv1d(2, 8, 3), nn.ReLU(), nn.Conv1d(8, 12, 3), nn.BatchNorm1d(12),
        nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(12, 4),
    )


def numbers():
    return nn.Sequential(nn.Linear(20, 8), nn.ReLU(), nn.Linear(8, 12), nn.Linear(12, 4))


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 8, 3), nn.Conv2d(1, 8, 3)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, left, right):
        return self.head(self.left(left) + self.right(right)).mean((2, 3))
"""


@pytest.fixture
def mine(home):
    """Networks of one's own, in the current folder."""
    (home / "mine_of_test.py").write_text(MINE)
    yield "mine_of_test"
    sys.modules.pop("mine_of_test", None)


def test_inspect_other_networks(command, home, mine):
    words = ("inspect", "--network", f"{mine}:odd", "--input-shape", "3,16,16")
    code, _, err = command(*words)
    assert code == 2
    assert "cannot follow 2 at" in err
    assert "if x.sum() > 0" in err
    code, out, _ = command(*words, "--skip-untraceable", "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["closed"] == ["2"]
    assert list(facts["groups"]) == ["0"]
    out = command(*words, "--skip-untraceable")[1]
    assert "not traced" in out
    assert "3 layers are left whole" not in out
    code, out, _ = command(
        "inspect", "--network", "torchvision:squeezenet1_1", "--input-shape", "3x64x64",
        "--classes", "7", "--keep", "fire|features.3", "--draw", "picture.svg", "--json",
    )  # fmt: skip
    assert code == 0
    assert "features.0" in json.loads(out)["groups"]
    assert "<svg" in (home / "picture.svg").read_text()
    several = ("--input-shape", "3,9,9", "--input-shape", "1,9,9", "--json")
    code, out, _ = command("inspect", "--network", f"{mine}:Pair", *several)
    assert code == 0
    assert json.loads(out)["groups"]["left"]["made"] == ["left", "right"]
    for shape, name in (("1,6,6,6", "volumes"), ("2x30", "signals"), ("20", "numbers")):
        words = ("--network", f"{mine}:{name}", "--input-shape", shape, "--json")
        code, out, _ = command("inspect", *words)
        assert code == 0, shape
        assert [each["channels"] for each in json.loads(out)["groups"].values()] == [8, 12]
    for wrong in (
        ("--input-shape", "3,32"),
        ("--input-shape", "3,-2,2"),
        ("--input-shape", "3,1,1,1,1"),
        ("--draw", "a.jpg"),
        ("--classes", "0"),
    ):
        assert command("inspect", *wrong)[0] == 2


def test_a_network_of_ones_own_from_training_to_evaluation(command, mine):
    name = f"{mine}:small"
    code, out, err = command("train", "--network", name, "--epochs", "0.5")
    assert code == 0, err
    assert "mine_of_test-small-digits.safetensors" in out.replace("\n", "")
    code, _, err = command("train", "--network", name)
    assert code == 2
    assert "--overwrite" in err
    code, out, err = command(
        "search", "--network", name, *SHORT[:-2], "--epochs", "1", "--out", "run",
        "--round-to", "4", "--keep", "^0$", "--levels", "3", "--flops", "0.75",
    )  # fmt: skip
    assert code == 0, err
    best = json.loads(Path("run/best.json").read_text())
    assert best["groups"] == {"2": 4}
    for words in (("evaluate", "run"), ("finetune", "run"), ("search", "--resume", "run")):
        code, _, err = command(*words)  # it is ours, but that nobody knows
        assert code == 2
        assert f"its network is {name}" in err
        assert "--trust" in err
    for words in (("--trust",), ("--network", name)):
        code, out, err = command("evaluate", "run", "--json", *words)
        assert code == 0, err
        assert json.loads(out)["finetuned"]["macs"] == best["macs"]


@pytest.mark.parametrize(
    "words", [(), *((c,) for c in ("search", "finetune", "evaluate", "train", "inspect"))]
)
def test_help_teaches(command, words):
    code, out, _ = command(*words, "--help")
    assert code == 0
    assert "Usage" in out


def test_ctrl_c_keeps_what_there_is(home):
    words = [sys.executable, "-m", "gnnrl_ray", "search", "--out", "run"]
    words += ["--method", "random", "--finetune", "none", "--precision", "float32"]
    process = subprocess.Popen(
        words,
        cwd=home,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"COLUMNS": "200"},
        # What a shell starts in the background ignores Ctrl-C, and so would this.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
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


@pytest.mark.parametrize(
    ("setting", "message"),
    [("noise", "is not NAME=VALUE"), ("papers", "is not NAME=VALUE"),
     ("noise=loud", "'loud' is not a number"), ("noise=0.1", "noise is of ddpg"),
     ("judges=dice", "judges 'dice' is not one of 'both', 'critics', 'kriging'"),
     ("noize=1", "'noize' is no setting of it; known: actor_lr, ")],
)  # fmt: skip
def test_settings_of_the_agent_are_checked(setting, message, command, home):
    code, _, err = command("search", "--agent", setting, "--out", "run")
    assert code == 2
    assert message in err
    assert not (home / "run").exists()


@pytest.mark.slow
def test_paper_is_the_papers_agent(command, home):
    given = ("search", "--episodes", "2", "--finetune", "none", "--agent", "paper",
             "--agent", "warmup_episodes=1", "--epochs", "0", "--out", "run",
             "--quiet")  # fmt: skip
    assert command(*given)[0] == 0
    settings = json.loads((home / "run/run.json").read_text())["settings"]
    assert settings["agent"] == {"algorithm": "ddpg", "warmup_episodes": 1}


def test_a_command_traces_once(command, home, monkeypatch):
    """Search, fine-tuning, evaluation and their reports work on one graph."""
    traced = []
    trace = Tracer.trace
    monkeypatch.setattr(
        Tracer, "trace",
        lambda *given, **named: traced.append(1) or trace(*given, **named),
    )  # fmt: skip
    commands = [
        ("search", *SHORT[:-4], "--epochs", "1", "--precision", "float32", "--out", "run"),
        ("finetune", "run", "--epochs", "1", "--overwrite"),
        ("evaluate", "run"),
    ]
    for words in commands:
        traced.clear()
        code, _, err = command(*words)
        assert code == 0, err
        assert len(traced) == 1, words


def test_flags_given_with_resume_count(command, searched):
    code, out, err = command(
        "search", "--resume", "run", "--episodes", "5", "--max-retries", "7",
        "--epochs", "0",
    )  # fmt: skip
    assert code == 0, err
    assert "best of 5" in out
    settings = json.loads((searched / "run.json").read_text())["settings"]
    assert (settings["episodes"], settings["max_retries"]) == (5, 7)
    # What was asked for stays asked for, and what may not change is refused.
    code, out, _ = command("search", "--resume", "run", "--epochs", "0")
    assert "best of 5" in out
    for words in (("--flops", "0.4"), ("--seed", "1"), ("--network", "resnet32")):
        code, _, err = command("search", "--resume", "run", *words)
        assert code == 2
        assert f"run was started with {words[0]}" in err
    assert command("search", "--resume", "run", "--flops", "0.5", "--epochs", "0")[0] == 0


def test_a_finished_search_is_resumed_and_nothing_is_trained_anew(command, searched):
    assert command("search", "--resume", "run", "--epochs", "1")[0] == 0
    trained = (searched / "finetuned.safetensors").read_bytes()
    code, out, err = command("search", "--resume", "run", "--json")
    assert (code, "finetuned" in json.loads(out)) == (0, True), err
    code, _, err = command("search", "--resume", "run", "--epochs", "2")
    assert code == 0
    assert "stays as it is; to train it anew: gnnrl-ray finetune run --overwrite" in err
    assert (searched / "finetuned.safetensors").read_bytes() == trained


def test_training_goes_on_only_as_what_it_was(command, home, monkeypatch):
    def interrupt(step, loss):
        raise KeyboardInterrupt

    source = gnnrl_ray.Source(network="resnet56", dataset="digits")
    data = source.load_data()
    with pytest.raises(KeyboardInterrupt):
        source.train(source.build(data), data, epochs=0.3, on_step=interrupt)
    words = ("train", "--network", "resnet56", "--epochs", "0.3")
    for more, said in (
        ((), "interrupted; go on with --resume, or start over with --overwrite"),
        (("--resume", "--lr", "0.1"), "its lr is 0.05, not 0.1. Give what it was given"),
    ):
        code, _, err = command(*words, *more)
        assert (code, said in err) == (2, True), err
    code, out, err = command(*words, "--resume")
    assert (code, "weights are in" in out) == (0, True), err
    code, _, err = command(*words, "--resume")
    assert (code, "nothing to go on with" in err) == (2, True)


@pytest.mark.slow
def test_a_run_is_moved_and_called_from_elsewhere(command, home, monkeypatch):
    source = gnnrl_ray.Source(network="resnet20", dataset="digits")
    save_weights(source.load()[0], home / "mine.safetensors")
    about = ("--weights", "mine.safetensors", "--out", "run")
    assert command("search", *SHORT, *about)[0] == 0
    code, expected, err = command("evaluate", "run", "--json")
    assert code == 0, err
    elsewhere = home / "else/where"
    elsewhere.mkdir(parents=True)
    monkeypatch.chdir(elsewhere)
    (home / "run").rename(elsewhere / "moved")
    assert command("evaluate", "moved", "--json")[1] == expected
    (home / "mine.safetensors").rename(elsewhere / "other.safetensors")
    code, _, err = command("evaluate", "moved")
    assert (code, f"no weights file at {home}/mine.safetensors" in err) == (2, True)
    given = ("--weights", "other.safetensors")
    assert command("evaluate", "moved", *given, "--json")[1] == expected
    (elsewhere / "other.safetensors").rename(elsewhere / "moved/mine.safetensors")
    code, _, err = command("export", "--format", "torch", "moved")
    assert code == 0, err
    # Others are none of this run's.
    save_weights(source.build(source.load_data(), seed=3), elsewhere / "none.safetensors")
    code, _, err = command("evaluate", "moved", "--weights", "none.safetensors")
    assert (code, "the weights are not those that moved" in err) == (2, True)


def test_several_budgets(command, home):
    code, out, err = command(
        "search", *SHORT, "--params", "0.35", "--activations", "12000", "--out", "run"
    )
    assert code == 0, err
    best = json.loads((home / "run/best.json").read_text())
    assert set(best["budget"]) == {"params", "activations"}
    assert best["params"] <= 0.35 * best["params_dense"]
    assert best["budget"]["activations"]["cost"] <= 12_000
    code, out, _ = command("evaluate", "run", "--json")
    assert json.loads(out)["pruned"]["params"] == best["params"]


def test_a_folder_that_is_gone_is_said(command, home, monkeypatch):
    gone = home / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    code, _, err = command("inspect")
    assert (code, err) == (2, "Error: this folder is gone; cd to one that is there.")


def test_bugs_keep_their_traceback(monkeypatch):
    def broken():
        raise ValueError("of a library")

    monkeypatch.setattr(cli, "build_app", lambda words: broken)
    with pytest.raises(ValueError, match="of a library"):
        cli.main()


def test_notices_are_shown_and_noise_is_not(command, monkeypatch):
    def noisy():
        warnings.warn("of a library", UserWarning, stacklevel=1)
        warnings.warn("slower than it could be", Notice, stacklevel=1)

    monkeypatch.setattr(cli, "build_app", lambda words: noisy)
    with warnings.catch_warnings():
        _, _, err = command()
    assert err == "Note: slower than it could be"


def test_runs_written_before_0_1_0_go_on(command, searched):
    """A run directory as the versions before wrote it."""
    facts = json.loads((searched / "run.json").read_text())
    source = facts.pop("source")
    facts["data"] = {"dataset": "digits", "classes": facts.pop("classes"),
                     "validation": "test-5k"}  # fmt: skip
    facts["settings"] |= {"name": "resnet20", "weights": None, "data_dir": None}
    for new in ("params", "activations"):
        del facts["settings"][new]
    del facts["evaluation"]["masked"]
    (searched / "run.json").write_text(json.dumps(facts))
    best = json.loads((searched / "best.json").read_text()) | {"budget": 0.5}
    (searched / "best.json").write_text(json.dumps(best))
    code, out, err = command(
        "search", "--resume", "run", "--episodes", "4", "--epochs", "0"
    )
    assert code == 0, err
    assert "best of 4" in out
    assert json.loads((searched / "run.json").read_text())["source"] == source


@pytest.mark.parametrize("name", ["sweep", "compare"])
def test_an_example_to_begin_with(command, home, name):
    """Comes with the wheel, and is a file that the command takes."""
    code, out, err = command(name, "--example")
    assert (code, err) == (0, "")
    (home / "file.toml").write_text(out)
    kind = {"sweep": Sweep, "compare": Comparison}[name]
    assert kind.read(home / "file.toml").search["dataset"] == "cifar10"
    assert "--example" in command(name, "--help")[1]


def test_version(command):
    code, out, _ = command("--version")
    assert (code, out) == (0, f"gnnrl_ray {gnnrl_ray.__version__}\n")


def test_a_shell_completes_commands_and_their_options(monkeypatch, home):
    """Of the command that is typed alone; the others need not be imported."""

    def completed(words):
        environment = os.environ | {
            "_GNNRL_RAY_COMPLETE": "complete_bash", "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split()) - 1),
        }  # fmt: skip
        script = Path(sys.executable).parent / "gnnrl-ray"
        return subprocess.run(
            [script], env=environment, capture_output=True, text=True, check=False
        ).stdout.split()

    assert "search" in completed("gnnrl-ray se")
    assert completed("gnnrl-ray search --late") == ["--latency", "--latency-batch"]


def test_help_has_headings(command):
    _, out, _ = command("search", "--help")
    places = [out.index(f"─ {panel} ─") for panel in SearchSettings.panels]
    assert out.index("─ Network and data ─") < min(places)
    assert out.index("─ Budget ─") < out.index("--latency") < out.index("─ Search ─")


OWN = """
import torch
from mine_of_test import small
from torch.utils.data import DataLoader, TensorDataset

images, labels = torch.rand(120, 3, 16, 16), torch.arange(120) % 5


def loaders():
    train = DataLoader(TensorDataset(images[:80], labels[:80]), 20, shuffle=True)
    return train, [(images[80:], labels[80:])]


def build():
    return small(5)
"""


def test_loaders_and_a_network_of_ones_own(command, home, mine):
    """All commands, of a data set that says neither its classes nor a test set."""
    (home / "own_of_test.py").write_text(OWN)
    sys.path.insert(0, str(home))
    try:
        from own_of_test import build

        save_weights(build(), home / "own.safetensors")
        about = ("--network", "own_of_test:build", "--dataset", "own_of_test:loaders",
                 "--weights", str(home / "own.safetensors"))  # fmt: skip
        code, _, err = command("search", *about, "--method", "random", "--episodes", "3",
                               "--epochs", "1", "--out", "run")  # fmt: skip
        assert code == 0, err
        code, _, err = command("evaluate", "run")
        assert (code, "--trust" in err) == (2, True)
        code, out, _ = command("evaluate", "run", "--trust", "--json")
        rows = json.loads(out)
        assert code == 0
        assert "holdout" not in rows["dense"]
        assert rows["pruned"]["macs"] < rows["dense"]["macs"]
        for words in (("export", "run", "--format", "torch"), ("measure", "run")):
            code, _, err = command(*words, "--trust")
            assert code == 0, err
    finally:
        sys.path.remove(str(home))
        sys.modules.pop("own_of_test", None)
