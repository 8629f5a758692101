"""The command ``finetune``."""

import shlex
from typing import Annotated

import typer
from torch import nn

from gnnrl_ray.commands.evaluate import networks_of, of_run, show_measures
from gnnrl_ray.commands.terminal import (
    DataDirOption,
    DeviceOption,
    JsonOption,
    RunArgument,
    SeedOption,
    TrustOption,
    errors,
    stop,
)
from gnnrl_ray.data import Data
from gnnrl_ray.display.panel import progress
from gnnrl_ray.errors import InputError
from gnnrl_ray.jobs.finetuning import Recipe, finetune, interrupted
from gnnrl_ray.jobs.searching import device_of
from gnnrl_ray.options import settings_as_options
from gnnrl_ray.pruning.costs import Costs
from gnnrl_ray.run.directory import Run, rebuild
from gnnrl_ray.scoring.training import steps_per_epoch
from gnnrl_ray.settings import PRECISIONS


@settings_as_options(recipe=Recipe)
def finetune_command(
    recipe: dict,
    run: RunArgument,
    seed: SeedOption = 0,
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(PRECISIONS[1:]),
            help="Of training; weights stay float32. Default: as the search evaluated.",
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(help="Go on with the fine-tuning that was interrupted."),
    ] = False,
    device: DeviceOption = None,
    data_dir: DataDirOption = None,
    trust: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Fine-tune the winner of a search; what is reported is the last epoch."""
    if precision not in (None, *PRECISIONS[1:]):
        known = ", ".join(map(repr, PRECISIONS[1:]))
        raise InputError(f"--precision {precision!r} is not one of {known}.")
    opened = Run.open(run)
    wanted = Recipe(**recipe)
    if resume:
        begun, its_seed, its_precision = interrupted(opened)
        wanted = begun.continued(recipe, run)
        seed, precision = seed or its_seed, precision or its_precision
    network, data, costs = of_run(opened, {"data_dir": data_dir}, trust)
    finetune_shown(
        opened, network, data, costs, wanted, seed=seed, device=device,
        precision=precision, resume=resume,
    )  # fmt: skip
    show_measures(networks_of(opened, network, costs), data, costs, as_json, opened)


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
            again = shlex.join(["gnnrl-ray", "finetune", str(run.storage), "--resume"])
            stop(f"{run.storage}/finetuned.safetensors is left; go on with: {again}")
