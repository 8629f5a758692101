"""Imports point one way."""

import ast
from pathlib import Path

import pytest

import gnnrl_ray

PACKAGE = Path(gnnrl_ray.__file__).parent
# Wings and rooms of the ground floor, from the bottom to the top.
ORDER = [
    *("errors", "interrupts", "home", "settings", "storage", "zoo", "data"),
    *("tracing", "pruning", "graph", "scoring", "source", "run"),
    *(
        "actors",
        "agent",
        "methods",
        "jobs",
        "display",
        "options",
        "commands",
        "cli",
        "__main__",
    ),
]
RAY_STARTS = ORDER.index("actors")


def rooms():
    for path in sorted(PACKAGE.rglob("*.py")):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if room != "__init__":
            yield pytest.param(path, room, id=str(path.relative_to(PACKAGE)))


def imports(path, *, top_level_only=False):
    tree = ast.parse(path.read_text())
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def test_every_room_has_its_place():
    assert {param.values[1] for param in rooms()} == set(ORDER)


@pytest.mark.parametrize(("path", "room"), list(rooms()))
def test_imports_point_down(path, room):
    for name in imports(path):
        if name.startswith("gnnrl_ray."):
            assert ORDER.index(name.split(".")[1]) <= ORDER.index(room), name


@pytest.mark.parametrize(("path", "room"), list(rooms()))
def test_ray_is_not_needed_below_the_agent(path, room):
    if (
        ORDER.index(room) < RAY_STARTS
        or path.parent.name == "methods"
        or room in ("cli", "commands")
    ):
        assert "ray" not in {n.split(".")[0] for n in imports(path, top_level_only=True)}
