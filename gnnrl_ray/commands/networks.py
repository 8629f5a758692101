"""What commands do with networks and data: load, train, measure, and show how it goes."""

import json
import shlex
from collections.abc import Mapping

from torch import nn

from gnnrl_ray.commands.terminal import console, errors, stop
from gnnrl_ray.data import Data
from gnnrl_ray.display.panel import progress
from gnnrl_ray.display.report import measures_table
from gnnrl_ray.jobs.finetuning import finetune
from gnnrl_ray.jobs.recipe import Recipe
from gnnrl_ray.jobs.searching import device_of
from gnnrl_ray.pruning.costs import Costs
from gnnrl_ray.run.directory import Run
from gnnrl_ray.run.winner import rebuild
from gnnrl_ray.scoring.measures import measure
from gnnrl_ray.scoring.training import steps_per_epoch
from gnnrl_ray.source import EMBEDDED_EPOCHS, Source, training_steps
from gnnrl_ray.tracing.groups import trace
from gnnrl_ray.zoo.weights import hash_of


def of_run(run: Run, given: dict, trust: bool) -> tuple[nn.Module, Data, Costs]:
    """Load what a run is about, if that may be; it is traced once."""
    given = {name: value for name, value in given.items() if value is not None}
    run.check_trust(given, trust)
    network, data = run.source.continued(given, str(run.storage)).load()
    run.check({"weights": hash_of(network), "data": data.digest()})
    return network, data, Costs(trace(network, data.input_shape, **run.settings.tracing))


def networks_of(run: Run, network: nn.Module, costs: Costs) -> dict[str, nn.Module]:
    """Return ``dense``, the ``pruned`` winner of a run, and if there ``finetuned``."""
    networks = {"dense": network}
    for name in ("pruned", "finetuned"):
        if run.storage.exists(f"{name}.safetensors"):
            networks[name] = rebuild(run.storage, network, costs.groups, name)
    return networks


def show_measures(
    networks: Mapping[str, nn.Module], data: Data, costs: Costs, as_json: bool,
    run: Run | None = None,
) -> dict[str, dict[str, float]]:  # fmt: skip
    """Print what networks, dense and of a run, are worth and cost; return it."""
    kept = None if run is None else list(run.best()["groups"].values())
    rows = {
        name: measure(network, data, costs, None if name == "dense" else kept)
        for name, network in networks.items()
    }
    if run is not None:
        run.measured(rows)
    if as_json:
        print(json.dumps({"dataset": data.name, "validation": data.protocol} | rows))
    else:
        console.print(measures_table(rows, data))
    return rows


def load_weights(source: Source, network: nn.Module, data: Data) -> None:
    """Load the dense network; on the embedded data set, train it the first time."""
    steps = training_steps(data, EMBEDDED_EPOCHS)
    with progress(
        errors, f"training {source.network} on {data.name}", steps, 40
    ) as advance:
        try:
            source.load_weights(network, data, advance)
        except KeyboardInterrupt:
            stop("the next command goes on with it")


def finetune_shown(
    run: Run, network: nn.Module, data: Data, costs: Costs, recipe: Recipe, *,
    device: str | None, **settings: object,
) -> None:  # fmt: skip
    """Fine-tune the winner of a run, and show how it goes."""
    smaller = rebuild(run.storage, network, costs.groups, "pruned").to(device_of(device))
    steps = recipe.epochs * steps_per_epoch(data.train, recipe.batch_size)
    with progress(errors, "fine-tuning the winner", steps, 100) as advance:
        try:
            finetune(
                run, smaller, data, recipe, dense=network, groups=costs.groups,
                on_step=advance, **settings,
            )  # fmt: skip
        except KeyboardInterrupt:
            words = ["gnnrl-ray", "finetune", str(run.storage), "--resume"]
            again = shlex.join(words + ["--trust"] * run.asks_trust)
            stop(f"{run.storage}/finetuned.safetensors is left; go on with: {again}")
