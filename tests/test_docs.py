"""What documents say of figures and files is so."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from glob import glob
from pathlib import Path

import click
import pytest
import torch
import typer
from torchvision.utils import save_image

from benchmarks import headline, methods
from gnnrl_ray import cli
from gnnrl_ray.jobs.sweep import Sweep
from gnnrl_ray.zoo import build_network
from gnnrl_ray.zoo.weights import save_weights

ROOT = Path(__file__).parent.parent


def test_the_headline_is_what_was_measured():
    found = json.loads(headline.RESULTS.read_text())
    for name, table in headline.render(found).items():
        text = (ROOT / name).read_text()
        assert headline.insert(text, table) == text, name


def test_the_tables_of_methods_are_what_was_measured():
    text = methods.PAGE.read_text()
    assert methods.render(text) == text
    text = methods.README.read_text()
    assert methods.render_readme(text) == text


def test_the_picture_of_methods_shows_what_was_measured():
    rows = (methods.RESULTS / "methods_resnet20/rows").glob("*-flops0.5-random-*.json")
    found = [json.loads(row.read_text())["curve"]["180"] for row in rows]
    axis, _ = methods.draw().axes
    (line,) = [line for line in axis.lines if str(line.get_label()).startswith("random")]
    assert line.get_xdata()[-1] == 180
    assert line.get_ydata()[-1] == pytest.approx(100 * sum(found) / len(found))
    assert methods.PICTURE.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "SECURITY.md", *sorted(
    f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")
)])  # fmt: skip
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text()
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        if "://" not in link:
            assert ((ROOT / page).parent / link).exists(), link


def commands(page):
    """Yield the words of every command of ours in blocks of a page."""
    text = re.sub(r"\\\n\s*", "", page.read_text())  # those that take several lines
    for line in re.findall(r"^(?:\$ |    )(?:.* && )?(gnnrl-ray .*)$", text, re.MULTILINE):
        yield shlex.split(line, comments=True)[1:]


PAGES = [
    page for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    if list(commands(page))
]  # fmt: skip
# What stands in for what is downloaded, and for what the reader puts there.
INSTEAD = {
    "cifar10": "digits", "cifar100": "digits",
    "BUDGET": "0.5", "SEED": "0", "METHOD": "random", "NAME": "mobilenet_v2", "N": "1",
}  # fmt: skip
LONG = ("README", "budgets", "methods", "reproduce", "results", "sweeps")  # minutes each
# Of options that are given twice, the last counts.
SMALLER = {
    "search": "--episodes 2 --finetune none --precision plain --epochs 0",
    "train": "--epochs 0.1 --overwrite",
    "finetune": "--epochs 1",
    "pretrain": "--steps 2",
}
MINE = """
from torch import nn

class Build(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.head, self.last = nn.Conv2d(8, 8, 3), nn.Linear(8, 10)

    def forward(self, x):
        x = self.head(self.body(self.stem(x).relu()).relu()).relu()
        return self.last(x.mean((2, 3)))

class Detector(Build):
    def forward(self, x):
        return super().forward(x) if x.shape[0] else [float(y) for y in x]

build, detector = Build, Detector
"""


@pytest.fixture
def readers_place(tmp_path, monkeypatch, few_digits):
    """A folder with what the pages take for granted, made by commands."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("GNNRL_HOME", str(tmp_path / "home"))
    for name in ("resnet20", "resnet32", "resnet56", "mobilenet_v2", "shufflenet_v2"):
        save_weights(
            build_network(name), tmp_path / f"home/weights/{name}-digits.safetensors"
        )
    (tmp_path / "mypackage").mkdir()
    (tmp_path / "mypackage/models.py").write_text(MINE)
    scope = {}
    exec(MINE, scope)
    torch.save(scope["Build"]().state_dict(), tmp_path / "mine.pt")
    torch.save(build_network("vgg16", 2).state_dict(), tmp_path / "vgg16-397923af.pth")
    for label in ("cat", "dog"):
        for part in ("train", "val"):
            (tmp_path / f"imagenet/{part}/{label}").mkdir(parents=True)
            for image in range(4):
                save_image(torch.rand(3, 40, 40), f"imagenet/{part}/{label}/{image}.png")
    for path in [*ROOT.glob("tuned_examples/**/*.toml"), *ROOT.glob("benchmarks/*.toml")]:
        text = re.sub("cifar100?", "digits", path.read_text()).replace("= 180", "= 2")
        text = re.sub(r"(epochs|grace) = \d+", r"\1 = 1", text)
        text = re.sub(r"(methods|seeds?|warmup_\w+|noise\w*) = \[\s*(\S+?),[^]]*\]",
                      r"\1 = [\2]", text)  # fmt: skip
        path = tmp_path / path.relative_to(ROOT)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("mypackage")]:
        del sys.modules[name]


