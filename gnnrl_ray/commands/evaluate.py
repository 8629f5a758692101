"""The command ``evaluate``."""

import json
from typing import Annotated

import typer
from torch import nn

from gnnrl_ray.commands.terminal import JsonOption, TrustOption, console
from gnnrl_ray.data import Data
from gnnrl_ray.display.report import measures_table
from gnnrl_ray.errors import InputError
from gnnrl_ray.options import settings_as_options
from gnnrl_ray.pruning.costs import Costs
from gnnrl_ray.run.directory import Run, rebuild
from gnnrl_ray.scoring.measures import measure
from gnnrl_ray.source import Source
from gnnrl_ray.tracing.groups import trace
from gnnrl_ray.zoo.weights import hash_of


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
        show_measures(*of_run(opened, source, trust), as_json, opened)
        return
    network, data = Source(**source).load()
    costs = Costs(trace(network, data.input_shape, skip_untraceable=True))
    show_measures(network, data, costs, as_json)


def of_run(run: Run, given: dict, trust: bool) -> tuple[nn.Module, Data, Costs]:
    """Load what a run is about, if that may be; it is traced once."""
    given = {name: value for name, value in given.items() if value is not None}
    run.check_trust(given, trust)
    network, data = run.source.continued(given, str(run.storage)).load()
    run.check({"weights": hash_of(network), "data": data.digest()})
    return network, data, Costs(trace(network, data.input_shape, **run.settings.tracing))


def show_measures(
    network: nn.Module, data: Data, costs: Costs, as_json: bool, run: Run | None = None
) -> dict[str, dict[str, float]]:
    """Print what the dense network, and those of a run, are worth and cost; return it."""
    rows = {"dense": measure(network, data, costs)}
    if run is not None:
        widths = list(run.best()["groups"].values())
        for name, smaller in smaller_of(run, network, costs).items():
            rows[name] = measure(smaller, data, costs, widths)
        run.measured(rows)
    if as_json:
        print(json.dumps({"dataset": data.name, "validation": data.protocol} | rows))
    else:
        console.print(measures_table(rows, data))
    return rows


def smaller_of(run: Run, network: nn.Module, costs: Costs) -> dict[str, nn.Module]:
    """Return the winner of a run, and what it was fine-tuned to, by name."""
    names = ("pruned", "finetuned")
    there = [name for name in names if run.storage.exists(f"{name}.safetensors")]
    return {name: rebuild(run.storage, network, costs.groups, name) for name in there}
