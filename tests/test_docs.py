"""What documents say of figures and files is so."""

import json
import re
from pathlib import Path

import pytest

from benchmarks import headline, methods

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
