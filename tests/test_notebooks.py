"""The notebooks run from the first cell to the last, with small numbers."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

HERE = Path(__file__).parent.parent / "tuned_examples"
SMALLER = {
    "search.ipynb": {"episodes=60": "episodes=3", "steps=100": "steps=2"},
    "own.ipynb": {
        "steps=2000": "steps=20", "steps=1000": "steps=2", "episodes=40": "episodes=3",
    },
}  # fmt: skip


def test_every_notebook_is_run():
    assert {path.name for path in HERE.glob("*.ipynb")} == SMALLER.keys()


@pytest.mark.notebook
@pytest.mark.parametrize("name", SMALLER)
def test_notebook_runs(name, weights, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    text = (HERE / name).read_text()
    for large, small in SMALLER[name].items():
        assert text.count(large) == 1, large
        text = text.replace(large, small)
    book = nbformat.reads(text, 4)
    for cell in book.cells:
        cell.pop("outputs", None)
    place = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(book, timeout=300, kernel_name="python3", resources=place).execute()
    assert next(tmp_path.glob("runs/*/pruned.safetensors"))
