"""Time and memory of tracing networks at their full size, each in a process of its own.

    python -m benchmarks.trace [NAME ...] [--json FILE]

Seconds are CPU seconds of one thread, after one network has been traced to warm up;
megabytes are what the process grew by at its peak, over network and imports. The reference
is one forward pass of one image: what any tracer that learns shapes by running has to pay.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from gnnrl_ray import HierarchicalGraph, trace
from gnnrl_ray.zoo import build_network

NAMES = (
    "resnet110", "vgg16", "mobilenet_v1", "mobilenet_v2", "shufflenet_v1",
    "shufflenet_v2", "torchvision:resnet50", "torchvision:resnet152",
    "torchvision:resnext101_64x4d", "torchvision:wide_resnet101_2",
    "torchvision:densenet201", "torchvision:googlenet", "torchvision:inception_v3",
    "torchvision:efficientnet_v2_l", "torchvision:regnet_y_32gf",
    "torchvision:convnext_large",
)  # fmt: skip
REPEATS = 3


def main() -> None:
    """Measure each network in a fresh process and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--json", help="write the figures to this file")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone:
        print(json.dumps(measure(arguments.names[0])))
        return
    rows = []
    for name in arguments.names:
        words = [sys.executable, "-W", "ignore", "-m", "benchmarks.trace", name, "--alone"]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(rows[-1], flush=True)
    Console(width=150).print(_table(rows))
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump({"torch": torch.__version__, "rows": rows}, file, indent=1)


def measure(name: str) -> dict:
    """Trace ``name`` and find its motifs, ``REPEATS`` times."""
    torch.set_num_threads(1)
    trace(build_network("resnet20"), (3, 32, 32))
    # Values do not matter here, and drawing them takes some networks minutes.
    for initialise in ("trunc_normal_", "kaiming_normal_", "normal_", "kaiming_uniform_"):
        setattr(nn.init, initialise, lambda tensor, *args, **kwargs: tensor)
    side = 32 if name == "resnet110" else 224
    network = build_network(name, 1000, side).eval()
    for parameter in network.parameters():
        parameter.data.zero_()
    x = torch.zeros(1, 3, side, side)
    forward, tracing, graphs = [], [], []
    before = _peak()
    for _ in range(REPEATS):
        start = time.process_time()
        groups = trace(network, (3, side, side))
        tracing.append(time.process_time() - start)
        start = time.process_time()
        graph = HierarchicalGraph(groups, 3)
        graphs.append(time.process_time() - start)
    grown = _peak() - before
    for _ in range(REPEATS):
        start = time.process_time()
        with torch.no_grad():
            network(x)
        forward.append(time.process_time() - start)
    return {
        "network": name,
        "side": side,
        "operations": len(groups.operations),
        "groups": len(groups.names),
        "levels": len(graph.levels),
        "seconds": round(statistics.mean(tracing), 3),
        "spread": round(statistics.stdev(tracing), 3),
        "graph_seconds": round(statistics.mean(graphs), 3),
        "forward_seconds": round(statistics.mean(forward), 3),
        "ratio": round(statistics.mean(tracing) / statistics.mean(forward), 2),
        "megabytes": round(grown),
    }


def _peak() -> float:
    """The most memory that this process has had, in megabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _table(rows: list[dict]) -> Table:
    table = Table(title=f"trace, mean of {REPEATS}")
    for key in rows[0]:
        table.add_column(key, justify="left" if key == "network" else "right")
    for row in rows:
        table.add_row(*map(str, row.values()))
    return table


if __name__ == "__main__":
    main()
