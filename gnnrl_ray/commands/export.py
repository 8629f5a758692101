"""The command ``export``."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from gnnrl_ray.commands.terminal import (
    DataDirOption,
    JsonOption,
    RunArgument,
    TrustOption,
)
from gnnrl_ray.errors import InputError

if TYPE_CHECKING:
    from gnnrl_ray.jobs.exporting import Exported


def export_command(
    run: RunArgument,
    kind: Annotated[
        Literal["onnx", "pt2", "torch"],
        typer.Option(
            "--format",
            help="onnx: any batch size, for onnxruntime; pt2: for torch.export.load; "
            "torch: for torch.load where torch is, and nothing else.",
        ),
    ] = "onnx",
    out: Annotated[
        str | None, typer.Option(help="File or URI; default: in the run directory.")
    ] = None,
    int8: Annotated[
        bool, typer.Option(help="In 8-bit whole numbers, by onnxruntime; of onnx.")
    ] = False,
    weights: Annotated[
        str | None,
        typer.Option(metavar="pruned|finetuned", help="Default: finetuned, if there."),
    ] = None,
    data_dir: DataDirOption = None,
    trust: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write the winner of a search as a file for elsewhere, and a model card.

    The file is loaded and asked about all validation images beside the network itself.
    """
    from gnnrl_ray.commands.networks import networks_of, of_run
    from gnnrl_ray.display.card import model_card
    from gnnrl_ray.jobs.exporting import ENDS, check_int8, export
    from gnnrl_ray.run.directory import Run

    if int8:
        check_int8(kind)
    opened = Run.open(run)
    network, data, costs = of_run(opened, {"data_dir": data_dir}, trust)
    there = networks_of(opened, network, costs)
    del there["dense"]
    name = weights or ("finetuned" if "finetuned" in there else "pruned")
    if name not in there:
        raise InputError(
            f"--weights {name}: {run} has {' and '.join(there) or 'no weights yet'}."
        )
    path = out or f"{opened.storage}/{name}{'.int8' if int8 else ''}{ENDS[kind]}"
    found = export(
        there[name].cpu(), data.validation, path, kind=kind,
        calibration=data.train if int8 else None,
    )  # fmt: skip
    opened.exported(found.path, name, _said(found))
    opened.storage.write("model_card.md", model_card(opened).encode())
    if as_json:
        print(json.dumps(asdict(found)))
        return
    print(f"{_said(found)}; model_card.md is in {opened.storage}")


def _said(found: "Exported") -> str:
    said = f"{found.path}: {found.agree} of {found.images} predictions are the network's"
    if found.accuracy is not None:
        said += f", validation accuracy {found.accuracy:.2%}"
    return said
