"""The command ``gnnrl-ray``."""

import errno
import json
import os
import shlex
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from torch import nn

from gnnrl_ray.data import Data
from gnnrl_ray.display.drawing import draw_graph
from gnnrl_ray.display.panel import Panel, progress
from gnnrl_ray.display.report import (
    budget_used,
    describe,
    draw_search,
    groups_table,
    left_table,
    measure,
    measures_table,
    motifs_table,
    sweep_table,
    whole_table,
)
from gnnrl_ray.errors import GnnrlError, InputError, Notice
from gnnrl_ray.graph.hierarchy import HierarchicalGraph
from gnnrl_ray.interrupts import stop_on_signals
from gnnrl_ray.jobs.finetuning import finetune
from gnnrl_ray.jobs.searching import Search, device_of
from gnnrl_ray.jobs.trackers import Trackers
from gnnrl_ray.methods import method_of
from gnnrl_ray.options import settings_as_options
from gnnrl_ray.pruning.costs import Costs
from gnnrl_ray.run.directory import Run, rebuild
from gnnrl_ray.scoring.outcome import Outcome
from gnnrl_ray.scoring.training import steps_per_epoch
from gnnrl_ray.settings import PRECISIONS, SearchSettings, parse_shape
from gnnrl_ray.source import EMBEDDED, EMBEDDED_EPOCHS, Source, training_steps
from gnnrl_ray.storage import Storage
from gnnrl_ray.tracing.groups import trace
from gnnrl_ray.zoo import build_network
from gnnrl_ray.zoo.weights import hash_of, weights_path

