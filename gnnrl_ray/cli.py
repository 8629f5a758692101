"""The command ``gnnrl-ray``."""

import errno
import os
import sys
import warnings

import typer

from gnnrl_ray.commands.compare import compare_command
from gnnrl_ray.commands.evaluate import evaluate_command
from gnnrl_ray.commands.finetune import finetune_command
from gnnrl_ray.commands.inspect import inspect_command
from gnnrl_ray.commands.measure import measure_command
from gnnrl_ray.commands.report import report_command
from gnnrl_ray.commands.search import search_command
from gnnrl_ray.commands.sweep import sweep_command
from gnnrl_ray.commands.terminal import errors
from gnnrl_ray.commands.train import train_command
from gnnrl_ray.errors import GnnrlError, Notice
from gnnrl_ray.interrupts import stop_on_signals

app = typer.Typer(
    help="Find how many channels each layer of a CNN keeps, and remove the others.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for name, command in {
    "search": search_command,
    "sweep": sweep_command,
    "compare": compare_command,
    "report": report_command,
    "finetune": finetune_command,
    "evaluate": evaluate_command,
    "measure": measure_command,
    "train": train_command,
    "inspect": inspect_command,
}.items():
    app.command(name)(command)


def main() -> None:
    """Run a command; say in one line what its user can mend, if anything is wrong."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Those of libraries are about what is meant to be so.
    warnings.filterwarnings("ignore")
    warnings.filterwarnings("always", category=Notice)
    warnings.showwarning = lambda message, *_: errors.print(f"Note: {message}")
    stop_on_signals()
    try:
        app()
    except GnnrlError as error:
        errors.print(f"Error: {error}")
        sys.exit(error.exit_code)
    except OSError as error:
        full = error.errno == errno.ENOSPC
        remedy = ". Free some space, then go on with --resume." if full else ""
        errors.print(f"Error: {error}{remedy}")
        sys.exit(1)
    except KeyboardInterrupt:
        errors.print("Interrupted.")
        sys.exit(130)
