"""What commands have in common on a terminal."""

from importlib.metadata import files
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

console = Console()
# And progress, so that output can be piped; paths and commands are said in one piece.
errors = Console(stderr=True, soft_wrap=True, markup=False, highlight=False)

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
DeviceOption = Annotated[
    str | None, typer.Option(help="cpu or cuda:N; default: a GPU if there is one.")
]
RunArgument = Annotated[str, typer.Argument(help="Run directory of a search, or its URI.")]
DataDirOption = Annotated[
    str | None, typer.Option(help="Folder of the data, if not that of the search.")
]
TrustOption = Annotated[bool, typer.Option(help="Use code and URIs that run.json names.")]
QuietOption = Annotated[bool, typer.Option(help="Say nothing while it goes on.")]
SeedOption = Annotated[
    int, typer.Option(min=0, max=2**53, help="Of order, augmentation and new weights.")
]
RateOption = Annotated[float, typer.Option(min=0, max=1e3, help="Peak learning rate.")]
BatchOption = Annotated[int, typer.Option(min=2, help="Images in one step.")]


def example_option(name: str) -> Any:
    """Return the option ``--example``: print a file of tuned_examples/, and end.

    It is in the checkout, or where a wheel puts what is no module.
    """

    def show(wanted: bool) -> None:
        if not wanted:
            return
        place = Path(__file__).parents[2] / "tuned_examples" / name
        if not place.is_file():
            (found,) = (path for path in files("gnnrl-ray") or () if path.name == name)
            place = Path(str(found.locate()))
        print(place.read_text(), end="")
        raise typer.Exit

    return typer.Option(
        "--example", help="Print a file to begin with.", callback=show, is_eager=True
    )


def stop(said: str) -> NoReturn:
    """Say what an interruption leaves, and end."""
    errors.print(f"\nInterrupted: {said}")
    raise typer.Exit(130)