app = typer.Typer(
    help="Find how many channels each layer of a CNN keeps, and remove the others.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console()
# And progress, so that output can be piped; paths and commands are said in one piece.
errors = Console(stderr=True, soft_wrap=True, markup=False, highlight=False)

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
DeviceOption = Annotated[
    str | None, typer.Option(help="cpu or cuda:N; default: a GPU if there is one.")
]
RunArgument = Annotated[str, typer.Argument(help="Run directory of a search, or its URI.")]
TrustOption = Annotated[bool, typer.Option(help="Use code and URIs that run.json names.")]
QuietOption = Annotated[bool, typer.Option(help="Say nothing while it goes on.")]
RateOption = Annotated[float, typer.Option(min=0, max=1e3, help="Peak learning rate.")]
BatchOption = Annotated[int, typer.Option(min=2, help="Images in one step.")]


def _load_weights(source: Source, network: nn.Module, data: Data) -> None:
    """Load the dense network; on the embedded data set, train it the first time."""
    steps = training_steps(data, EMBEDDED_EPOCHS)
    with progress(
        errors, f"training {source.network} on {data.name}", steps, 40
    ) as advance:
        try:
            source.load_weights(network, data, advance)
        except KeyboardInterrupt:
            _training_interrupted(source, data)


def _training_interrupted(source: Source, data: Data) -> NoReturn:
    path = weights_path(source.network, data.name).with_suffix(".interrupted.safetensors")
    if not path.exists():
        _stop("nothing has been trained yet")
    _stop(f"to use what has been trained so far: --weights {shlex.quote(str(path))}")


def _stop(said: str) -> NoReturn:
    errors.print(f"\nInterrupted: {said}")
    raise typer.Exit(130)


@app.command("search")
@settings_as_options(source=Source, settings=SearchSettings)
def search_command(
    source: dict,
    settings: dict,
    epochs: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Fine-tune the winner at the end; default: "
            f"{EMBEDDED_EPOCHS} on {EMBEDDED}, else 0 (see `gnnrl-ray finetune`).",
        ),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(help="Directory or URI; default: runs/NETWORK-DATASET-METHOD."),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            help="Continue this run, with the settings it was started with, but for "
            "--episodes, --device, --data-dir and what concerns env runners."
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace the run in --out.")] = False,
    trust: TrustOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Search for the best widths within a budget.

    Without arguments: ResNet-20 on scikit-learn's digits at half the MACs, in minutes.
    """
    done = 0
    if resume:
        run = Run.open(resume)
        run.check_trust(source, trust)
        about = run.source.continued(source, resume)
        wanted, done = run.settings.continued(settings, resume), len(run.journal)
    else:
        about, wanted = Source(**source), SearchSettings(**settings)
    name = f"{(about.network or '').replace(':', '-')}-{about.dataset}-{wanted.method}"
    folder = resume or out or f"runs/{name}"
    if wanted.env_runners:
        # One line of Ray's in place of one for every actor; what matters, we say.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    data = about.load_data()
    network = about.build(data)
    search = Search(network, data, wanted, about)  # before anything takes long
    _load_weights(about, network, data)
    total = method_of(wanted.method).candidates(wanted)
    title = f"{wanted.method} on {about.network}"
    with Panel(title, total, errors, quiet) as panel:

        def on_episode(done: int, best: Outcome | None) -> None:
            panel.episode(done, best and best.accuracy)

        panel.begin(done)
        try:
            outcome = search.run(
                folder, resume=resume is not None, overwrite=overwrite,
                on_episode=on_episode, on_status=panel.status,
            )  # fmt: skip
        except KeyboardInterrupt:
            _interrupted(folder, total)
    run = Run.open(folder)
    draw_search(run)
    if epochs is None:
        epochs = EMBEDDED_EPOCHS if about.dataset == EMBEDDED else 0
    costs = Costs(search.groups)
    if epochs:
        _finetune_shown(run, network, data, costs, epochs=epochs, seed=wanted.seed,
                        device=wanted.device)  # fmt: skip
    _show_measures(network, data, costs, as_json, run)
    if not as_json:
        reached = f"validation accuracy {outcome.accuracy:.2%} at {budget_used(run.best())}"
        print(f"best of {len(run.journal)}: {reached}; everything is in {folder}")


def _interrupted(folder: str, total: int) -> NoReturn:
    if not Storage(folder).exists("run.json"):
        _stop("there was nothing to save yet")
    journal = Run.open(folder).journal
    best = journal.best()
    said = f"{len(journal)} of {total} episodes are in {folder}/journal.jsonl"
    if best is not None:
        said += f", the best so far ({best[1].accuracy:.2%}) in {folder}/best.json"
    _stop(f"{said}; go on with: {shlex.join(['gnnrl-ray', 'search', '--resume', folder])}")


@app.command("sweep")
@settings_as_options(trackers=Trackers)
def sweep_command(
    trackers: dict,
    file: Annotated[
        Path, typer.Argument(help="TOML; see tuned_examples/sweep_warmup_noise.toml.")
    ],
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
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Try settings of search and agent beside each other, with Ray Tune."""
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
            _stop(f"go on with: {shlex.join(again)}")
    if as_json:
        print(table.to_json(orient="records"))
        return
    console.print(sweep_table(over_seeds(sweep, table), len(table)))
    failed = int(table["accuracy"].isna().sum())
    best = f"{table['accuracy'][0]:.2%} in {folder}/{table['run'][0]}"
    failures = f"; {failed} failed" if failed else ""
    print(f"best: {best}; all searches are in {folder}/results.csv{failures}")


@app.command("finetune")
def finetune_command(
    run: RunArgument,
    epochs: Annotated[int, typer.Option(min=1, max=10**5, help="Over the data.")] = 100,
    lr: RateOption = 0.05,
    batch_size: BatchOption = 128,
    seed: Annotated[int, typer.Option(help="Of order and augmentation.")] = 0,
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(PRECISIONS[1:]),
            help="Of training; weights stay float32. Default: as the search evaluated.",
        ),
    ] = None,
    device: DeviceOption = None,
    data_dir: Annotated[
        str | None, typer.Option(help="Folder of the data, if not that of the search.")
    ] = None,
    trust: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Fine-tune the winner of a search; what is reported is the last epoch."""
    if precision not in (None, *PRECISIONS[1:]):
        known = ", ".join(map(repr, PRECISIONS[1:]))
        raise InputError(f"--precision {precision!r} is not one of {known}.")
    opened = Run.open(run)
    network, data, costs = _of_run(opened, {"data_dir": data_dir}, trust)
    _finetune_shown(
        opened, network, data, costs, epochs=epochs, lr=lr, batch_size=batch_size,
        seed=seed, device=device, precision=precision,
    )  # fmt: skip
    _show_measures(network, data, costs, as_json, opened)


def _of_run(run: Run, given: dict, trust: bool) -> tuple[nn.Module, Data, Costs]:
    """Load what a run is about, if that may be; it is traced once."""
    given = {name: value for name, value in given.items() if value is not None}
    run.check_trust(given, trust)
    network, data = run.source.continued(given, str(run.storage)).load()
    run.check({"weights": hash_of(network), "data": data.digest()})
    return network, data, Costs(trace(network, data.input_shape, **run.settings.tracing))


def _finetune_shown(
    run: Run, network: nn.Module, data: Data, costs: Costs, *, epochs: int,
    device: str | None, batch_size: int = 128, **settings: object,
) -> None:  # fmt: skip
    smaller = rebuild(run.storage, network, costs.groups, "pruned").to(device_of(device))
    steps = epochs * steps_per_epoch(data.train, batch_size)
    with progress(errors, "fine-tuning the winner", steps, 100) as advance:
        try:
            finetune(run, smaller, data, epochs=epochs, batch_size=batch_size,
                     on_step=advance, **settings)  # fmt: skip
        except KeyboardInterrupt:
            again = shlex.join(["gnnrl-ray", "finetune", str(run.storage)])
            _stop(f"{run.storage}/finetuned.safetensors is left; start over with: {again}")


@app.command("evaluate")
@settings_as_options(source=Source)
def evaluate_command(
    source: dict,
    run: Annotated[
        str | None, typer.Argument(help="Run directory of a search; or use --network.")
    ] = None,
    trust: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure accuracy, MACs and parameters: pruned beside dense."""
    if run is None and "network" not in source:
        raise InputError("give a run directory, or --network.")
    if run is not None:
        opened = Run.open(run)
        _show_measures(*_of_run(opened, source, trust), as_json, opened)
        return
    network, data = Source(**source).load()
    costs = Costs(trace(network, data.input_shape, skip_untraceable=True))
    _show_measures(network, data, costs, as_json)


