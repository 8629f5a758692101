"""The command ``report``."""

import io
from pathlib import Path
from typing import Annotated

import typer

from gnnrl_ray.errors import InputError
from gnnrl_ray.storage import Storage


def report_command(
    runs: Annotated[
        list[str], typer.Argument(help="Run directories, or folders that hold some.")
    ],
    out: Annotated[
        Path, typer.Option(help="Directory for report.html, and its pictures.")
    ] = Path("report"),
) -> None:
    """Draw finished searches beside each other: one page that opens without a network.

    The paper's Tables 1 to 3 with what there is to fill them (see `gnnrl-ray evaluate` and
    `gnnrl-ray measure`), as Markdown and on the page; learning curves, what every group
    loses (Figure 3), and accuracy against cost (Figure 4), as PNG, as SVG and on the page.
    """
    from gnnrl_ray.display import page as shown
    from gnnrl_ray.run.directory import Run

    curves = [
        shown.Curve.of(run) for run in map(Run.open, runs_in(runs)) if run.journal.best()
    ]
    if not curves:
        raise InputError(f"no run with a candidate is in {', '.join(runs)}.")
    figures = shown.draw_curves(curves) | shown.draw_widths(curves)
    figures |= {"costs": shown.draw_costs(curves)}
    out.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        picture = io.BytesIO()
        figure.savefig(picture, dpi=120, format="png")
        (out / f"{name}.png").write_bytes(picture.getvalue())
        (out / f"{name}.svg").write_text(shown.as_svg(figure))
    sheets = shown.sheets_of(curves)
    (out / "tables.md").write_text("\n".join(sheet.to_markdown() for sheet in sheets))
    (out / "report.html").write_text(shown.page(sheets, figures))
    many = "1 search is" if len(curves) == 1 else f"{len(curves)} searches are"
    print(f"{many} in {out}/report.html")


def runs_in(places: list[str]) -> list[str]:
    """Return the runs that ``places`` are, or that lie in them."""
    found = []
    for place in places:
        if Storage(place).exists("run.json"):
            found.append(place)
        elif Path(place).is_dir():
            found += sorted(str(path.parent) for path in Path(place).glob("**/run.json"))
        else:
            raise InputError(f"{place} is no run, and no folder with runs.")
    return found
