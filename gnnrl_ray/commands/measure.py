"""The command ``measure``."""

import json
from typing import Annotated

import typer

from gnnrl_ray.commands.terminal import (
    DataDirOption,
    DeviceOption,
    JsonOption,
    RunArgument,
    TrustOption,
    console,
)


def measure_command(
    run: RunArgument,
    batch: Annotated[
        list[int] | None,
        typer.Option(min=1, max=10**5, help="Images at a time; may be given again. "
                     "Default: 1, and 32 as in the paper's Table 3."),
    ] = None,
    rounds: Annotated[
        int, typer.Option(min=5, max=10**6, help="Passes of each network, at most.")
    ] = 50,
    threads: Annotated[
        int | None, typer.Option(min=1, max=1024, help="On a CPU; default: all cores.")
    ] = None,
    device: DeviceOption = None,
    data_dir: DataDirOption = None,
    trust: TrustOption = False,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Measure latency and memory of the winner of a search beside the dense network.

    All networks take turns, so that they meet the same machine. What was found is kept in
    the run, for `gnnrl-ray report`.
    """
    import torch

    from gnnrl_ray.commands.networks import networks_of, of_run
    from gnnrl_ray.display.report import speed_table
    from gnnrl_ray.jobs.searching import device_of
    from gnnrl_ray.run.directory import Run
    from gnnrl_ray.scoring.speed import device_name, measure_speed

    opened, where = Run.open(run), device_of(device)
    network, data, costs = of_run(opened, {"data_dir": data_dir}, trust)
    networks = networks_of(opened, network, costs)
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    speeds: dict[str, dict[str, dict]] = {name: {} for name in networks}
    try:
        for size in batch or (1, 32):
            found = measure_speed(networks, data.input_shape, batch=size, device=where,
                                  rounds=rounds)  # fmt: skip
            for name, speed in found.items():
                speeds[name][str(size)] = speed
        on = device_name(where)
    finally:
        torch.set_num_threads(before)
    rows = {name: {"speed": speed, "device": on} for name, speed in speeds.items()}
    opened.measured(rows)
    if as_json:
        print(json.dumps(rows))
    else:
        console.print(speed_table(speeds, on))
