"""A score that costs nothing: agents and opponents on what is known of many candidates.

    python -m benchmarks.surrogate collect FILE --network resnet20 [--runs RUN ...]
    python -m benchmarks.surrogate fit FILE [--json FILE]
    python -m benchmarks.surrogate search FILE [--method gnn-rl] [--seeds 7 8] [--agent K=V]

``collect`` scores candidates of a network for CIFAR-10 and appends them to FILE, a line of
JSON each, after those that the journals of RUN hold: half of them anywhere, half near the
best tenth. ``fit`` says how well a Gaussian process (Matern 5/2 over logarithms of the
shares kept, a length for each group) predicts a fifth that it has not seen. ``search`` lets
a method search with what it predicts in place of accuracy, some milliseconds a candidate:
for tuning, with seeds that no result is reported of. With ``--rough``, every candidate is
off by chance, always by as much, as those are that the process has seen: without it, near
relatives can be told apart as they cannot with real scores.
"""

import argparse
import json
import tempfile
import time
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel
from tqdm import tqdm

from gnnrl_ray import Budget, Objective, SearchSettings, Source, trace
from gnnrl_ray.agent.candidates import Candidates
from gnnrl_ray.graph.facts import GroupFacts
from gnnrl_ray.graph.hierarchy import HierarchicalGraph
from gnnrl_ray.methods import method_of
from gnnrl_ray.run.directory import Run
from gnnrl_ray.run.task import Task
from gnnrl_ray.scoring.evaluation import Score
from gnnrl_ray.storage import Storage

_LEARNT = 800  # candidates that lengths are fitted to; the others are only known
_TRAINED = 0.8  # share of the candidates that the others are predicted from
_MARKS = (5, 10, 20, 30, 40, 60, 90, 120, 150, 180)


class Surrogate:
    """A Gaussian process: widths -> accuracy, between 0 and 1.

    Args:
        dense: int [G], widths of the network.
        widths: int [H, G], what has been scored.
        accuracies: float [H].
    """

    def __init__(
        self, dense: np.ndarray, widths: np.ndarray, accuracies: np.ndarray
    ) -> None:
        self._dense = dense
        some = np.random.default_rng(0).permutation(len(widths))[:_LEARNT]
        inputs = np.log(widths / dense)
        clipped = accuracies.clip(1e-3, 1 - 1e-3)
        wanted = np.log(clipped / (1 - clipped))
        kernel = ConstantKernel() * Matern(np.ones(len(dense)), nu=2.5) + WhiteKernel(0.01)
        learnt = GaussianProcessRegressor(kernel, normalize_y=True)
        learnt.fit(inputs[some], wanted[some])
        self._process = GaussianProcessRegressor(
            learnt.kernel_, optimizer=None, normalize_y=True
        ).fit(inputs, wanted)

    def __call__(self, widths: np.ndarray, rough: bool = False) -> np.ndarray:
        """Return the accuracies float [N] of ``widths`` int [N, G]."""
        found = self._process.predict(np.log(np.asarray(widths) / self._dense))
        if rough:
            noise = self._process.kernel_.k2.noise_level * self._process._y_train_std**2
            found = found + noise**0.5 * np.array([_chance(row) for row in widths])
        return 1 / (1 + np.exp(-found))


def _chance(widths: np.ndarray) -> float:
    """Return a normal number that follows from the widths."""
    seed = zlib.crc32(np.asarray(widths, np.int64).tobytes())
    return np.random.default_rng(seed).normal()


class Predicted(Objective):
    """An objective that believes a surrogate."""

    surrogate: Surrogate
    rough = False

    def _score(self, widths: Sequence[int]) -> Score:
        found = float(self.surrogate(np.asarray(widths)[None], self.rough)[0])
        return Score(found, len(self._data.validation))


