"""The same networks through torch-pruning: which traces, which stays right, how long.

    pip install torch-pruning==1.6.1
    python -m benchmarks.peers [NAME ...] [--timm SEED] [--limit SECONDS] [--json FILE]

    pip install 'nvidia-modelopt[hf]==0.47.0' huggingface_hub torchprofile==0.0.4
    python -m benchmarks.peers --fastnas 500 [--json FILE]

Each tool drops half the channels of everything that it can prune, by L2 norm. A removed
network is right if its outputs equal those of the dense one in which every convolution and
linear layer reads zeros from the dropped channels (float64, 1e-8 relative). For
torch-pruning, the indices that it hands to its own pruning functions say which these are.
With ``--timm``, the networks are sixty convolutional ones of timm, drawn by seed. Seconds
are of one thread, from the dense network to the removed one; who takes longer than
``--limit`` is stopped.

With ``--fastnas``, NVIDIA ModelOpt's search on ResNet-20, CIFAR-10 and half the
multiply-accumulates, in place of our methods: every width of every layer that it can prune
is scored once, alone, on so many validation images; one threshold on what is lost decides.
Its winner gets the statistics, and is scored on the splits, that ours are.
"""

import argparse
import copy
import json
import platform
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from gnnrl_ray import Source, accuracy, mask, prune, trace
from gnnrl_ray.scoring.training import recalibrate

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from helpers.networks import EVERY, build, count_macs, outputs


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=EVERY)
    parser.add_argument("--timm", type=int, metavar="SEED", help="sixty networks of timm")
    parser.add_argument("--limit", type=float, default=600, help="CPU seconds for each")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--fastnas", type=int, metavar="IMAGES", help="ModelOpt's search")
    parser.add_argument("--json", help="write the figures to this file")
    arguments = parser.parse_args()
    if arguments.fastnas:
        found = fastnas(arguments.fastnas)
        print(json.dumps(found, indent=1))
        if arguments.json:
            Path(arguments.json).write_text(json.dumps(found, indent=1) + "\n")
        return
    names, built = arguments.names, build
    if arguments.timm is not None:
        from helpers.timm_networks import build_of_timm as built
        from helpers.timm_networks import drawn

        names = drawn(arguments.timm)
    torch.set_num_threads(1)
    tools = {"gnnrl_ray": ours, "torch-pruning": _torch_pruning()}
    rows = []
    for name in names:
        network, shape = built(name)
        network = network.double()
        row = {"network": name}
        for tool, run in tools.items():
            images = torch.randn(2, *shape, dtype=torch.double)
            row[tool] = attempt(run, network, images, arguments.limit, arguments.repeats)
        rows.append(row)
        print(json.dumps(row), flush=True)
    Console(width=150).print(_table(rows, tools))
    facts = {
        "machine": platform.processor() or platform.machine(),
        "versions": {p: version(p) for p in ("torch", "torchvision", "torch-pruning")},
        "repeats": arguments.repeats,
        "limit": arguments.limit,
        "rows": rows,
    }
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(facts, file, indent=1)