def _show_measures(
    network: nn.Module, data: Data, costs: Costs, as_json: bool, run: Run | None = None
) -> None:
    rows = {"dense": measure(network, data, costs)}
    for name in ("pruned", "finetuned"):
        if run is not None and run.storage.exists(f"{name}.safetensors"):
            smaller = rebuild(run.storage, network, costs.groups, name)
            widths = list(run.best()["groups"].values())
            rows[name] = measure(smaller, data, costs, widths)
    if as_json:
        print(json.dumps({"dataset": data.name, "validation": data.protocol} | rows))
    else:
        console.print(measures_table(rows, data))


@app.command("train")
@settings_as_options(source=Source)
def train_command(
    source: dict,
    epochs: Annotated[
        float,
        typer.Option(min=0.001, max=1e5, help="Passes over the data; may be a fraction."),
    ] = 200,
    lr: RateOption = 0.05,
    batch_size: BatchOption = 128,
    seed: Annotated[int, typer.Option(help="Of weights, order, augmentation.")] = 0,
    device: DeviceOption = None,
    overwrite: Annotated[
        bool, typer.Option(help="Replace weights that are there.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Train a dense network where no weights are to be had; `search` finds them."""
    about = Source(**source)
    if about.weights is not None:
        raise InputError("--weights are what training makes; leave it out.")
    path = weights_path(about.network, about.dataset)
    if path.exists() and not overwrite:
        raise InputError(f"{path} is there already; replace it with --overwrite.")
    where, data = str(device_of(device)), about.load_data()
    network = about.build(data, seed)
    costs = Costs(trace(network, data.input_shape, skip_untraceable=True))
    steps = training_steps(data, epochs, batch_size)
    with progress(errors, f"training {about.network} on {data.name}", steps, 40) as advance:
        try:
            about.train(network, data, epochs=epochs, lr=lr, batch_size=batch_size,
                        seed=seed, device=where, on_step=advance)  # fmt: skip
        except KeyboardInterrupt:
            _training_interrupted(about, data)
    _show_measures(network, data, costs, as_json)
    if not as_json:
        print(f"weights are in {path}")


@app.command("inspect")
def inspect_command(
    network: Annotated[str, typer.Option(help="As for `gnnrl-ray search`.")] = "resnet20",
    input_shape: Annotated[
        str, typer.Option(metavar="C,H,W", help="Of one image.")
    ] = "3,32,32",
    classes: Annotated[int, typer.Option(min=1, max=10**6, help="Of the network.")] = 10,
    keep: Annotated[
        str | None, typer.Option(metavar="REGEX", help="As for `gnnrl-ray search`.")
    ] = None,
    skip_untraceable: Annotated[
        bool, typer.Option(help="Leave whole what cannot be traced.")
    ] = False,
    levels: Annotated[
        int, typer.Option(min=1, max=3, help="Of the graph: 1 flat, 2 motifs, 3 stages.")
    ] = 3,
    draw: Annotated[
        Path | None,
        typer.Option(metavar="FILE.svg|png", help="Draw the hierarchical graph there."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show channel groups, motifs and costs: what would be pruned, and why not."""
    shape = parse_shape(input_shape)
    if draw is not None and draw.suffix not in (".svg", ".png"):
        raise InputError(f"--draw {draw} must end in .svg or .png.")
    built = build_network(network, classes, shape[-1])
    groups = trace(built, shape, keep=keep, skip_untraceable=skip_untraceable)
    graph = HierarchicalGraph(groups, levels)
    if draw is not None:
        draw_graph(graph, network, draw)
    if as_json:
        print(json.dumps({"network": network} | describe(graph)))
        return
    console.print(groups_table(groups), motifs_table(graph))
    for table in (whole_table(groups), left_table(groups)):
        if table.row_count:
            console.print(table)
    facts = describe(graph)
    print(f"{network}: {facts['macs']:,} MACs, {facts['params']:,} parameters")


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