def collect(arguments: argparse.Namespace) -> None:
    """Score candidates, and append them to the file."""
    objective = _objective(arguments.network, arguments.flops, Objective)
    objective.choose("bfloat16")
    groups, budget, path = objective.groups, objective.budget, arguments.file
    widths, accuracies = known(path) if path.exists() else ([], [])
    seen = {tuple(row) for row in widths}
    rows = list(zip(map(tuple, widths), accuracies, strict=True))
    generator = np.random.default_rng(len(rows))
    facts = GroupFacts.of(
        HierarchicalGraph(groups), objective.scores, objective.sensitivities
    )
    candidates = Candidates(budget, facts)

    def add(widths: Sequence[int], accuracy: float) -> None:
        key = tuple(int(width) for width in widths)
        if key in seen:
            return
        seen.add(key)
        rows.append((key, accuracy))
        line = {"widths": list(key), "accuracy": accuracy}
        if not path.exists():
            about = {"network": arguments.network, "flops": arguments.flops}
            path.write_text(json.dumps(about) + "\n")
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    for folder in arguments.runs:
        for _, outcome in Run.open(folder).journal:
            if outcome.images is None:
                add(outcome.widths, outcome.accuracy)
    for number in tqdm(range(arguments.count)):
        if number % 2 or len(rows) < 20:
            ratios = candidates.anywhere(1, generator)[0]
        else:
            best = sorted(rows, key=lambda row: -row[1])[: max(1, len(rows) // 10)]
            middle = np.array(best[generator.integers(len(best))][0]) / groups.widths
            moved = generator.random(len(middle)) < generator.uniform(0.1, 1)
            ratios = 1 - middle + moved * generator.normal(0, 0.15, len(middle))
        found = budget.reach(ratios.clip(0, 1))
        add(found, objective.accuracy(found))


def fit(arguments: argparse.Namespace) -> None:
    """Say how good the surrogate is on candidates that it has not seen."""
    widths, accuracies = known(arguments.file)
    order = np.random.default_rng(0).permutation(len(widths))
    cut = int(_TRAINED * len(order))
    trained, held = order[:cut], order[cut:]
    surrogate = Surrogate(widths.max(0), widths[trained], accuracies[trained])
    found, truth = surrogate(widths[held]), accuracies[held]
    best = truth >= np.quantile(truth, 0.9)
    report = {
        "file": arguments.file.name, "trained on": len(trained), "held out": len(held),
        "R2": 1 - ((found - truth) ** 2).mean() / truth.var(),
        "rank correlation": spearmanr(found, truth).statistic,
        "rank correlation, best tenth": spearmanr(found[best], truth[best]).statistic,
    }  # fmt: skip
    print(json.dumps(report, indent=1))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(report, indent=1) + "\n")


def search(arguments: argparse.Namespace) -> None:
    """Let a method search on the surrogate, once for every seed."""
    about = json.loads(arguments.file.open().readline())
    objective = _objective(about["network"], about["flops"], Predicted)
    objective.surrogate = Surrogate(objective.groups.widths, *known(arguments.file))
    objective.rough = arguments.rough
    rows = []
    for seed in arguments.seeds:
        settings = SearchSettings(
            method=arguments.method, flops=about["flops"], episodes=arguments.episodes,
            seed=seed, device="cpu", agent=dict(map(_pair, arguments.agent)),
        )  # fmt: skip
        objective._known.clear()
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            run = Run.create(Storage(folder), settings, Source(), 10, {}, True)
            method_of(settings.method)(Task(objective, run)).run()
            found = np.maximum.accumulate([outcome.accuracy for _, outcome in run.journal])
            best = max((o for _, o in run.journal), key=lambda o: o.accuracy)
            (smooth,) = objective.surrogate(np.array([best.widths]))
        row = {
            "method": arguments.method, "agent": arguments.agent, "seed": seed,
            "best": {mark: round(100 * found[mark - 1], 2)
                     for mark in _MARKS if mark <= len(found)},
            "without chance": round(100 * float(smooth), 2),
            "seconds": round(time.perf_counter() - start, 1),
        }  # fmt: skip
        print(json.dumps(row), flush=True)
        rows.append(row)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(rows, indent=1) + "\n")


def known(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return widths int [H, G] and accuracies [H] that ``path`` holds."""
    rows = [json.loads(line) for line in path.read_text().splitlines()[1:]]
    widths = np.array([row["widths"] for row in rows])
    return widths, np.array([row["accuracy"] for row in rows])


def _pair(text: str) -> tuple[str, object]:
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _objective(name: str, flops: float, kind: type[Objective]) -> Objective:
    network, data = Source(network=name, dataset="cifar10").load()
    groups = trace(network, data.input_shape)
    return kind(network, groups, data, budget=Budget(groups, {"flops": flops}))


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    for command in (collect, fit, search):
        one = commands.add_parser(command.__name__, help=command.__doc__)
        one.set_defaults(command=command)
        one.add_argument("file", type=Path, help="candidates with their accuracies")
        if command is collect:
            one.add_argument("--runs", nargs="*", default=[], help="to take over")
            one.add_argument("--network", default="resnet20")
            one.add_argument("--flops", type=float, default=0.5)
            one.add_argument("--count", type=int, default=1000)
            continue
        one.add_argument("--json", help="write the figures to this file")
        if command is search:
            one.add_argument("--method", default="gnn-rl")
            one.add_argument("--seeds", type=int, nargs="+", default=[7, 8])
            one.add_argument("--episodes", type=int, default=180)
            one.add_argument("--agent", action="append", default=[])
            one.add_argument(
                "--rough", action="store_true", help="off by chance, as scores"
            )
    torch.set_num_threads(1)
    arguments = parser.parse_args()
    arguments.command(arguments)


if __name__ == "__main__":
    main()