def attempt(
    run: Callable, network: nn.Module, x: Tensor, limit: float, repeats: int
) -> dict:
    """Return ``ok``, ``wrong`` or the error, the share of MACs left and the seconds."""
    seconds = []
    try:
        for _ in range(repeats):
            start = time.process_time()
            with stopped_after(limit):
                removed, masked = run(network, x)
            seconds.append(time.process_time() - start)
            reference = masked()
        got = outputs(removed, x)
        scale = reference.abs().max().item()
        equal = torch.allclose(got, reference, rtol=1e-8, atol=1e-8 * scale)
        verdict = "ok" if equal else "wrong"
    except Exception as error:
        return {"verdict": f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"}
    shape = x.shape[1:]
    share = count_macs(removed, shape) / count_macs(network, shape)
    return {"verdict": verdict, "macs": round(share, 3), "seconds": round(min(seconds), 3)}


@contextmanager
def stopped_after(limit: float) -> Iterator[None]:
    """Raise a ``TimeoutError`` after so many CPU seconds."""

    def stop(*_: object) -> NoReturn:
        raise TimeoutError(f"stopped after {limit:g} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, limit)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def ours(network: nn.Module, x: Tensor):
    """Trace, rank and remove."""
    groups = trace(network, x.shape[1:])
    widths = np.maximum(groups.widths // groups.multiple_of // 2, 1) * groups.multiple_of
    removed = prune(network, groups, widths)
    return removed, lambda: outputs(mask(network, groups, widths), x)


def _torch_pruning() -> Callable:
    import torch_pruning as tp

    functions = tp.pruner.function
    for pruner in (functions.ConvPruner, functions.LinearPruner):
        pruner.prune_in_channels = _recorded(pruner.prune_in_channels)

    def run(network: nn.Module, x: Tensor):
        removed = copy.deepcopy(network)
        pruner = tp.pruner.MagnitudePruner(
            removed, x[:1], tp.importance.MagnitudeImportance(p=2), pruning_ratio=0.5,
            ignored_layers=_last_layers(removed, x),
        )  # fmt: skip
        pruner.step()
        return removed, lambda: outputs(_zeroed(network, removed), x)

    return run


def fastnas(count: int, threads: int = 1) -> dict:
    """Let ModelOpt search ResNet-20 by ``count`` validation images."""
    import modelopt.torch.prune as mtp

    torch.set_num_threads(threads)
    network, data = Source(network="resnet20", dataset="cifar10").load()
    dense = count_macs(network, data.input_shape)
    order = torch.randperm(len(data.validation), generator=torch.Generator().manual_seed(0))
    few, evaluations = data.validation.take(order[:count]), 0

    def score(model: nn.Module) -> float:
        nonlocal evaluations
        evaluations += 1
        return accuracy(model, few)

    every = tuple((width + 1) / 64 for width in range(64))  # its default leaves out most
    channels = {"channels_ratio": every, "kernel_size": (), "channel_divisor": 1}
    features = {"features_ratio": every, "feature_divisor": 1}
    rules = {"nn.Conv2d": {"*": channels}, "nn.BatchNorm2d": {"*": features}}
    batches = [images for images, _ in data.train.take(torch.arange(250)).batches(125)]
    start = time.perf_counter()
    pruned, _ = mtp.prune(
        network, mode=[("fastnas", rules)], constraints={"flops": "50%"},
        dummy_input=batches[0][:1],
        config={"score_func": score, "forward_loop": lambda m: list(map(m, batches))},
    )  # fmt: skip
    seconds = time.perf_counter() - start
    recalibrate(pruned, data.train)
    return {
        "network": "resnet20", "images": count, "evaluations": evaluations,
        "seconds": round(seconds, 1), "threads": threads,
        "machine": platform.processor() or platform.machine(),
        "version": version("nvidia-modelopt"),
        "macs_share": count_macs(pruned, data.input_shape) / dense,
        "validation": accuracy(pruned, data.validation),
        "holdout": accuracy(pruned, data.holdout),
        "widths": {name: module.out_channels for name, module in pruned.named_modules()
                   if isinstance(module, nn.Conv2d)},
    }  # fmt: skip


def _recorded(function: Callable) -> Callable:
    """Let a pruning function note on the layer which of its inputs are left."""

    def prune_in_channels(self, layer: nn.Module, idxs):
        count = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
        kept = getattr(layer, "kept_inputs", np.arange(count))
        layer.kept_inputs = np.delete(kept, list(idxs))
        return function(self, layer, idxs)

    return prune_in_channels


def _zeroed(network: nn.Module, removed: nn.Module) -> nn.Module:
    """Return a copy of the dense network whose layers ignore what was dropped."""
    masked = copy.deepcopy(network)
    for name, layer in removed.named_modules():
        kept = getattr(layer, "kept_inputs", None)
        if kept is None:
            continue
        dense = masked.get_submodule(name)
        weight = dense.weight.data
        if getattr(dense, "transposed", False):
            dropped = np.setdiff1d(np.arange(len(weight)), kept)
            weight[dropped] = 0
            continue
        groups = getattr(dense, "groups", 1)
        flags = np.zeros(weight.shape[1] * groups, bool)
        flags[kept] = True
        blocks = zip(weight.chunk(groups), flags.reshape(groups, -1), strict=True)
        for block, there in blocks:
            block[:, torch.from_numpy(~there)] = 0
    return masked


def _last_layers(network: nn.Module, x: Tensor) -> list[nn.Module]:
    """The layers whose outputs are the network's: those keep all channels."""
    return [
        network.get_submodule(name)
        for name, reason in trace(network, x.shape[1:]).whole.items()
        if reason == "the network's output"
    ]


def _table(rows: list[dict], tools: dict) -> Table:
    table = Table(title="half the channels dropped")
    table.add_column("network")
    for tool in tools:
        table.add_column(tool, overflow="fold")
        table.add_column("MACs left", justify="right")
        table.add_column("seconds", justify="right")
    for row in rows:
        cells = []
        for tool in tools:
            facts = row[tool]
            cells += [
                facts["verdict"],
                str(facts.get("macs", "")),
                str(facts.get("seconds", "")),
            ]
        table.add_row(row["network"], *cells)
    return table


if __name__ == "__main__":
    main()
