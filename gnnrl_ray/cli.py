"""The command ``gnnrl-ray``."""

import contextlib
import errno
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, NoReturn

import torch
import typer
from click.core import ParameterSource
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from torch import nn
from typer.models import OptionInfo

from gnnrl_ray.costs import Costs
from gnnrl_ray.data import DATASETS, VALIDATIONS, Data, load_data
from gnnrl_ray.drawing import draw_graph
from gnnrl_ray.env import TIMEOUTS, EpisodeError
from gnnrl_ray.evaluation import PRECISIONS
from gnnrl_ray.finetuning import finetune
from gnnrl_ray.folder import Folder
from gnnrl_ray.graph import HierarchicalGraph
from gnnrl_ray.groups import trace
from gnnrl_ray.importance import IMPORTANCES
from gnnrl_ray.journal import JournalError
from gnnrl_ray.objective import Outcome, parse_finetune
from gnnrl_ray.panel import Panel
from gnnrl_ray.report import (
    describe,
    draw_search,
    groups_table,
    left_table,
    measure,
    measures_table,
    motifs_table,
    whole_table,
)
from gnnrl_ray.run import FREE, Run, load_pruned
from gnnrl_ray.search import METHODS, search
from gnnrl_ray.training import TrainingError, steps_per_epoch, train
from gnnrl_ray.zoo import NETWORKS, build_network, load_network
from gnnrl_ray.zoo.weights import WeightsError, save_weights, weights_path

