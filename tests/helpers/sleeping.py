"""A search whose candidates take as long as they like, for tests of what goes wrong.

Run as a program, it is a driver that can be killed.
"""

import argparse
import contextlib
import json
import os
import time
from pathlib import Path

import numpy as np
import ray
import torch

from gnnrl_ray import load_data, search
from gnnrl_ray.jobs import searching
from gnnrl_ray.scoring.objective import Objective
from gnnrl_ray.scoring.outcome import Outcome
from gnnrl_ray.zoo.resnet import ResNet


class Sleepy(Objective):
    """Sleeps instead of scoring, and writes down what it did in ``folder``.

    Attributes:
        folder: ``scored`` has a line for each candidate that was scored to the end; a file
            called ``hang`` makes whoever finds it first hang.
        least: shortest sleep in seconds.
        most: longest.
    """

    folder = Path(os.environ.get("SLEEPY", "."))
    least, most = 0.2, 2.0

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.folder, self.least, self.most = Sleepy.folder, Sleepy.least, Sleepy.most

    def __call__(self, widths):
        key = tuple(int(w) for w in widths)
        if key not in self._known:
            with contextlib.suppress(FileNotFoundError):
                (self.folder / "hang").unlink()
                time.sleep(1e6)
            generator = np.random.default_rng(list(key))
            seconds = generator.uniform(self.least, self.most)
            time.sleep(seconds)
            accuracy = float(generator.random())
            costs = self.budget.costs
            self._known[key] = Outcome(
                key, int(costs.macs(widths)), int(costs.params(widths)),
                accuracy, accuracy - 1, seconds,
            )  # fmt: skip
            node = ray.get_runtime_context().get_node_id()
            line = json.dumps({"node": node, "widths": key}) + "\n"
            with (self.folder / "scored").open("a") as file:
                file.write(line)
        return self._known[key]


class Broken(Objective):
    """Scores nothing."""

    def __call__(self, widths):
        raise ZeroDivisionError("no")


AGENT = {
    "warmup_episodes": 10, "updates_per_step": 2, "hidden": (16,), "graph_dim": 8,
}  # fmt: skip


def run(out, **settings):
    """Search, with ResNet-8 and digits."""
    torch.manual_seed(0)
    searching.Objective = Sleepy
    settings = {
        "precision": "plain", "finetune": "none", "agent": AGENT,
        "cpus_per_env_runner": 0.25, "device": "cpu",
    } | settings  # fmt: skip
    return search(ResNet(8).eval(), load_data("digits"), out=out, **settings)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("--episodes", type=int)
    parser.add_argument("--env-runners", type=int)
    parser.add_argument("--episode-timeout", type=float, default=0.0)
    parser.add_argument("--address")
    parser.add_argument("--least", type=float, default=0.2)
    parser.add_argument("--most", type=float, default=2.0)
    arguments = vars(parser.parse_args())
    Sleepy.least, Sleepy.most = arguments.pop("least"), arguments.pop("most")
    arguments["resume"] = (Path(arguments["out"]) / "run.json").exists()
    run(**arguments)


if __name__ == "__main__":
    main()
