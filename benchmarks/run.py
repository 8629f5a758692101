"""How fast a search is, beside the plain way of doing it and the limit of the machine.

    python -m benchmarks.run [PART ...] [--networks NAME ...] [--json FILE]

**plain** is what the authors' released code does: the dense network with masked weights, in
float32 and contiguous memory, through a ``DataLoader`` with a transform for each image.
**limit** is a loop of matrix products with as many multiply-accumulates, in the number
format of the evaluation. Seconds are wall-clock, mean and standard deviation of ``n`` runs
that take turns with those of their references.
"""

import argparse
import json
import os
import platform
from importlib.metadata import version
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import agent, evaluation, parallel, searching, tuning
from benchmarks.measuring import Row

PARTS = {
    "evaluation": evaluation.rows,
    "tuning": tuning.rows,
    "agent": agent.rows,
    "searching": searching.rows,
    "parallel": parallel.rows,
}
NETWORKS = ("resnet20", "resnet56", "resnet110", "mobilenet_v2", "vgg16")


def main() -> None:
    """Measure, print a table and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--json", type=Path, default="benchmark.json")
    arguments = parser.parse_args()
    unknown = set(arguments.parts) - PARTS.keys()
    if unknown:
        parser.error(f"unknown part {unknown.pop()!r}; known: {', '.join(PARTS)}")
    rows: list[Row] = []
    for part in arguments.parts or PARTS:
        for row in PARTS[part](arguments.networks, arguments.dataset):
            rows.append(row)
            print(json.dumps(row), flush=True)
    facts = machine()
    arguments.json.write_text(json.dumps({"machine": facts, "rows": rows}, indent=1))
    Console(width=150).print(_table(rows, facts))


def machine() -> dict:
    """Return what figures were measured with."""
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((s.split(": ")[1] for s in lines if s.startswith("model name")), cpu)
    packages = ("torch", "torchvision", "ray", "torch-geometric", "numpy")
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": {name: version(name) for name in packages},
    }


def _table(rows: list[Row], machine: dict) -> Table:
    title = f"{machine['cores']} x {machine['cpu']}, torch {machine['versions']['torch']}"
    table = Table(title=title)
    for column in ("what", "network", "value", "+-", "n", "times a reference"):
        table.add_column(
            column, justify="left" if column in ("what", "network") else "right"
        )
    for row in rows:
        ratios = ", ".join(f"{name} {ratio:.3g}" for name, ratio in row["ratios"].items())
        value = f"{row['value']:.4g} {row['unit']}"
        table.add_row(
            row["what"],
            row["network"],
            value,
            f"{row['spread']:.2g}",
            str(row["n"]),
            ratios,
        )
    return table


if __name__ == "__main__":
    main()
