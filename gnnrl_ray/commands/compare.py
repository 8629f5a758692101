"""The command ``compare``."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from gnnrl_ray.commands.terminal import (
    JsonOption,
    QuietOption,
    console,
    errors,
    example_option,
    stop,
)


def compare_command(
    file: Annotated[Path, typer.Argument(help="TOML; see --example.")],
    out: Annotated[
        str | None,
        typer.Option(help="Directory that all nodes see, or URI; default: compared/FILE."),
    ] = None,
    at_once: Annotated[
        int, typer.Option(min=1, help="Searches at a time, as tasks of Ray; 1: none of it.")
    ] = 1,
    gpus: Annotated[float, typer.Option(min=0, help="Share of a GPU for each.")] = 0.0,
    address: Annotated[
        str | None, typer.Option(help="Ray cluster to run on, as for `search`.")
    ] = None,
    example: Annotated[bool, example_option("compare_resnet20.toml")] = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Hold methods against each other: same networks, budgets, seeds and fine-tuning.

    Started again, it goes on: what is measured in --out is not measured again, unless
    FILE asks for it otherwise by now.
    """
    from gnnrl_ray.display import comparison as shown
    from gnnrl_ray.display.panel import Panel
    from gnnrl_ray.jobs.comparing import Comparison, compare
    from gnnrl_ray.methods import method_of
    from gnnrl_ray.storage import Storage

    comparison = Comparison.read(file)
    folder = out or f"compared/{file.stem}"
    searches = {cell.name: comparison.settings(cell) for cell in comparison.cells()}
    total = sum(method_of(each.method).candidates(each) for each in searches.values())
    done = dict.fromkeys(searches, 0)
    with Panel(f"compare {file.stem}", total, errors, quiet) as panel:

        def on_progress(name: str, episodes: int, best: float | None) -> None:
            done[name] = episodes
            panel.episode(sum(done.values()), best)

        try:
            table = compare(
                comparison, folder, at_once=at_once, gpus=gpus, address=address,
                on_progress=on_progress, on_tuning=panel.tuning,
            )  # fmt: skip
        except KeyboardInterrupt:
            again = ["gnnrl-ray", "compare", str(file), "--out", folder]
            stop(f"go on with: {shlex.join(again)}")
    storage, found = Storage(folder), shown.summary(table)
    page = shown.comparison_markdown(found, shown.paired(table))
    storage.write("results.md", page.encode())
    storage.write("results.png", shown.draw_comparison(table))
    if as_json:
        print(found.to_json(orient="records"))
        return
    console.print(shown.comparison_table(found))
    if "error" in table:
        for row in table.dropna(subset="error").itertuples():
            errors.print(f"{row.run}: {row.error}")
    print(f"tables and a picture are in {folder}/results.md, results.csv and results.png")
