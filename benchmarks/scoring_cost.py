"""What a score should cost: equal time for searches that score in different ways.

    python -m benchmarks.scoring_cost --out DIR [--seconds 3600] [--seeds 0 1] [--ways ...]
                                      [--json FILE]

ResNet-20 on CIFAR-10 at half the multiply-accumulates. Every search has the same CPU
seconds: for many candidates with statistics of their own, for fewer that are trained for
50 or 200 steps or an epoch each, or for many and then finalists, which get the last 40 % of
them. Then every winner is fine-tuned by one recipe and scored. Runs stay in DIR, and what
is there is not done again.
"""

import argparse
import contextlib
import json
import time
from pathlib import Path

import torch

from benchmarks.run import machine
from gnnrl_ray import Source, search
from gnnrl_ray.jobs.finetuning import finetune
from gnnrl_ray.jobs.recipe import Recipe
from gnnrl_ray.pruning.costs import Costs
from gnnrl_ray.run.directory import Run
from gnnrl_ray.run.winner import rebuild
from gnnrl_ray.scoring.measures import measure
from gnnrl_ray.tracing.groups import trace

WAYS = {
    "recalibrate": {},
    "50 steps": {"finetune": 50},
    "200 steps": {"finetune": 200},
    "an epoch": {"finetune": "epoch"},
    "finalists": {"finalists": 8},
}
_FINALE = 0.4  # of the time, for finalists
_ENDLESS = 10**6  # candidates: time ends it


def main() -> None:
    """Search, fine-tune, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="where the runs are")
    parser.add_argument("--seconds", type=float, default=3600.0, help="for each search")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--method", default="gnn-rl")
    parser.add_argument("--epochs", type=int, default=10, help="of fine-tuning")
    parser.add_argument("--json", help="write the figures to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    source = Source(network="resnet20", dataset="cifar10")
    network, data = source.load()
    costs, recipe = Costs(trace(network, data.input_shape)), Recipe(epochs=arguments.epochs)
    rows = []
    for seed in arguments.seeds:
        for name in arguments.ways:
            out = arguments.out / f"{name.replace(' ', '_')}-{seed}"
            if not (out / "row.json").exists():
                about = WAYS[name] | {
                    "method": arguments.method, "seed": seed, "precision": "bfloat16",
                    "device": "cpu",
                }  # fmt: skip
                seconds = timed(network, data, source, out, arguments.seconds, about)
                run = Run.open(out)
                widths = list(run.best()["groups"].values())
                winner = rebuild(run.storage, network, costs.groups, "pruned")
                finetune(run, winner, data, recipe, dense=network, groups=costs.groups,
                         seed=seed)  # fmt: skip
                row = {
                    "way": name, "seed": seed, "candidates": len(run.journal),
                    "seconds": seconds, "epochs": recipe.epochs,
                    "score": run.best()["accuracy"],
                    "tuned": measure(winner, data, costs, widths),
                }  # fmt: skip
                (out / "row.json").write_text(json.dumps(row))
            rows.append(json.loads((out / "row.json").read_text()))
            print(json.dumps(rows[-1]), flush=True)
    if arguments.json:
        found = {"machine": machine(), "method": arguments.method, "rows": rows}
        Path(arguments.json).write_text(json.dumps(found, indent=1) + "\n")


def timed(network, data, source, out, seconds, settings) -> float:
    """Search for so many CPU seconds; return how many it took."""
    finalists = settings.pop("finalists", 0)
    begin, share = time.process_time(), 1 - _FINALE if finalists else 1.0

    def stop(done: int, best: object) -> None:
        if time.process_time() - begin >= share * seconds:
            raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        search(network, data, out=out, overwrite=True, source=source, on_episode=stop,
               episodes=_ENDLESS, progress=False, **settings)  # fmt: skip
    if finalists:
        done = len(Run.open(out).journal)
        search(network, data, out=out, resume=True, episodes=done, finalists=finalists,
               progress=False)  # fmt: skip
    return time.process_time() - begin


if __name__ == "__main__":
    main()
