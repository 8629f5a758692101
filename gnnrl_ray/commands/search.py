"""The command ``search``."""

import os
import shlex
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from gnnrl_ray.commands.terminal import JsonOption, QuietOption, TrustOption, errors, stop
from gnnrl_ray.errors import Notice
from gnnrl_ray.jobs.trackers import Trackers, tracked
from gnnrl_ray.options import settings_as_options
from gnnrl_ray.settings import SearchSettings, file_name
from gnnrl_ray.source import EMBEDDED, EMBEDDED_EPOCHS, Source

if TYPE_CHECKING:
    from torch import nn

    from gnnrl_ray.data import Data
    from gnnrl_ray.run.directory import Run
    from gnnrl_ray.scoring.outcome import Outcome

_ROUNDS, _SECONDS = 100, 2.0  # of each network, for the last line


@settings_as_options(source=Source, settings=SearchSettings, trackers=Trackers)
def search_command(
    source: dict,
    settings: dict,
    trackers: dict,
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
            "--episodes, --device, where weights and data are, and what concerns env "
            "runners."
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
    Source(**source).check()

    from gnnrl_ray.commands import networks as shown
    from gnnrl_ray.display.panel import Panel
    from gnnrl_ray.jobs.finetuning import is_interrupted
    from gnnrl_ray.jobs.recipe import Recipe
    from gnnrl_ray.jobs.searching import Search, check_free
    from gnnrl_ray.methods import method_of
    from gnnrl_ray.pruning.costs import Costs
    from gnnrl_ray.run.directory import Run

    done, known = 0, None
    if resume:
        run = Run.open(resume)
        run.check_trust(source, trust)
        about = run.source.continued(source, resume)
        wanted, done = run.settings.continued(settings, resume), len(run.journal)
        known = run.latency
    else:
        about, wanted = Source(**source), SearchSettings(**settings)
    name = file_name(f"{about.network}-{about.data_name}-{wanted.method}")
    folder = resume or out or f"runs/{name}"
    if not resume:
        check_free(folder, overwrite)
    if wanted.env_runners:
        # One line of Ray's in place of one for every actor; what matters, we say.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    with nullcontext() if quiet else errors.status(f"loading {about.dataset}") as status:
        data = about.load_data()
        if status is not None:
            status.update(f"tracing {about.network}")
        network = about.build(data)
        # Before anything takes long.
        search = Search(network, data, wanted, about, latency=known)
    shown.load_weights(about, network, data)
    total = method_of(wanted.method).candidates(wanted)
    title = f"{wanted.method} on {about.network}"
    told = about.to_dict() | wanted.to_dict()
    with (
        tracked(Path(folder).name, told, **trackers) as log,
        Panel(title, total, errors, quiet) as panel,
    ):

        def on_episode(done: int, best: "Outcome | None") -> None:
            panel.episode(done, best and best.accuracy)
            if best is not None:
                log({"accuracy": best.accuracy, "macs": best.macs}, done)

        panel.begin(done)
        try:
            found = search.run(
                folder, resume=resume is not None, overwrite=overwrite,
                on_episode=on_episode, on_status=panel.status, on_finalist=panel.finalist,
                on_phase=panel.phase,
            )  # fmt: skip
        except KeyboardInterrupt:
            _interrupted(folder, total)
    run, costs = found.run, Costs(search.groups)
    asked = epochs is not None
    if epochs is None:
        epochs = EMBEDDED_EPOCHS if about.dataset == EMBEDDED else 0
    if epochs:
        recipe = Recipe(epochs=epochs)
        again = is_interrupted(run, recipe, wanted.seed)
        if again or not run.storage.exists("finetuned.safetensors"):
            shown.finetune_shown(
                run, network, data, costs, recipe, seed=wanted.seed, device=wanted.device,
                resume=again,
            )  # fmt: skip
        elif asked:
            words = ["gnnrl-ray", "finetune", folder, "--overwrite"]
            warnings.warn(
                "the winner has been fine-tuned already, and stays as it is; to train it "
                f"anew: {shlex.join(words + ['--trust'] * run.asks_trust)}",
                Notice,
                stacklevel=2,
            )
    networks = shown.networks_of(run, network, costs)
    rows = shown.show_measures(networks, data, costs, as_json, run)
    if not as_json:
        print(f"best of {len(run.journal)}: {_verdict(run, rows)}")
        print(f"{_faster(run, networks, data)}; everything is in {folder}")


def _verdict(run: "Run", rows: dict[str, dict[str, float]]) -> str:
    """Say what the network is worth that is taken home, and what it was before."""
    from gnnrl_ray.display.report import budget_used

    best = run.best()
    scored = f"{best['accuracy']:.2%}"
    if finalist := best.get("finalist"):
        scored = f"{finalist['accuracy']:.2%} after {finalist['steps']} steps of training"
    if "finetuned" in rows:
        scored = f"{rows['finetuned']['validation']:.2%} ({scored} before fine-tuning)"
    return f"validation accuracy {scored} at {budget_used(best)}"


def _faster(run: "Run", networks: "dict[str, nn.Module]", data: "Data") -> str:
    """Say how many times as fast as the dense network the winner is, here."""
    from gnnrl_ray.jobs.searching import device_of
    from gnnrl_ray.scoring.speed import measure_speed

    where, said = device_of(run.settings.device), []
    two = {name: networks[name] for name in ("dense", "pruned")}
    for batch in dict.fromkeys((1, run.settings.latency_batch)):
        found = measure_speed(two, data.input_shape, batch=batch, device=where,
                              rounds=_ROUNDS, seconds=_SECONDS, memory=False)  # fmt: skip
        times = [found[name]["median_ms"] for name in two]
        said.append(
            f"{times[0] / times[1]:.2f} times as fast at batch {batch} "
            f"({times[1]:.2f} ms, dense {times[0]:.2f})"
        )
    for network in two.values():
        network.cpu()
    return f"on this {where.type}, {', '.join(said)}"


def _interrupted(folder: str, total: int) -> NoReturn:
    from gnnrl_ray.run.directory import Run
    from gnnrl_ray.storage import Storage

    if not Storage(folder).exists("run.json"):
        stop("there was nothing to save yet")
    run = Run.open(folder)
    journal, trust = run.journal, ["--trust"] * run.asks_trust
    best = journal.best()
    said = f"{len(journal)} of {total} episodes are in {folder}/journal.jsonl"
    if best is not None:
        said += f", the best so far ({best[1].accuracy:.2%}) in {folder}/best.json"
    again = shlex.join(["gnnrl-ray", "search", "--resume", folder, *trust])
    stop(f"{said}; go on with: {again}")
