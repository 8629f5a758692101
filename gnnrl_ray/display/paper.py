"""What the paper's tables say, and tables of runs in their form, beside it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from gnnrl_ray.pruning.costs import Costs
from gnnrl_ray.run.directory import Run
from gnnrl_ray.tracing.groups import ChannelGroups

# GNN-RL, Tables 1 and 2: share of the FLOPs by its own count, top-1 after fine-tuning, and
# the difference to the dense network, in %.
ACCURACIES: dict[tuple[str, str, str], tuple[float, float, float]] = {
    ("resnet110", "cifar10", "agmc"): (50, 93.08, -0.6),
    ("resnet110", "cifar10", "rs"): (50, 87.26, -6.42),
    ("resnet110", "cifar10", "gnn-rl"): (48, 94.31, 0.63),
    ("resnet56", "cifar10", "uniform"): (50, 87.5, -5.89),
    ("resnet56", "cifar10", "deep"): (50, 88.4, -4.99),
    ("resnet56", "cifar10", "amc"): (50, 90.2, -3.19),
    ("resnet56", "cifar10", "agmc"): (50, 92.0, -1.39),
    ("resnet56", "cifar10", "gnn-rl"): (46, 93.49, 0.1),
    ("resnet44", "cifar10", "agmc"): (50, 92.28, -0.82),
    ("resnet44", "cifar10", "rs"): (50, 88.14, -4.96),
    ("resnet44", "cifar10", "gnn-rl"): (49, 93.23, 0.13),
    ("resnet32", "cifar10", "agmc"): (50, 90.96, -1.67),
    ("resnet32", "cifar10", "rs"): (50, 89.57, -3.06),
    ("resnet32", "cifar10", "gnn-rl"): (49, 92.58, -0.05),
    ("resnet20", "cifar10", "deep"): (50, 79.6, -12.13),
    ("resnet20", "cifar10", "shallow"): (50, 83.2, -8.53),
    ("resnet20", "cifar10", "uniform"): (50, 84.0, -7.73),
    ("resnet20", "cifar10", "amc"): (50, 86.4, -5.33),
    ("resnet20", "cifar10", "agmc"): (50, 88.42, -3.31),
    ("resnet20", "cifar10", "gnn-rl"): (49, 91.31, -0.42),
    ("vgg16", "imagenet", "fp"): (20, 55.9, -14.6),
    ("vgg16", "imagenet", "rnp"): (20, 66.92, -3.58),
    ("vgg16", "imagenet", "spp"): (20, 68.2, -2.3),
    ("vgg16", "imagenet", "gnn-rl"): (20, 68.75, -1.75),
    ("shufflenet_v1", "cifar100", "agmc"): (60, 65.26, -3.38),
    ("shufflenet_v1", "cifar100", "rs"): (60, 63.7, -4.94),
    ("shufflenet_v1", "cifar100", "gnn-rl"): (58, 67.1, -2.84),
    ("shufflenet_v2", "cifar100", "agmc"): (60, 66.28, -2.57),
    ("shufflenet_v2", "cifar100", "rs"): (60, 65.74, -3.11),
    ("shufflenet_v2", "cifar100", "gnn-rl"): (54, 66.64, -2.21),
    ("mobilenet_v1", "cifar100", "agmc"): (80, 64.71, -0.17),
    ("mobilenet_v1", "cifar100", "rs"): (80, 63.89, -0.99),
    ("mobilenet_v1", "cifar100", "gnn-rl"): (79, 64.79, -0.09),
    ("mobilenet_v2", "cifar100", "agmc"): (80, 65.21, -0.53),
    ("mobilenet_v2", "cifar100", "rs"): (80, 65.14, -0.6),
    ("mobilenet_v2", "cifar100", "gnn-rl"): (79, 65.93, 0.19),
}

# Table 3, on a GTX 1080Ti with 32 images: share of the FLOPs in %, milliseconds of the
# dense and of the pruned network, and MB of memory.
SPEEDS: dict[str, tuple[float, float, float, float, float]] = {
    "vgg16": (20, 0.11, 0.08, 528, 387),
    "resnet110": (48, 1.04, 0.98, 6.9, 3.4),
    "resnet56": (46, 0.52, 0.43, 3.4, 1.7),
    "resnet44": (49, 0.37, 0.34, 2.7, 1.3),
    "resnet32": (49, 0.33, 0.26, 1.9, 0.942),
    "resnet20": (49, 0.20, 0.16, 1.1, 0.548),
    "mobilenet_v1": (79, 0.22, 0.19, 13, 7.5),
    "mobilenet_v2": (79, 0.34, 0.32, 9.3, 7.4),
    "shufflenet_v1": (58, 0.45, 0.43, 4.1, 2),
    "shufflenet_v2": (54, 0.51, 0.50, 5.4, 2.7),
}
_BATCH = "32"  # of Table 3


@dataclass(frozen=True)
class Sheet:
    """A table for people.

    Attributes:
        title: above it.
        heads: of the columns.
        rows: of texts.
        note: below it.
    """

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    def to_markdown(self) -> str:
        """Return it as Markdown."""
        table = markdown_table(self.heads, self.rows)
        return f"## {self.title}\n\n{table}\n\n{self.note}\n"


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of texts as Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def accuracy_sheet(runs: Sequence[Run], groups: Sequence[ChannelGroups | None]) -> Sheet:
    """Return Tables 1 and 2: accuracy of each network and method, the paper's beside it.

    Of several seeds, the mean and how many. What has not been measured yet
    (``gnnrl-ray evaluate``) is empty.

    Args:
        runs: with a winner.
        groups: of the network of each, if it could be had.
    """
    cells: dict[tuple[str, ...], list[tuple[Run, ChannelGroups | None]]] = {}
    for run, own in zip(runs, groups, strict=True):
        about = run.source.network or "a network", run.source.data_name
        settings = run.settings.manner, run.settings.limits
        cells.setdefault((*about, *settings), []).append((run, own))
    rows = []
    for (*about, _), found in sorted(cells.items()):
        facts = [_accuracies(run, own) for run, own in found]
        means = {name: _mean([fact[name] for fact in facts]) for name in facts[0]}
        paper = ACCURACIES.get((*about[:2], found[0][0].settings.method))
        rows.append([
            *about, str(len(found)), f"{means['macs']:.1f}", _shown(means["paper"], 1),
            _shown(means["before"]), _shown(means["after"]),
            _shown(means["change"], sign="+"),
            *(("", "", "") if paper is None else
              (f"{paper[0]:g}", f"{paper[1]:.2f}", f"{paper[2]:+.2f}")),
        ])  # fmt: skip
    heads = ("network", "data", "method", "n", "MACs %", "as the paper counts, %",
             "test, before fine-tuning", "test, after", "beside dense", "paper: FLOPs %",
             "paper: after", "paper: beside dense")  # fmt: skip
    note = "Top-1 accuracy in % on the whole test set, mean over n searches."
    return Sheet("Accuracy (the paper's Tables 1 and 2)", heads, rows, note)


def _accuracies(run: Run, groups: ChannelGroups | None) -> dict[str, float | None]:
    best, measured = run.best(), run.measures()
    dense, pruned, tuned = (measured.get(n, {}) for n in ("dense", "pruned", "finetuned"))
    after = tuned.get("test")
    return {
        "macs": 100 * best["macs_ratio"],
        "paper": None if groups is None else _paper_share(groups, best),
        "before": _percent(pruned.get("test")),
        "after": _percent(after),
        "change": None if after is None else 100 * (after - dense["test"]),
    }


def _paper_share(groups: ChannelGroups, best: dict) -> float:
    widths = np.array([best["groups"][name] for name in groups.names])
    return 100 * Costs(groups).paper_share(widths)


def speed_sheet(runs: Sequence[Run]) -> Sheet | None:
    """Return Table 3 of the runs that ``gnnrl-ray measure`` has measured, if any."""
    rows = []
    for run in runs:
        measured, best = run.measures(), run.best()
        speeds = {n: m["speed"][_BATCH] for n, m in measured.items()
                  if _BATCH in m.get("speed", {})}  # fmt: skip
        smaller = speeds.get("finetuned", speeds.get("pruned"))
        if smaller is None or "dense" not in speeds:
            continue
        dense, name = speeds["dense"], run.source.network or "a network"
        paper = SPEEDS.get(name)
        rows.append([
            name, run.settings.manner, str(run.settings.seed),
            f"{100 * best['macs_ratio']:.1f}", measured["dense"]["device"],
            f"{dense['median_ms']:.2f}", f"{smaller['median_ms']:.2f}",
            f"{dense['median_ms'] / smaller['median_ms']:.2f}",
            f"{dense['memory'] / 1e6:.1f}", f"{smaller['memory'] / 1e6:.1f}",
            *(("",) * 5 if paper is None else (f"{number:g}" for number in paper)),
        ])  # fmt: skip
    if not rows:
        return None
    heads = ("network", "method", "seed", "MACs %", "device", "dense, ms", "pruned, ms",
             "times", "dense, MB", "pruned, MB", "paper: FLOPs %", "paper: dense, ms",
             "paper: pruned, ms", "paper: dense, MB", "paper: pruned, MB")  # fmt: skip
    note = (
        f"A pass of {_BATCH} images, median; the most memory in use during it, weights "
        "included. The paper measured on a GTX 1080Ti; its MB are those of the weights."
    )
    return Sheet("Latency and memory (the paper's Table 3)", heads, rows, note)


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _shown(value: float | None, digits: int = 2, sign: str = "") -> str:
    return "" if value is None else f"{value:{sign}.{digits}f}"
