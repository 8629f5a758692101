"""The command ``finetune``."""

from typing import Annotated

import typer

from gnnrl_ray.commands.terminal import (
    DataDirOption,
    DeviceOption,
    JsonOption,
    RunArgument,
    SeedOption,
    TrustOption,
)
from gnnrl_ray.errors import InputError
from gnnrl_ray.jobs.recipe import Recipe
from gnnrl_ray.options import settings_as_options
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
    overwrite: Annotated[
        bool, typer.Option(help="Replace the network that was fine-tuned before.")
    ] = False,
    device: DeviceOption = None,
    data_dir: DataDirOption = None,
    trust: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Fine-tune the winner of a search; what is reported is the last epoch."""
    from gnnrl_ray.commands import networks as shown
    from gnnrl_ray.jobs.finetuning import check_free, interrupted
    from gnnrl_ray.run.directory import Run

    if precision not in (None, *PRECISIONS[1:]):
        known = ", ".join(map(repr, PRECISIONS[1:]))
        raise InputError(f"--precision {precision!r} is not one of {known}.")
    opened = Run.open(run)
    wanted = Recipe(**recipe)
    opened.check_trust({"data_dir": data_dir}, trust)
    check_free(opened, overwrite or resume)
    if resume:
        begun, its_seed, its_precision = interrupted(opened)
        wanted = begun.continued(recipe, run)
        seed, precision = seed or its_seed, precision or its_precision
    network, data, costs = shown.of_run(opened, {"data_dir": data_dir}, trust)
    shown.finetune_shown(
        opened, network, data, costs, wanted, seed=seed, device=device,
        precision=precision, resume=resume,
    )  # fmt: skip
    networks = shown.networks_of(opened, network, costs)
    shown.show_measures(networks, data, costs, as_json, opened)
