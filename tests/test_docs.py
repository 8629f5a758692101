"""What documents say of figures and files is so."""

import json
import re
import shlex
from pathlib import Path

import click
import pytest
import typer

from benchmarks import headline, methods
from gnnrl_ray import cli

ROOT = Path(__file__).parent.parent


def test_the_headline_is_what_was_measured():
    found = json.loads(headline.RESULTS.read_text())
    for name, table in headline.render(found).items():
        text = (ROOT / name).read_text()
        assert headline.insert(text, table) == text, name


def test_the_tables_of_methods_are_what_was_measured():
    text = methods.PAGE.read_text()
    assert methods.render(text) == text


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "SECURITY.md", *sorted(
    f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")
)])  # fmt: skip
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text()
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        if "://" not in link:
            assert ((ROOT / page).parent / link).exists(), link


def commands():
    """Yield (page, words) of every command of ours in blocks of README and docs/."""
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = re.sub(r"\\\n\s*", "", page.read_text())  # those that take several lines
        for line in re.findall(
            r"^(?:\$ |    )(?:.* && )?(gnnrl-ray .*)$", text, re.MULTILINE
        ):
            yield page.name, shlex.split(line, comments=True)[1:]


def test_commands_are_understood():
    """Names and values of options, by those who take them; nothing is run."""
    found, places = list(commands()), {"BUDGET": "0.5", "SEED": "0", "N": "1"}
    assert len(found) > 30
    for page, words in found:
        name, *rest = [places.get(word, word) for word in words]
        command = typer.main.get_command(cli.build_app([name])).commands[name]
        try:
            command.make_context(name, rest)
        except click.ClickException as error:
            pytest.fail(f"{page}: {' '.join(words)}: {error.format_message()}")


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


def test_the_script_for_data_of_ones_own_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs/own.md").read_text()
    (script,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(compile(script, "own.md", "exec"), {"__name__": "__main__"})
    assert "closeness" in capsys.readouterr().out
    assert {"smaller.safetensors", "search.svg"} <= {p.name for p in tmp_path.iterdir()}


@pytest.mark.usefixtures("ray_session", "weights", "few_digits")
def test_the_example_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (script,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL
    )
    smaller = {"cifar10": "digits", "180": '2, finetune="none"', "steps=2000": "steps=2"}
    for written, instead in smaller.items():
        assert script.count(written) == 1
        script = script.replace(written, instead)
    names = {"__name__": "__main__"}
    exec(compile(script, "README.md", "exec"), names)
    costs, scored, *_ = capsys.readouterr().out.splitlines()
    assert costs == "40551040"
    said, again = map(float, scored.split())
    assert said == pytest.approx(again, abs=0.01)
    assert len(names["found"].history) == 2


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
