"""What commands have in common on a terminal."""

from typing import Annotated, NoReturn

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


def stop(said: str) -> NoReturn:
    """Say what an interruption leaves, and end."""
    errors.print(f"\nInterrupted: {said}")
    raise typer.Exit(130)