def test_commands_are_found():
    assert sum(len(list(commands(page))) for page in PAGES) > 30


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_understood(page):
    """Names and values as they are written; nothing is run."""
    for name, *rest in commands(page):
        command = typer.main.get_command(cli.build_app([name])).commands[name]
        try:
            command.make_context(name, [INSTEAD.get(word, word) for word in rest])
        except click.ClickException as error:
            pytest.fail(f"{name} {shlex.join(rest)}: {error.format_message()}")


def run(words, capsys, monkeypatch):
    """Run a command in this process; fail with what it says."""
    monkeypatch.setattr(sys, "argv", ["gnnrl-ray", *words])
    code = 0
    try:
        cli.main()
    except SystemExit as stop:
        code = stop.code
    said = capsys.readouterr()
    assert not code, f"{shlex.join(words)}: {said.out}{said.err}"


@pytest.mark.notebook
@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=[pytest.mark.slow] * (page.stem in LONG)) for page in PAGES],
    ids=lambda page: page.name,
)  # fmt: skip
def test_commands_are_run(page, readers_place, capsys, monkeypatch):
    """From the first of a page to the last, where its reader is, with small numbers.

    Not those that do not end: `dashboard` is in test_dashboard.py.
    """
    if "runs/resnet20-" in page.read_text() or "$A" in page.read_text():
        made = "runs/resnet20-cifar10-gnn-rl"
        run(["search", "--out", made, *SMALLER["search"].split(), "--episodes",
             "10"], capsys, monkeypatch)  # fmt: skip
        shutil.copytree(made, "runs/resnet32-cifar10-gnn-rl")
        for place in set(re.findall(r"\$A/(\S+)", page.read_text())):
            shutil.copytree(made, f"A/{place.replace('*', '0')}")
    for words in commands(page):
        if words[0] == "dashboard":
            continue
        rest = []
        for word in words[1:]:
            word = INSTEAD.get(word, word).replace("$A", "A")
            rest += sorted(glob(word)) if "*" in word else [word]
        smaller = SMALLER.get(words[0], "").split()
        if "--env-runners" in rest:
            smaller += ["--env-runners", "1", "--gpus-per-env-runner", "0"]
        if "folder:imagenet" in rest:
            smaller += ["--image-size", "32"]
        run([words[0], *rest, *smaller], capsys, monkeypatch)


def test_what_troubleshooting_quotes_is_said():
    files = (ROOT / "gnnrl_ray").rglob("*.py")
    # Texts go over several lines there.
    said = re.sub(r'"\s+f?"', "", "\n".join(path.read_text() for path in files))
    rows = re.findall(r"^\| `([^`]+)` \|", (ROOT / "docs/troubleshooting.md").read_text(),
                      re.MULTILINE)  # fmt: skip
    assert len(rows) > 20
    assert [words for words in rows if words not in said] == []


def test_files_that_are_named_exist():
    """Paths in the design and in the guide to extending it."""
    for page in ("docs/design.md", "docs/extending.md", "docs/graph.md"):
        text = (ROOT / page).read_text()
        for name in re.findall(r"`((?:\w+/)+\w+\.py)`", text):
            there = (ROOT / name, ROOT / "gnnrl_ray" / name)
            made_up = name == "methods/greedy.py"
            assert made_up or any(path.exists() for path in there), name


def scripts(page):
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


@pytest.mark.slow
def test_the_script_for_data_of_ones_own_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    script, _ = scripts("docs/own.md")
    exec(compile(script, "own.md", "exec"), {"__name__": "__main__"})
    assert "closeness" in capsys.readouterr().out
    assert {"smaller.safetensors", "search.svg"} <= {p.name for p in tmp_path.iterdir()}


