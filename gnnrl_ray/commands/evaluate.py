"""The command ``evaluate``."""

from typing import Annotated

import typer

from gnnrl_ray.commands.terminal import JsonOption, TrustOption
from gnnrl_ray.errors import InputError
from gnnrl_ray.options import settings_as_options
from gnnrl_ray.source import Source


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
    Source(**source).check()

    from gnnrl_ray.commands.networks import networks_of, of_run, show_measures
    from gnnrl_ray.pruning.costs import Costs
    from gnnrl_ray.run.directory import Run
    from gnnrl_ray.tracing.groups import trace

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
