"""The table of the README, from searches to text, so that figure and text cannot part.

    python -m benchmarks.headline --runs DIR     # searches what is missing, then renders
    python -m benchmarks.headline                # renders benchmarks/results/headline.json

ResNet-20 on CIFAR-10 at half the multiply-accumulates: every method with every seed, and
one winner fine-tuned. Interrupted, it goes on with the runs that are in ``--runs``.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.run import machine
from gnnrl_ray import Costs, SearchSettings, Source, search, trace
from gnnrl_ray.jobs.finetuning import finetune
from gnnrl_ray.jobs.recipe import Recipe
from gnnrl_ray.run.directory import Run
from gnnrl_ray.run.winner import rebuild
from gnnrl_ray.scoring.measures import measure

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks/results/headline.json"
SOURCE = Source(network="resnet20", dataset="cifar10")
# By what they are called: what sets each apart.
METHODS = {
    "gnn-rl": {},
    "gnn-rl --agent paper": {"agent": {"algorithm": "ddpg"}},
    "random": {"method": "random"},
    "uniform": {"method": "uniform"},
}
SEEDS, EPISODES, EPOCHS = (0, 1, 2), 180, 2
LOOKS = (30, 60, 90, 120, 150, 180)
COMMAND = "gnnrl-ray search --network resnet20 --dataset cifar10 --flops 0.5 --episodes 180"


def measured(runs: Path) -> dict:
    """Search what ``runs`` lacks, and return all figures."""
    network, data = SOURCE.load()
    costs = Costs(trace(network, data.input_shape))
    rows = []
    for seed in SEEDS:
        for method, own in METHODS.items():
            folder = runs / f"{method}-{seed}".replace(" --", "-").replace(" ", "-")
            settings = SearchSettings(seed=seed, episodes=EPISODES, device="cpu", **own)
            there = (folder / "run.json").is_file()
            search(network, data, settings, out=folder, resume=there, source=SOURCE)
            run = Run.open(folder)
            widths = list(run.best()["groups"].values())
            winner = rebuild(run.storage, network, costs.groups, "pruned")
            accuracies = np.array([outcome.accuracy for _, outcome in run.journal])
            curve = {str(n): accuracies[:n].max() for n in LOOKS if n <= len(accuracies)}
            rows.append({"method": method, "seed": seed, "best": curve}
                        | measure(winner, data, costs, widths))  # fmt: skip
            print(json.dumps(rows[-1]), flush=True)
    run = Run.open(runs / f"gnn-rl-{SEEDS[0]}")
    if not run.storage.exists("finetuned.safetensors"):
        winner = rebuild(run.storage, network, costs.groups, "pruned")
        finetune(run, winner, data, Recipe(epochs=EPOCHS), dense=network,
                 groups=costs.groups)  # fmt: skip
    tuned = rebuild(run.storage, network, costs.groups, "finetuned")
    widths = list(run.best()["groups"].values())
    return {
        "command": COMMAND, "machine": machine(), "mode": vars(run.mode), "rows": rows,
        "dense": measure(network, data, costs),
        "finetuned": measure(tuned, data, costs, widths) | {"epochs": EPOCHS},
    }  # fmt: skip


def render(found: dict) -> dict[str, str]:
    """Return the text between the marks of each file."""
    rows = [["method", "validation", "untouched half of the test set"]]
    rows += [
        [f"`{method}`" + (" (one candidate)" if method == "uniform" else ""),
         _summary(found, method, "validation"), _summary(found, method, "holdout")]
        for method in METHODS
    ]  # fmt: skip
    tuned, dense = found["finetuned"], found["dense"]
    name = f"`gnn-rl`, seed 0, after {tuned['epochs']} epochs of fine-tuning"
    rows += [[name, *_percent(tuned)], ["dense", *_percent(dense)]]
    every = [["method", "validation", "mean ± sd", "holdout", "mean ± sd", "% of MACs"]]
    best = [["method, seed", *(f"{n} episodes" for n in LOOKS)]]
    for method in METHODS:
        own = [row for row in found["rows"] if row["method"] == method]
        cells = [method]
        for split in ("validation", "holdout"):
            values = ", ".join(f"{100 * row[split]:.2f}" for row in own)
            cells += [values, _summary(found, method, split)]
        shares = ", ".join(f"{100 * row['macs'] / dense['macs']:.1f}" for row in own)
        every.append([*cells, shares])
        best += [
            [f"{method}, {row['seed']}", *(f"{100 * a:.2f}" for a in row["best"].values())]
            for row in own if len(row["best"]) == len(LOOKS)
        ]  # fmt: skip
    return {
        "README.md": "ResNet-20 on CIFAR-10 at half its MACs, 180 candidates; top-1 "
        "accuracy in %, mean ± standard deviation, n = "
        f"{len({row['seed'] for row in found['rows']})} "
        "seeds,\nbefore fine-tuning unless said; two cores of an EPYC (Zen 5), no GPU "
        "([command and every seed](docs/results.md)):\n\n"
        f"{_table(rows)}",
        "docs/results.md": f"{_table(every)}\n\nThe best candidate so far, validation "
        f"accuracy:\n\n{_table(best)}\n\nThe winner of gnn-rl, seed 0, after "
        f"{tuned['epochs']} epochs of fine-tuning: {' and '.join(_percent(tuned))}; dense: "
        f"{' and '.join(_percent(dense))} (validation and holdout).",
    }


def _percent(row: dict) -> list[str]:
    return [f"{100 * row[split]:.2f}" for split in ("validation", "holdout")]


def _summary(found: dict, method: str, split: str) -> str:
    values = [100 * row[split] for row in found["rows"] if row["method"] == method]
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"


def _table(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def insert(text: str, table: str, name: str = "headline") -> str:
    """Return ``text`` with ``table`` between the marks of ``name``."""
    start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, rest = text.split(start)
    return f"{before}{start}\n{table}\n{end}{rest.split(end)[1]}"


def main() -> None:
    """Measure if asked to, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, help="folder of the searches")
    arguments = parser.parse_args()
    if arguments.runs:
        torch.manual_seed(0)
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(measured(arguments.runs), indent=1) + "\n")
    found = json.loads(RESULTS.read_text())
    for name, table in render(found).items():
        path = ROOT / name
        path.write_text(insert(path.read_text(), table))


if __name__ == "__main__":
    main()