@pytest.mark.slow
def test_a_part_of_a_network_is_searched_within_the_rest(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    _, script = scripts("docs/own.md")
    torch.manual_seed(0)  # of the detector's weights: some find nothing
    exec(compile(script, "own.md", "exec"), {"__name__": "__main__"})
    said, again = map(float, capsys.readouterr().out.split())
    assert said == again > 0


@pytest.mark.usefixtures("ray_session", "weights", "few_digits")
def test_the_example_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = scripts("README.md")
    script = "".join(blocks)
    assert len(blocks[0].splitlines()) <= 10
    smaller = {"cifar10": "digits", "180": '2, finetune="none"', "steps=2000": "steps=2"}
    for written, instead in smaller.items():
        assert script.count(written) == 1
        script = script.replace(written, instead)
    names = {"__name__": "__main__"}
    exec(compile(script, "README.md", "exec"), names)
    scored, *_, costs = capsys.readouterr().out.splitlines()
    assert costs == "40551040"
    said, again = map(float, scored.split())
    assert said == pytest.approx(again, abs=0.01)
    assert len(names["found"].history) == 2


@pytest.mark.slow
def test_types_of_the_examples_are_right(tmp_path):
    pytest.importorskip("pyright")
    for page in ("README.md", "docs/own.md"):
        blocks = scripts(page)
        parts = ["".join(blocks)] if page == "README.md" else blocks
        for number, script in enumerate(parts):
            (tmp_path / f"{Path(page).stem}_{number}.py").write_text(script)
    done = subprocess.run(
        [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, str(tmp_path)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert "0 errors, 0 warnings" in done.stdout, done.stdout


EXTENDED = """
import numpy as np
import torch
from torch import nn
from gnnrl_ray import search, trace
from gnnrl_ray.pruning.importance import importances

class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.gated = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 16, 3)
        self.head = nn.Linear(8, 10)
    def forward(self, x):
        x = nn.functional.glu(self.gated(self.first(x).relu()), 1)
        return self.head(x.mean((2, 3)))

torch.manual_seed(0)
batches = [(torch.randn(20, 1, 8, 8), torch.arange(20) % 10)]
network = Gated()
groups = trace(network, (1, 8, 8))
assert tuple(groups.widths) == (8, 8), groups.widths
best = search(
    network, (batches, batches), method="greedy", importance="max", channels=0.6,
    patience=3, episodes=4, precision="plain", out="run", progress=False,
).best
assert sum(best.widths) == 9, best.widths
ranks = importances(network, groups, "max")[0]
assert np.allclose(ranks, network.first.weight.abs().amax((1, 2, 3)).detach())
"""


@pytest.mark.notebook
def test_the_guide_to_extending_holds(tmp_path):
    """Every change that is shown, made in a copy of the package, and used together."""
    package = tmp_path / "gnnrl_ray"
    shutil.copytree(ROOT / "gnnrl_ray", package)
    text = (ROOT / "docs/extending.md").read_text()
    (patience, greedy, cost, count, limit, importance, rule, row) = re.findall(
        r"```python\n(.*?)```", text, re.DOTALL
    )
    (package / "methods/greedy.py").write_text(greedy)
    line = '    "greedy": "gnnrl_ray.methods.greedy:Greedy",\n'
    known = "    _gated: {nn.GLU, F.glu},\n"
    for file, place, instead in (
        ("methods/__init__.py", "METHODS = {\n", f"METHODS = {{\n{line}"),
        ("settings.py", "    episodes: int =", f"{patience}{limit}    episodes: int ="),
        ("settings.py", "BUDGETS = (", 'BUDGETS = ("channels", '),
        ("settings.py", "IMPORTANCES = (", 'IMPORTANCES = ("max", '),
        ("pruning/budget.py", "# Of each kind of cost:", f"{count}# Of each kind of cost:"),
        ("pruning/budget.py", '    "flops": (', f'{cost}    "flops": ('),
        ("pruning/importance.py", '    "l1": lambda', f'{importance}    "l1": lambda'),
        ("tracing/effects.py", "def _gated(", f"{rule}\n\ndef _gated("),
        ("tracing/effects.py", known, row),
    ):
        before = (package / file).read_text()
        assert before.count(place) == 1, place
        (package / file).write_text(before.replace(place, instead))
    found = subprocess.run(
        [sys.executable, "-c", EXTENDED], cwd=tmp_path, text=True, capture_output=True,
        env=os.environ | {"PYTHONPATH": str(tmp_path)}, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_the_sweeps_of_the_page_run(readers_place, capsys):
    text = (ROOT / "docs/sweeps.md").read_text()
    (file,), (script,) = (
        re.findall(rf"```{kind}\n(.*?)```", text, re.DOTALL) for kind in ("toml", "python")
    )
    file = file.replace("cifar10", "digits")
    Path("sweep.toml").write_text(file)
    sweep = Sweep.read(Path("sweep.toml"))
    assert (sweep.size, sweep.episodes) == (9, 180)
    smaller = {"cifar10": "digits", "60": '2, "finetune": "none"', "samples=8": "samples=2"}
    for written, instead in smaller.items():
        assert script.count(written) == 1
        script = script.replace(written, instead)
    exec(compile(script, "sweeps.md", "exec"), {"__name__": "__main__"})
    assert "graph_layers" in capsys.readouterr().out
    assert len(list(Path("sweeps/keep/runs").iterdir())) == 2


@pytest.mark.slow
def test_segmentation_is_scored_by_what_the_user_says(tmp_path, capsys):
    from tuned_examples import segmentation

    out = tmp_path / "shapes"
    segmentation.main(["--images", "64", "--epochs", "12", "--episodes", "3",
                       "--out", str(out)])  # fmt: skip
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said["pruned"] == pytest.approx(said["said"])
    assert said["dense"] > 0.25
    best = json.loads((out / "best.json").read_text())
    assert best["macs_ratio"] <= 0.6
