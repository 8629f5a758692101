"""Files from strangers: an error of ours, or the right result; nothing else, and soon."""

import contextlib
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from gnnrl_ray import Outcome, SearchSettings, Source, cli, load_data, load_pruned
from gnnrl_ray.errors import GnnrlError
from gnnrl_ray.jobs.sweep import Sweep
from gnnrl_ray.pruning.budget import Budget
from gnnrl_ray.pruning.importance import rank
from gnnrl_ray.pruning.removal import keep, remove
from gnnrl_ray.run.directory import Run
from gnnrl_ray.tracing.groups import trace
from gnnrl_ray.zoo import build_network
from gnnrl_ray.zoo.weights import read_weights, save_weights, weights_path

# Set the environment's HYPOTHESIS_EXAMPLES for more; then they are drawn anew.
COUNT = int(os.environ.get("HYPOTHESIS_EXAMPLES", 0))
FEW = settings(max_examples=COUNT or 16, deadline=10_000, derandomize=not COUNT,
               suppress_health_check=list(HealthCheck))  # fmt: skip

# Of what takes a while: a network is loaded.
FEWER = settings(FEW, max_examples=COUNT or 8)

anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats()
    | st.text(max_size=8) | st.sampled_from(["os:system", "http://127.0.0.1:9/x", "/etc"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
# Where in a file, and what becomes of it there.
edits = st.lists(
    st.tuples(
        st.floats(0, 1), st.sampled_from(["flip", "cut", "grow", "drop"]),
        st.binary(max_size=9),
    ),
    min_size=1, max_size=3,
)  # fmt: skip


def edited(content, changes):
    for where, what, new in changes:
        at = int(where * len(content))
        match what:
            case "flip":
                content = content[:at] + new + content[at + len(new) :]
            case "cut":
                content = content[:at]
            case "grow":
                content = content[:at] + new + content[at:]
            case "drop":
                content = content[:at] + content[at + len(new) :]
    return content


def replaced(value, path, new):
    """Return ``value`` with ``new`` at the place that the numbers in ``path`` lead to."""
    if not path or not isinstance(value, dict | list) or not value:
        return new
    keys = list(value) if isinstance(value, dict) else range(len(value))
    key = keys[path[0] % len(keys)]
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[key] = replaced(value[key], path[1:], new)
    return copy


def survives(function, *arguments):
    with contextlib.suppress(GnnrlError, OSError):
        function(*arguments)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    network = build_network("resnet20").eval()
    groups = trace(network, (3, 32, 32))
    budget, widths = Budget(groups, {"flops": 0.5}), groups.widths // 2
    run = Run.create(folder, SearchSettings(), Source(), 10)
    macs = int(budget.costs.macs(widths))
    run.journal.append(0, Outcome(tuple(widths.tolist()), macs, 1, 0.5, -0.5, 1.0))
    kept = keep(rank(network, groups), widths)
    run.write_best(budget, kept)
    run.save_network("pruned", remove(network, groups, kept))
    return folder


def use(folder):
    run = Run.open(folder)
    run.check_trust({}, trust=False)
    run.check({})
    run.best()
    run.lags()


def broken(finished, name, content):
    """Use a copy of a run one of whose files is ``content``."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(finished, folder, dirs_exist_ok=True)
        (Path(folder) / name).write_bytes(content)
        before = sorted(path.name for path in Path(folder).iterdir())
        survives(use, folder)
        if name in ("best.json", "pruned.safetensors"):
            survives(load_pruned, folder)
        assert sorted(path.name for path in Path(folder).iterdir()) == before


@pytest.mark.parametrize("name", ["run.json", "best.json"])
@FEWER
@given(path=st.lists(st.integers(0, 99), min_size=1, max_size=4), new=anything)
def test_other_values_in_json(finished, name, path, new):
    content = json.loads((finished / name).read_text())
    broken(finished, name, json.dumps(replaced(content, path, new)).encode())


@pytest.mark.parametrize(
    "name", ["run.json", "best.json", "journal.jsonl", "pruned.safetensors"]
)
@FEWER
@given(changes=edits)
def test_other_bytes(finished, name, changes):
    broken(finished, name, edited((finished / name).read_bytes(), changes))


@FEW
@given(changes=edits)
def test_data(tmp_path_factory, changes):
    folder = Path(tempfile.mkdtemp(dir=tmp_path_factory.getbasetemp()))
    images, labels = np.zeros((4, 32, 32, 3), np.uint8), np.arange(4)
    path = folder / "cifar10.npz"
    np.savez(path, x_train=images, y_train=labels, x_test=images, y_test=labels)
    survives(load_data, "cifar10", folder)
    path.write_bytes(edited(path.read_bytes(), changes))
    survives(load_data, "cifar10", folder)


@pytest.mark.parametrize("kind", ["pt", "safetensors"])
@FEW
@given(changes=edits)
def test_weights(tmp_path_factory, kind, changes):
    path = tmp_path_factory.getbasetemp() / f"weights.{kind}"
    state = {"a": torch.rand(3), "b": torch.zeros(2, dtype=torch.int64)}
    if kind == "pt":
        torch.save(state, path)
    else:
        path.write_bytes(save(state))
    path.write_bytes(edited(path.read_bytes(), changes))
    survives(read_weights, path)


SWEEP = b"""
[search]
network = "resnet20"
episodes = 8
hidden = [16]
[space]
seed = [0, 1]
noise = {uniform = [0.1, 0.5]}
[asha]
grace = 4
"""


@FEW
@given(changes=edits)
def test_sweeps(tmp_path_factory, changes):
    path = tmp_path_factory.getbasetemp() / "sweep.toml"
    path.write_bytes(edited(SWEEP, changes))
    survives(Sweep.read, path)


@pytest.mark.parametrize(
    "array", ["strings", "structured", "objects", "floats", "columns", "few"]
)
def test_arrays_of_other_kinds(tmp_path, array):
    images, labels = np.zeros((4, 32, 32, 3), np.uint8), np.arange(4)
    other = {
        "strings": np.array(["a"] * 4), "structured": np.zeros(4, [("a", int)]),
        "objects": np.array([None] * 4), "floats": labels + 0.5, "columns": labels[:, None],
        "few": labels[:3],
    }[array]  # fmt: skip
    np.savez(
        tmp_path / "cifar10.npz",
        x_train=images,
        y_train=other,
        x_test=images,
        y_test=labels,
    )
    with pytest.raises(GnnrlError):
        load_data("cifar10", tmp_path)


# What people, and programs that start others, write where something else should be.
WORDS = (
    "", " ", "-", "-1", "0", "1", "2", "0.5", "nan", "-inf", "1e400", "9" * 30, "0x1F",
    "1,2,3", "3,32,32", "3,-1,8", "3x99999999x99999999", "[]", "{", "a=b", "hidden=[", "é",
    "gamma=1e999", "../..", "/dev/null", "/etc/passwd", "/proc/self/mem", "file:///etc",
    "http://127.0.0.1:9/x", "abc://x", "os:system", "builtins:len", ".x:y", "timm:nothing",
    "torchvision:nothing", "torch.nn:Linear", "(", "(a+)+$", "(.*)*(.*)*(.*)*x",
    "a{9999999999}", "%s", "a\nb", "cuda:99", "cpu", "auto", "no", "x.svg", "\x1b[31m",
)  # fmt: skip
# Of each command, words that make it end soon.
COMMANDS = {
    "search": ["--method", "uniform", "--finetune", "none", "--epochs", "0"],
    "evaluate": ["run"],
    "finetune": ["run", "--epochs", "1"],
    "train": ["--epochs", "0.01"],
    "inspect": [],
    "sweep": ["sweep.toml"],
    "compare": ["sweep.toml"],
    "measure": ["run", "--rounds", "5", "--batch", "1"],
    "report": ["run"],
}
# It starts Ray, which takes longer than all else here.
LEFT_OUT = {("--env-runners", "1"), ("--env-runners", "2")}


def options_of(name):
    """Return all options of a command: (what is written, whether a value follows)."""
    command = typer.main.get_command(cli.build_app([name])).commands[name]
    return [
        (opt, not getattr(parameter, "is_flag", False))
        for parameter in command.params
        for opt in (*parameter.opts, *parameter.secondary_opts)
        if opt.startswith("--") and opt != "--help"
    ]


@pytest.fixture(scope="module")
def workplace(finished, tmp_path_factory):
    """A folder with a run of digits, weights for them, and a sweep that cannot be."""
    folder = tmp_path_factory.mktemp("workplace")
    shutil.copytree(finished, folder / "run")
    (folder / "sweep.toml").write_bytes(SWEEP + b"[other]\n")
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GNNRL_HOME", str(folder / "home"))
        save_weights(build_network("resnet20"), weights_path("resnet20", "digits"))
        patch.chdir(folder)
        yield folder


@pytest.mark.parametrize("name", COMMANDS)
@settings(FEWER, max_examples=COUNT or 3, deadline=None)
@given(data=st.data())
def test_command_lines(workplace, capsys, name, data):
    drawn = data.draw(
        st.lists(
            st.tuples(st.sampled_from(options_of(name)), st.sampled_from(WORDS)),
            min_size=1, max_size=3,
        )
    )  # fmt: skip
    words = [w for (option, valued), word in drawn if (option, word) not in LEFT_OUT
             for w in ((option, word) if valued else (option,))]  # fmt: skip
    before = set(workplace.parent.iterdir())
    began = time.monotonic()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["gnnrl-ray", name, *COMMANDS[name], *words])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
    said = capsys.readouterr().err
    assert code in (0, 1, 2), words
    assert "Traceback" not in said
    assert code == 0 or said.strip(), words
    assert time.monotonic() - began < 20, words
    assert set(workplace.parent.iterdir()) == before
    for path in workplace.glob("runs/*"):
        shutil.rmtree(path)
