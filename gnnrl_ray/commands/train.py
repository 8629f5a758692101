"""The command ``train``."""

from typing import Annotated

import typer

from gnnrl_ray.commands.terminal import (
    BatchOption,
    DeviceOption,
    JsonOption,
    RateOption,
    SeedOption,
    errors,
    stop,
)
from gnnrl_ray.errors import InputError
from gnnrl_ray.options import settings_as_options
from gnnrl_ray.source import Source, training_steps


@settings_as_options(source=Source)
def train_command(
    source: dict,
    epochs: Annotated[
        float,
        typer.Option(min=0.001, max=1e5, help="Passes over the data; may be a fraction."),
    ] = 200,
    lr: RateOption = 0.05,
    batch_size: BatchOption = 128,
    seed: SeedOption = 0,
    device: DeviceOption = None,
    resume: Annotated[
        bool,
        typer.Option(help="Go on with the same training, which was interrupted or killed."),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option(help="Replace weights that are there; start over.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Train a dense network where no weights are to be had; `search` finds them."""
    Source(**source).check()

    from gnnrl_ray.commands.networks import show_measures
    from gnnrl_ray.display.panel import progress
    from gnnrl_ray.jobs.searching import device_of
    from gnnrl_ray.pruning.costs import Costs
    from gnnrl_ray.tracing.groups import trace
    from gnnrl_ray.zoo.weights import weights_path

    about = Source(**source)
    if about.weights is not None:
        raise InputError("--weights are what training makes; leave it out.")
    path = weights_path(about.network, about.dataset)
    recipe = {"epochs": epochs, "lr": lr, "batch_size": batch_size, "seed": seed}
    checkpoint = about.checkpoint(**recipe)
    if resume:
        checkpoint.read()
    elif not overwrite and checkpoint.exists():
        raise InputError(
            f"{checkpoint} is of a training that was interrupted; go on with --resume, or "
            "start over with --overwrite."
        )
    elif not overwrite and path.exists():
        raise InputError(f"{path} is there already; replace it with --overwrite.")
    where, data = str(device_of(device)), about.load_data()
    network = about.build(data, seed)
    costs = Costs(trace(network, data.input_shape, skip_untraceable=True))
    steps = training_steps(data, epochs, batch_size)
    with progress(errors, f"training {about.network} on {data.name}", steps, 40) as advance:
        try:
            about.train(
                network, data, **recipe, device=where, resume=resume, on_step=advance
            )
        except KeyboardInterrupt:
            stop("go on with the same command and --resume")
    show_measures({"dense": network}, data, costs, as_json)
    if not as_json:
        print(f"weights are in {path}")
