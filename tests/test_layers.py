"""Imports point one way."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import gnnrl_ray
from gnnrl_ray import cli

PACKAGE = Path(gnnrl_ray.__file__).parent
# Wings and rooms of the ground floor, from the bottom to the top.
ORDER = [
    *("errors", "interrupts", "process", "home", "settings", "storage", "zoo", "data"),
    *("tracing", "pruning", "graph", "scoring", "source", "run"),
    *(
        "actors",
        "agent",
        "methods",
        "display",
        "jobs",
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


def test_what_the_package_exports_is_at_home_where_it_says():
    """Once for people and once for type checkers: both say the same."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    (checked,) = (node for node in tree.body if isinstance(node, ast.If))
    homes = {
        alias.name: node.module.removeprefix("gnnrl_ray.")
        for node in checked.body
        for alias in node.names
    }
    assert homes == gnnrl_ray._HOMES
    assert sorted(homes) == gnnrl_ray.__all__
    for name in homes:
        assert getattr(gnnrl_ray, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = gnnrl_ray.nothing


def test_help_and_typos_do_without_torch():
    """In a process of its own, which says what it has imported."""
    code = (
        "import sys\nfrom gnnrl_ray import cli\n"
        "def run(words):\n"
        "    sys.argv = ['gnnrl-ray', *words.split()]\n"
        "    try:\n        cli.main()\n"
        "    except SystemExit as stop:\n        return stop.code\n"
        "codes = [run(words) for words in sys.argv[1:]]\n"
        "print(codes, {'torch', 'pandas', 'ray', 'matplotlib'} & {*sys.modules})"
    )
    helps = ["--help", *(f"{name} --help" for name in cli.COMMANDS)]
    typos = [
        "", "serach", "search --nosuch", "search --flops 3x", "search --flops -1",
        "search --network resnet21", "search --dataset mnist", "search --method magic",
        "train --validation half", "finetune run --lr much", "export run --format caffe",
        "inspect --network resnet21", "inspect --input-shape 3,", "measure run --batch 0",
    ]  # fmt: skip
    call = [sys.executable, "-c", code, *helps, *typos]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    codes = [0] * len(helps) + [2] * len(typos)
    assert done.stdout.splitlines()[-1] == f"{codes} set()", done.stderr
    assert all(name in done.stdout for name in cli.COMMANDS)


def test_every_command_says_at_the_top_what_it_says_of_itself():
    assert {path.stem for path in (PACKAGE / "commands").glob("[!_]*.py")} == {
        *cli.COMMANDS, "networks", "terminal",
    }  # fmt: skip
    for name, text in cli.COMMANDS.items():
        own = cli.load_command(name).__doc__
        assert len(set(text.split()) & set(own.split())) >= 3, name
