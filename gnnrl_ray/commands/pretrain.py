"""The command ``pretrain``."""

import json
from pathlib import Path
from typing import Annotated

import typer

from gnnrl_ray.commands.terminal import (
    DataDirOption,
    SeedOption,
    TrustOption,
    errors,
)
from gnnrl_ray.errors import InputError


def pretrain_command(
    runs: Annotated[
        list[str], typer.Argument(help="Run directories of searches, by any method.")
    ],
    out: Annotated[
        Path, typer.Option(help="File to write, for `gnnrl-ray search --from-run`.")
    ] = Path("agent.safetensors"),
    steps: Annotated[
        int, typer.Option(min=1, max=10**6, help="Of learning, from each network.")
    ] = 500,
    seed: SeedOption = 0,
    data_dir: DataDirOption = None,
    trust: TrustOption = False,
) -> None:
    """Let an agent learn from what searches have found, of one network or of several.

    Searches of one network within one budget are learnt from together.
    """
    from gnnrl_ray.commands.networks import of_run
    from gnnrl_ray.display.panel import progress
    from gnnrl_ray.jobs.pretraining import Lesson, pretrain
    from gnnrl_ray.run.directory import Run
    from gnnrl_ray.storage import Storage

    if out.suffix != ".safetensors":
        raise InputError(f"--out {out} must end in .safetensors.")
    alike: dict[str, list[Run]] = {}
    for folder in runs:
        run = Run.open(folder)
        about = (vars(run.source), run.settings.budgets, run.settings.tracing)
        alike.setdefault(json.dumps(about, default=str), []).append(run)
    lessons = []
    for group in alike.values():
        network, data, _ = of_run(group[0], {"data_dir": data_dir}, trust)
        lessons.append(Lesson.of(group, network, data))
    counts = ", ".join(
        f"{len(lesson.scores)} of {group[0].source.network}"
        for lesson, group in zip(lessons, alike.values(), strict=True)
    )
    total = steps * len(lessons)
    with progress(errors, f"learning from {counts}", total, 100) as advance:
        agent = pretrain(lessons, steps=steps, seed=seed, on_step=advance)
    Storage(out.parent).write(out.name, agent)
    print(f"learnt from {counts} candidates; start from it with --from-run {out}")
