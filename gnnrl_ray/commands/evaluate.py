"""The command ``evaluate``."""

import json
import warnings
from collections.abc import Mapping
from typing import Annotated

import typer
from torch import nn

from gnnrl_ray.commands.terminal import JsonOption, TrustOption, console
from gnnrl_ray.data import Data
from gnnrl_ray.display.report import measures_table
from gnnrl_ray.errors import InputError, Notice
from gnnrl_ray.options import settings_as_options
from gnnrl_ray.pruning.costs import Costs
from gnnrl_ray.run.directory import Run, rebuild
from gnnrl_ray.scoring.measures import measure
from gnnrl_ray.source import Source
from gnnrl_ray.tracing.groups import trace
from gnnrl_ray.zoo.weights import WeightsError, hash_of


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
        network, data, costs = of_run(opened, source, trust)
        show_measures(networks_of(opened, network, costs), data, costs, as_json, opened)
        return
    network, data = Source(**source).load()
    costs = Costs(trace(network, data.input_shape, skip_untraceable=True))
    show_measures({"dense": network}, data, costs, as_json)


def of_run(run: Run, given: dict, trust: bool) -> tuple[nn.Module, Data, Costs]:
    """Load what a run is about, if that may be; it is traced once."""
    given = {name: value for name, value in given.items() if value is not None}
    run.check_trust(given, trust)
    network, data = run.source.continued(given, str(run.storage)).load()
    run.check({"weights": hash_of(network), "data": data.digest()})
    return network, data, Costs(trace(network, data.input_shape, **run.settings.tracing))


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


def networks_of(run: Run, network: nn.Module, costs: Costs) -> dict[str, nn.Module]:
    """Return ``dense``, the ``pruned`` winner of a run, and if there ``finetuned``."""
    networks = {"dense": network}
    for name in ("pruned", "finetuned"):
        if not run.storage.exists(f"{name}.safetensors"):
            continue
        try:
            networks[name] = rebuild(run.storage, network, costs.groups, name)
        except WeightsError as error:
            if name == "pruned" or "has shape" not in str(error):
                raise
            warnings.warn(
                f"{run.storage}/{name}.safetensors is of an earlier winner and is left "
                "out; fine-tune this one with `gnnrl-ray finetune`.",
                Notice,
                stacklevel=2,
            )
    return networks
