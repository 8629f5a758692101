"""The command ``sweep``."""

import shlex
from dataclasses import replace
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
from gnnrl_ray.jobs.trackers import Trackers
from gnnrl_ray.options import settings_as_options


@settings_as_options(trackers=Trackers)
def sweep_command(
    trackers: dict,
    file: Annotated[Path, typer.Argument(help="TOML; see --example.")],
    out: Annotated[
        str | None,
        typer.Option(help="Directory that all nodes see, or a URI; default: sweeps/FILE."),
    ] = None,
    gpus: Annotated[
        float,
        typer.Option(min=0, help="Of all searches at a time; split among their actors."),
    ] = 0.0,
    at_once: Annotated[
        int | None,
        typer.Option(min=1, help="Searches at a time; default: as many as there is room."),
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="Ray cluster to run on, as for `search`.")
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder of the data, if not that of FILE.")
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on with the sweep in --out.")] = False,
    example: Annotated[bool, example_option("sweep_warmup_noise.toml")] = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Try settings of search and agent beside each other, with Ray Tune."""
    from gnnrl_ray.display.panel import Panel
    from gnnrl_ray.display.report import sweep_table
    from gnnrl_ray.jobs.sweep import Sweep, over_seeds, run_sweep
    from gnnrl_ray.jobs.trackers import tracking

    sweep = Sweep.read(file)
    if data_dir is not None:
        sweep = replace(sweep, search=sweep.search | {"data_dir": str(data_dir)})
    folder = out or f"sweeps/{file.stem}"
    total, began = sweep.size * sweep.episodes, not resume
    with Panel(f"sweep {file.stem}", total, errors, quiet) as panel:

        def on_progress(last: dict[str, dict]) -> None:
            nonlocal began
            done = sum(result["episode"] for result in last.values())
            if not began:
                panel.begin(done)
                began = True
            panel.episode(done, max(result["accuracy"] for result in last.values()))

        try:
            table = run_sweep(
                sweep, folder, gpus=gpus, at_once=at_once, address=address,
                resume=resume, on_progress=on_progress,
                loggers=tracking(file.stem, **trackers),
            )  # fmt: skip
        except KeyboardInterrupt:
            again = ["gnnrl-ray", "sweep", str(file), "--out", folder, "--resume"]
            stop(f"go on with: {shlex.join(again)}")
    if as_json:
        print(table.to_json(orient="records"))
        return
    console.print(sweep_table(over_seeds(sweep, table), len(table)))
    failed = int(table["accuracy"].isna().sum())
    best = f"{table['accuracy'][0]:.2%} in {folder}/{table['run'][0]}"
    failures = f"; {failed} failed" if failed else ""
    print(f"best: {best}; all searches are in {folder}/results.csv{failures}")