app = typer.Typer(
    help="Find how many channels each layer of a CNN keeps, and remove the others.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console()
errors = Console(stderr=True)  # and progress, so that output can be piped

_COMMAND_LINE = ParameterSource.COMMANDLINE
# The embedded data set, small enough to train a network and its winner on the spot.
_EMBEDDED, _EMBEDDED_EPOCHS = "digits", 20


def _choice(choices: Iterable[str], text: str) -> OptionInfo:
    """Return an option that takes one of ``choices``."""

    def parse(word: str) -> str:
        if word not in choices:
            known = ", ".join(map(repr, choices))
            raise typer.BadParameter(f"{word!r} is not one of {known}.")
        return word

    return typer.Option(parser=parse, metavar="|".join(choices), help=text)


_NETWORKS = f"{', '.join(NETWORKS)}, torchvision:NAME or package.module:callable."
NetworkOption = Annotated[str, typer.Option(help=f"One of: {_NETWORKS}")]
DatasetOption = Annotated[
    str, typer.Option(help=f"One of: {', '.join(DATASETS)} ({_EMBEDDED} is embedded).")
]
DataDirOption = Annotated[
    Path | None,
    typer.Option(help="Folder of cifar*.npz; default: data/ in $GNNRL_HOME or cache."),
]
WeightsOption = Annotated[
    str | None,
    typer.Option(
        help="State dict of the dense network (.th, .pt, .safetensors); file or URI."
    ),
]
ValidationOption = Annotated[
    str,
    _choice(
        VALIDATIONS,
        "Where validation images are taken from. test-5k is the paper's protocol; what is "
        "left of the test set is the holdout.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
DeviceOption = Annotated[
    str | None, typer.Option(help="cpu or cuda:N; default: a GPU if there is one.")
]
KeepOption = Annotated[
    str | None,
    typer.Option(
        metavar="REGEX", help="Leave whole the groups of layers whose name it matches."
    ),
]
SkipOption = Annotated[
    bool,
    typer.Option(help="Leave whole what cannot be traced, instead of an error."),
]
LevelsOption = Annotated[
    int,
    typer.Option(
        min=1, max=3,
        help="Of the graph: 1 flat, 2 with motifs, 3 with stages of motifs, if any repeat.",
    ),
]  # fmt: skip
RunArgument = Annotated[str, typer.Argument(help="Run directory of a search, or its URI.")]


@contextlib.contextmanager
def _progress(title: str, total: int, every: int) -> Iterator[Callable[[int, str], None]]:
    """Show a bar on a terminal, else a line every ``every`` steps."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"), TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=errors, disable=not errors.is_terminal) as bar:
        task = bar.add_task(title, total=total, note="")

        def advance(done: int, note: str) -> None:
            bar.update(task, completed=done, note=note)
            if not errors.is_terminal and (done % every == 0 or done == total):
                errors.print(f"{title} {done}/{total} {note}")

        yield advance


def _check_name(name: str) -> None:
    """A wrong name of the zoo should not wait for a download of data."""
    if ":" not in name:
        build_network(name)


def _build(name: str, data: Data) -> nn.Module:
    return build_network(name, data.classes, data.input_shape[-1])


def _base_network(name: str, data: Data, weights: str | None) -> nn.Module:
    """Load the dense network; on the embedded data set, train it the first time."""
    path = weights_path(name, data.name)
    if weights or data.name != _EMBEDDED or path.is_file():
        return load_network(
            name, data.name, weights=weights, num_classes=data.classes,
            image_size=data.input_shape[-1],
        )  # fmt: skip
    return _train_shown(name, data, path, epochs=_EMBEDDED_EPOCHS)


def _train_shown(
    name: str, data: Data, path: Path, *, epochs: float, lr: float = 0.05,
    batch_size: int = 128, seed: int = 0, device: str = "cpu",
) -> nn.Module:  # fmt: skip
    """Train ``name`` from the start; its weights go to ``path``, however it ends."""
    torch.manual_seed(seed)
    network = _build(name, data).to(device)
    steps = max(1, round(epochs * steps_per_epoch(data.train, batch_size)))
    try:
        with _progress(f"training {name} on {data.name}", steps, 40) as advance:
            train(
                network, data.train.to(device), steps=steps, lr=lr,
                batch_size=batch_size, seed=seed,
                on_step=lambda step, loss: advance(step, f"loss {loss:.3f}"),
            )  # fmt: skip
    except KeyboardInterrupt:
        save_weights(network, path.with_suffix(".interrupted.safetensors"))
        errors.print(
            "\nInterrupted: what has been trained so far is in "
            f"{path.with_suffix('.interrupted.safetensors')}; use it with --weights."
        )
        raise typer.Exit(130) from None
    save_weights(network, path)
    return network.to("cpu").eval()


def _default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _assignments(given: list[str]) -> dict:
    """Read NAME=VALUE, where values are JSON."""
    settings = {}
    for text in given:
        name, _, value = text.partition("=")
        try:
            settings[name] = json.loads(value)
        except ValueError:
            raise typer.BadParameter(f"--agent {text!r} is not NAME=NUMBER.") from None
    return settings


@app.command("search")
def search_command(
    context: typer.Context,
    network: NetworkOption = "resnet20",
    dataset: DatasetOption = _EMBEDDED,
    flops: Annotated[
        str, typer.Option(help="Share of the multiply-accumulates to keep, in (0, 1).")
    ] = "0.5",
    episodes: Annotated[
        int, typer.Option(min=1, help="Candidates to score, 30 of them at random.")
    ] = 180,
    method: Annotated[str, _choice(METHODS, "How to search.")] = "gnn-rl",
    finetune_: Annotated[
        str,
        typer.Option(
            "--finetune",
            metavar="recalibrate|none|epoch|STEPS",
            help="Before a candidate is scored: recompute normalisation statistics, do "
            "nothing, or train for an epoch or a number of steps.",
        ),
    ] = "recalibrate",
    importance: Annotated[
        str,
        _choice(IMPORTANCES, "What ranks channels."),
    ] = "l2",
    min_keep: Annotated[
        float, typer.Option(help="Smallest share of a group's channels to keep.")
    ] = 0.1,
    round_to: Annotated[
        int, typer.Option(min=1, help="Keep multiples of so many channels, or all.")
    ] = 1,
    keep: KeepOption = None,
    skip_untraceable: SkipOption = False,
    levels: LevelsOption = 2,
    fit: Annotated[
        bool,
        typer.Option(help="Scale an episode's last step back to use the whole budget."),
    ] = True,
    on_timeout: Annotated[
        str,
        _choice(
            TIMEOUTS,
            "After --max-steps without the budget: scale all groups down to it, or end "
            "with the worst reward.",
        ),
    ] = "fit",
    max_steps: Annotated[int, typer.Option(min=1, help="Of one episode.")] = 8,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    precision: Annotated[
        str,
        _choice(
            ("auto", *PRECISIONS),
            "Of evaluation. auto: what is fastest here, if within 0.1 points of plain.",
        ),
    ] = "auto",
    early_stop: Annotated[
        bool,
        typer.Option(
            help="Stop scoring candidates that cannot be among the best three; their "
            "accuracies are estimates then. Not for results that are to be published."
        ),
    ] = False,
    agent: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="Setting of the agent, such as updates_per_step=8 or noise_decay=0.95 "
            "(gnnrl_ray.ddpg.DDPGConfig.training); may be given again.",
        ),
    ] = None,
    env_runners: Annotated[
        int,
        typer.Option(
            min=0,
            help="Ray actors, each with one episode at a time; 0 runs all in this process.",
        ),
    ] = 0,
    cpus_per_env_runner: Annotated[
        float, typer.Option(min=0, help="For each actor; it runs as many threads.")
    ] = 1.0,
    gpus_per_env_runner: Annotated[
        float,
        typer.Option(min=0, help="Share of a GPU, and of its memory, for each actor."),
    ] = 0.0,
    episode_timeout: Annotated[
        float,
        typer.Option(
            min=0, help="Seconds after which an episode's actor is replaced; 0: never."
        ),
    ] = 3600.0,
    max_retries: Annotated[
        int,
        typer.Option(
            min=0, help="How often a lost episode is run again before it is left out."
        ),
    ] = 3,
    address: Annotated[
        str | None,
        typer.Option(
            help="Ray cluster to run on, auto for this machine's; default: the one that "
            "this is a job of, else one of this machine, for as long as the search lasts."
        ),
    ] = None,
    wait_for_nodes: Annotated[
        float,
        typer.Option(min=0, help="Seconds that the cluster has to become large enough."),
    ] = 0.0,
    device: DeviceOption = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Fine-tune the winner at the end; default: "
            f"{_EMBEDDED_EPOCHS} on {_EMBEDDED}, else 0 (see `gnnrl-ray finetune`).",
        ),
    ] = None,
    validation: ValidationOption = "test-5k",
    data_dir: DataDirOption = None,
    weights: WeightsOption = None,
    out: Annotated[
        str | None,
        typer.Option(
            help="Run directory or URI (s3://...); default: runs/NETWORK-DATASET-METHOD."
        ),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            help="Continue this run, with the settings it was started with, but for "
            "--episodes, --device, --data-dir and what concerns env runners."
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace the run in --out.")] = False,
    quiet: Annotated[bool, typer.Option(help="Say nothing while it goes on.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Search for the best widths within a budget.

    Without arguments: ResNet-20 on scikit-learn's digits at half the MACs, in minutes.
    """
    folder = out or f"runs/{network.replace(':', '-')}-{dataset}-{method}"
    settings = {
        "flops": _number(flops), "episodes": episodes, "method": method,
        "finetune": parse_finetune(finetune_), "importance": importance,
        "min_keep": min_keep, "round_to": round_to, "keep": keep,
        "skip_untraceable": skip_untraceable, "levels": levels, "fit": fit,
        "on_timeout": on_timeout,
        "max_steps": max_steps, "seed": seed, "precision": precision,
        "early_stop": early_stop, "env_runners": env_runners,
        "cpus_per_env_runner": cpus_per_env_runner,
        "gpus_per_env_runner": gpus_per_env_runner, "episode_timeout": episode_timeout,
        "max_retries": max_retries, "device": device, "name": network,
        "weights": weights, "data_dir": data_dir, "agent": _assignments(agent or []),
    }  # fmt: skip
    there = 0
    if resume:
        folder, run = resume, Run.open(resume)
        there = len(run.journal)
        # What may change when a run goes on, where the command line says so.
        given = {n for n in settings if context.get_parameter_source(n) == _COMMAND_LINE}
        settings = run.settings | {n: settings[n] for n in given & set(FREE)}
        dataset, validation = run.about["dataset"], run.about["validation"]
    if settings["env_runners"]:
        # One line of Ray's in place of one for every actor; what matters, we say.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    _check_name(settings["name"])
    data = load_data(dataset, settings["data_dir"], validation)
    # Before anything takes long.
    how = {key: settings[key] for key in ("keep", "skip_untraceable") if key in settings}
    groups = trace(_build(settings["name"], data), data.input_shape, **how)
    costs = Costs(groups, settings.get("round_to", 1))
    costs.check_budget(settings["flops"], settings["min_keep"])
    base = _base_network(settings["name"], data, settings["weights"])
    total = 1 if settings["method"] == "uniform" else settings["episodes"]
    with Panel(
        f"{settings['method']} on {settings['name']}", total, errors, quiet
    ) as panel:

        def on_episode(done: int, best: Outcome | None) -> None:
            panel.episode(done, best and best.accuracy)

        panel.begin(there)
        try:
            outcome = search(
                base, data, **settings, out=folder, resume=resume is not None,
                overwrite=overwrite, address=address, wait_for_nodes=wait_for_nodes,
                on_episode=on_episode, on_status=panel.status,
            )  # fmt: skip
        except KeyboardInterrupt:
            _interrupted(folder, total)
    run = Run.open(folder)
    draw_search(run)
    if epochs is None:
        epochs = _EMBEDDED_EPOCHS if dataset == _EMBEDDED else 0
    if epochs:
        _finetune_shown(folder, base, data, epochs, 0.05, 128, seed, device)
    _show_measures(folder, base, data, as_json)
    if not as_json:
        console.print(
            f"best of {len(run.journal)}: validation accuracy {outcome.accuracy:.2%} at "
            f"{run.best()['macs_ratio']:.1%} of the MACs; everything is in {folder}"
        )


def _interrupted(folder: str, total: int) -> NoReturn:
    journal = Run.open(folder).journal
    best = journal.best()
    said = f"{len(journal)} of {total} episodes are in {folder}/journal.jsonl"
    if best is not None:
        said += f", the best so far ({best[1].accuracy:.2%}) in {folder}/best.json"
    errors.print(f"\nInterrupted: {said}. Go on with: gnnrl-ray search --resume {folder}")
    raise typer.Exit(130)


@app.command("sweep")
def sweep_command(
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
    data_dir: DataDirOption = None,
    address: Annotated[
        str | None, typer.Option(help="Ray cluster to run on, as for `search`.")
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on with the sweep in --out.")] = False,
    wandb: Annotated[
        str | None,
        typer.Option(metavar="PROJECT", help="Report to Weights & Biases, too."),
    ] = None,
    mlflow: Annotated[
        str | None,
        typer.Option(
            metavar="URI", help="Report to MLflow, too: its server, or sqlite:///FILE."
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option(help="Say nothing while it goes on.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Try settings of search and agent beside each other, with Ray Tune."""
    from gnnrl_ray.sweep import Sweep, over_seeds, run_sweep, tracking

    sweep = Sweep.read(file)
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
                sweep, folder, gpus=gpus, at_once=at_once, data_dir=data_dir,
                address=address, resume=resume, on_progress=on_progress,
                loggers=tracking(file.stem, wandb, mlflow),
            )  # fmt: skip
        except KeyboardInterrupt:
            errors.print(
                f"\nInterrupted: go on with: gnnrl-ray sweep {file} --out {folder} --resume"
            )
            raise typer.Exit(130) from None
    if as_json:
        print(table.to_json(orient="records"))
        return
    summary = over_seeds(sweep, table)
    shown = Table(title=f"{len(table)} searches, best validation accuracy")
    for column in summary:
        shown.add_column(str(column), justify="right")
    for row in summary.itertuples(index=False):
        shown.add_row(*(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row))
    console.print(shown)
    failed = int(table["accuracy"].isna().sum())
    console.print(
        f"best: {table['accuracy'][0]:.2%} in {folder}/{table['run'][0]}; all searches are "
        f"in {folder}/results.csv" + (f"; {failed} failed" if failed else "")
    )


@app.command("finetune")
def finetune_command(
    run: RunArgument,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the data.")] = 100,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 0.05,
    batch_size: Annotated[int, typer.Option(min=2, help="Images in one step.")] = 128,
    seed: Annotated[int, typer.Option(help="Of order and augmentation.")] = 0,
    precision: Annotated[
        str | None,
        _choice(
            PRECISIONS[1:],
            "Of training, where weights stay float32; default: as the search evaluated.",
        ),
    ] = None,
    device: DeviceOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fine-tune the winner of a search; what is reported is the last epoch."""
    data, base = _of_run(run, data_dir)
    _finetune_shown(run, base, data, epochs, lr, batch_size, seed, device, precision)
    _show_measures(run, base, data, as_json)


def _finetune_shown(
    folder: str, base: nn.Module, data: Data, epochs: int, lr: float, batch_size: int,
    seed: int, device: str | None, precision: str | None = None,
) -> None:  # fmt: skip
    steps = epochs * steps_per_epoch(data.train, batch_size)
    with _progress("fine-tuning the winner", steps, 100) as advance:
        try:
            finetune(
                folder, data, epochs=epochs, lr=lr, batch_size=batch_size, seed=seed,
                device=device or _default_device(), precision=precision, network=base,
                on_step=lambda step, loss: advance(step, f"loss {loss:.3f}"),
            )  # fmt: skip
        except KeyboardInterrupt:
            errors.print(
                "\nInterrupted: what has been trained so far is in "
                f"{folder}/finetuned.safetensors; start over with: "
                f"gnnrl-ray finetune {folder}"
            )
            raise typer.Exit(130) from None


@app.command("evaluate")
def evaluate_command(
    run: Annotated[
        str | None, typer.Argument(help="Run directory of a search; or use --network.")
    ] = None,
    network: Annotated[
        str | None, typer.Option(help=f"A dense network: {_NETWORKS}")
    ] = None,
    dataset: DatasetOption = _EMBEDDED,
    validation: ValidationOption = "test-5k",
    data_dir: DataDirOption = None,
    weights: WeightsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure accuracy, MACs and parameters: pruned beside dense."""
    if (run is None) == (network is None):
        raise typer.BadParameter("give a run directory or --network, one of the two.")
    if run is not None:
        data, base = _of_run(run, data_dir)
    else:
        assert network is not None
        _check_name(network)
        data = load_data(dataset, data_dir, validation)
        base = _base_network(network, data, weights)
    _show_measures(run, base, data, as_json)


def _of_run(folder: str, data_dir: Path | None) -> tuple[Data, nn.Module]:
    run = Run.open(folder)
    where = data_dir or run.settings["data_dir"]
    data = load_data(run.about["dataset"], where, run.about["validation"])
    return data, _base_network(run.settings["name"], data, run.settings["weights"])


def _show_measures(run: str | None, base: nn.Module, data: Data, as_json: bool) -> None:
    rows = {"dense": measure(base, data)}
    for name in ("pruned", "finetuned"):
        if run is not None and Folder(run).exists(f"{name}.safetensors"):
            rows[name] = measure(load_pruned(run, base, name), data)
    if as_json:
        print(json.dumps({"dataset": data.name, "validation": data.protocol} | rows))
    else:
        console.print(measures_table(rows, data))


@app.command("train")
def train_command(
    network: NetworkOption = "resnet20",
    dataset: DatasetOption = _EMBEDDED,
    epochs: Annotated[
        float, typer.Option(min=0.001, help="Passes over the data; may be a fraction.")
    ] = 200,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 0.05,
    batch_size: Annotated[int, typer.Option(min=2, help="Images in one step.")] = 128,
    seed: Annotated[int, typer.Option(help="Of weights, order, augmentation.")] = 0,
    device: DeviceOption = None,
    validation: ValidationOption = "test-5k",
    data_dir: DataDirOption = None,
    overwrite: Annotated[
        bool, typer.Option(help="Replace weights that are there.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Train a dense network where no weights are to be had; `search` finds them."""
    _check_name(network)
    path = weights_path(network, dataset)
    if path.exists() and not overwrite:
        raise ValueError(f"{path} is there already; replace it with --overwrite.")
    data = load_data(dataset, data_dir, validation)
    trained = _train_shown(
        network, data, path, epochs=epochs, lr=lr, batch_size=batch_size, seed=seed,
        device=device or _default_device(),
    )  # fmt: skip
    _show_measures(None, trained, data, as_json)
    if not as_json:
        console.print(f"weights are in {path}")


def _shape(text: str) -> tuple[int, ...]:
    parts = text.replace("x", ",").split(",")
    if len(parts) != 3 or not all(p.strip().isdecimal() and int(p) > 0 for p in parts):
        raise typer.BadParameter(f"{text!r} is not C,H,W such as 3,224,224.")
    return tuple(int(p) for p in parts)


@app.command("inspect")
def inspect_command(
    network: NetworkOption = "resnet20",
    input_shape: Annotated[
        str, typer.Option(metavar="C,H,W", help="Of one image.")
    ] = "3,32,32",
    classes: Annotated[int, typer.Option(min=1, help="Outputs of the classifier.")] = 10,
    keep: KeepOption = None,
    skip_untraceable: SkipOption = False,
    levels: LevelsOption = 3,
    draw: Annotated[
        Path | None,
        typer.Option(metavar="FILE.svg|png", help="Draw the hierarchical graph there."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show channel groups, motifs and costs: what would be pruned, and why not."""
    shape = _shape(input_shape)
    if draw is not None and draw.suffix not in (".svg", ".png"):
        raise typer.BadParameter(f"--draw {draw} must end in .svg or .png.")
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
    console.print(f"{network}: {facts['macs']:,} MACs, {facts['params']:,} parameters")


def main() -> None:
    """Run a command; say in one line what is wrong, if anything is."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    warnings.simplefilter("ignore")
    try:
        app()
    except (TrainingError, JournalError, EpisodeError, OSError) as error:
        full = getattr(error, "errno", None) == errno.ENOSPC
        remedy = ". Free some space, then go on with --resume." if full else ""
        errors.print(f"Error: {error}{remedy}", markup=False)
        sys.exit(1)
    except (ValueError, WeightsError) as error:
        errors.print(f"Error: {error}", markup=False)
        sys.exit(2)
    except KeyboardInterrupt:
        errors.print("Interrupted.")
        sys.exit(130)
