"""The command ``train``, and training where weights are missing."""

import shlex
from typing import Annotated, NoReturn

import typer
from torch import nn

from gnnrl_ray.commands.evaluate import show_measures
from gnnrl_ray.commands.terminal import (
    BatchOption,
    DeviceOption,
    JsonOption,
    RateOption,
    SeedOption,
    errors,
    stop,
)
from gnnrl_ray.data import Data
from gnnrl_ray.display.panel import progress
from gnnrl_ray.errors import InputError
from gnnrl_ray.jobs.searching import device_of
from gnnrl_ray.options import settings_as_options
from gnnrl_ray.pruning.costs import Costs
from gnnrl_ray.source import EMBEDDED_EPOCHS, Source, training_steps
from gnnrl_ray.tracing.groups import trace
from gnnrl_ray.zoo.weights import weights_path


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
    show_measures({"dense": network}, data, costs, as_json)
    if not as_json:
        print(f"weights are in {path}")


def load_weights(source: Source, network: nn.Module, data: Data) -> None:
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
        stop("nothing has been trained yet")
    stop(f"to use what has been trained so far: --weights {shlex.quote(str(path))}")
