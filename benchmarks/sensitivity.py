"""How sure one can be of how sensitive the loss is to each group, and what that is worth.

    python -m benchmarks.sensitivity --network resnet20 --json FILE

For each way of taking it, images in all and at once, and the mean over batches: how alike
it is with other seeds (mean correlation of the standardised logarithms), and the accuracy
of one candidate that keeps the more of a group the more sensitive the loss is to it.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from gnnrl_ray import Budget, Objective, Source, trace
from gnnrl_ray.agent.candidates import Candidates
from gnnrl_ray.graph.facts import GroupFacts
from gnnrl_ray.graph.hierarchy import HierarchicalGraph
from gnnrl_ray.pruning.importance import sensitivities

WAYS = ((256, 256, "one batch"), (256, 8, "arithmetic"), (256, 8, "geometric"),
        (1024, 8, "geometric"))  # fmt: skip


def main() -> None:
    """Measure every way, and print a row of each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="resnet20")
    parser.add_argument("--flops", type=float, default=0.5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    network, data = Source(network=arguments.network, dataset="cifar10").load()
    groups = trace(network, data.input_shape)
    budget = Budget(groups, {"flops": arguments.flops})
    objective = Objective(network, groups, data, budget=budget)
    objective.choose("bfloat16")
    graph, rows = HierarchicalGraph(groups), []
    for images, at_once, mean in tqdm(WAYS):
        every, accuracies = [], []
        for seed in arguments.seeds:
            batches = data.train.sample(images, at_once, seed)
            found = sensitivities(objective.network, groups, batches)
            geometric = mean == "geometric"
            found = np.exp(np.log(found).mean(0)) if geometric else found.mean(0)
            facts = GroupFacts.of(graph, objective.scores, found)
            every.append(facts.sensitivity)
            accuracies.append(objective.accuracy(Candidates(budget, facts).rules[0]))
        apart = np.triu_indices(len(every), 1)
        rows.append({
            "network": arguments.network, "flops": arguments.flops, "images": images,
            "at once": at_once, "mean": mean, "seeds": arguments.seeds,
            "correlation": round(float(np.corrcoef(every)[apart].mean()), 3),
            "accuracies": [round(100 * accuracy, 2) for accuracy in accuracies],
            "accuracy": round(100 * float(np.mean(accuracies)), 2),
        })  # fmt: skip
        print(json.dumps(rows[-1]), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
