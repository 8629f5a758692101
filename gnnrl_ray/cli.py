"""The command ``gnnrl-ray``."""

import errno
import importlib
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Annotated

import typer

from gnnrl_ray import __version__
from gnnrl_ray.commands.terminal import errors
from gnnrl_ray.errors import GnnrlError, InputError, Notice
from gnnrl_ray.interrupts import stop_on_signals

# What each says of itself; the rest is in its file, which takes seconds to import.
COMMANDS = {
    "search": "Search for the best widths within a budget.",
    "sweep": "Try settings, schedules and seeds beside each other with Ray Tune.",
    "compare": "Hold methods against each other: same networks, budgets, seeds.",
    "report": "Draw finished searches beside each other on one page.",
    "dashboard": "Look at searches as they go, in a browser on this machine.",
    "finetune": "Fine-tune the winner of a search.",
    "evaluate": "Measure accuracy, MACs and parameters: pruned beside dense.",
    "measure": "Measure latency and memory: pruned beside dense.",
    "pretrain": "Let an agent learn from finished searches, before it searches.",
    "export": "Write the winner of a search as a file for elsewhere.",
    "train": "Train a network on a data set, so that it can be pruned.",
    "inspect": "Show what would be pruned in a network: groups, motifs, costs.",
}


def load_command(name: str) -> Callable[..., None]:
    """Return the function of a command."""
    module = importlib.import_module(f"gnnrl_ray.commands.{name}")
    return getattr(module, f"{name}_command")


def _say_version(wanted: bool) -> None:
    if wanted:
        print(f"gnnrl_ray {__version__}")
        raise typer.Exit


def _callback(
    version: Annotated[
        bool,
        typer.Option("--version", help="Say it, and end.", callback=_say_version,
                     is_eager=True),
    ] = False,
) -> None:  # fmt: skip
    """Find how many channels each layer of a CNN keeps, and remove the others."""


def build_app(words: Sequence[str] = ()) -> typer.Typer:
    """Return the application.

    Args:
        words: of the command line: only the command that they begin with is imported; the
            names of all are known where they begin with none.
    """
    app = typer.Typer(
        help="Find how many channels each layer of a CNN keeps, and remove the others.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",  # else lines of a docstring stay lines
    )
    app.callback()(_callback)  # or a command that stands alone would need no name
    if words and words[0] in COMMANDS:
        app.command(words[0])(load_command(words[0]))
        return app
    for name, text in COMMANDS.items():
        app.command(name, help=text)(lambda: None)
    return app


def _words() -> list[str]:
    """Return the words of the command line; while a shell completes them, of that."""
    if "_GNNRL_RAY_COMPLETE" in os.environ:
        return os.environ.get("COMP_WORDS", "").split()[1:]
    return sys.argv[1:]


def _check_folder() -> None:
    # Libraries that are about to be imported end the process where there is none.
    try:
        os.getcwd()
    except FileNotFoundError:
        raise InputError("this folder is gone; cd to one that is there.") from None


def main() -> None:
    """Run a command; say in one line what its user can mend, if anything is wrong."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # torch's profiler says when it begins
    # Those of libraries are about what is meant to be so.
    warnings.filterwarnings("ignore")
    warnings.filterwarnings("always", category=Notice)
    warnings.showwarning = lambda message, *_: errors.print(f"Note: {message}")
    stop_on_signals()
    try:
        _check_folder()
        build_app(_words())()
    except GnnrlError as error:
        errors.print(f"Error: {error}")
        sys.exit(error.exit_code)
    except OSError as error:
        full = error.errno == errno.ENOSPC
        remedy = ". Free some space, then run it again (search, sweep: --resume)."
        errors.print(f"Error: {error}{remedy if full else ''}")
        sys.exit(1)
    except KeyboardInterrupt:
        errors.print("Interrupted.")
        sys.exit(130)
