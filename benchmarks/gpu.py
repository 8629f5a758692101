"""A GPU for a few minutes, used fully: steps that leave what they found, and can go on.

    python -m benchmarks.gpu --out DIR [--seconds 540] [--runs DIR] [--try]

Each step writes ``DIR/NAME.json`` when it is done; called again, those that are there are
skipped, so a few calls of nine minutes come to the end. The most valuable come first. On an
H100 and 16 cores, ``evaluation`` took 20 s and ``search`` 90 s (ResNet-56), and Python 6 s
before that; fine-tuning takes what ``together`` says: 3.3 ms a step of ResNet-56, so 130 s
for 100 epochs of each network. It stops when time is up, and the next call goes on.
Winners of searches are taken from ``--runs`` (``NETWORK-METHOD/best.json``, found before
on a CPU), or searched.
``--try`` runs all of it with the smallest numbers, on a CPU too.
"""

import argparse
import copy
import faulthandler
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from benchmarks.measuring import Row, load, macs_per_second, mean, row, seconds
from benchmarks.run import machine
from gnnrl_ray import Budget, Objective, Source, accuracy, load_data, prune, search, trace
from gnnrl_ray.data import Data
from gnnrl_ray.jobs.comparing import Comparison, compare
from gnnrl_ray.pruning.importance import rank
from gnnrl_ray.pruning.removal import keep, remove
from gnnrl_ray.scoring.evaluation import Evaluator
from gnnrl_ray.scoring.masking import MaskedEvaluator
from gnnrl_ray.scoring.padding import Padded, padded
from gnnrl_ray.scoring.training import (
    Training,
    TrainingStep,
    in_turns,
    recalibrate,
    steps_per_epoch,
    train,
)
from gnnrl_ray.tracing.groups import ChannelGroups
from gnnrl_ray.zoo.weights import read_facts, read_weights


@dataclass(frozen=True)
class Size:
    """How much is done."""

    networks: tuple[str, ...] = ("resnet56", "resnet20")
    dataset: str = "cifar10"
    episodes: int = 180
    epochs: int = 100
    repeats: int = 5
    winners: tuple[str, ...] = tuple(
        f"{network}-{method}"
        for network in ("resnet20", "resnet56")
        for method in (*["gnn-rl"] * 3, "inside", "uniform")
    )
    together: tuple[int, ...] = (3, 6)
    actors: tuple[int, ...] = (1, 2, 4)
    epoch_episodes: int = 4
    deep: str = "resnet110"
    deep_epochs: int = 160
    distill: float = 0.0
    compared: tuple[str, ...] = ("resnet56", "resnet20", "resnet44", "resnet32")
    methods: tuple[str, ...] = ()  # of those in the files; default: all
    at_once: int = 6


TINY = Size(
    ("resnet20",), "digits", 4, 1, 2, ("resnet20-inside", "resnet20-gnn-rl") * 2, (1, 2),
    (1,), 1, "resnet20", 1, 0.0, ("resnet20",), ("random", "uniform"), 2,
)  # fmt: skip


@dataclass(frozen=True)
class Bench:
    """Where and how large."""

    size: Size
    device: torch.device
    runs: Path
    out: Path
    until: float = float("inf")

    def data(self) -> Data:
        """Return the data set, on the device."""
        return load_data(self.size.dataset).to(self.device)

    def steps(self) -> Iterator[tuple[str, Callable[[], object]]]:
        """Yield names and work, the most valuable first."""
        size = self.size
        yield "tests", self.tests
        for network in size.networks:
            yield f"evaluation-{network}", partial(self.evaluation, network)
            yield f"search-{network}", partial(self.searching, network)
            yield f"training-{network}", partial(self.training, network)
            for count in size.together:
                work = partial(self.together, network, count)
                yield f"together-{network}-{count}", work
        yield "actors", partial(self.actors, size.networks[0])
        for winner in dict.fromkeys(size.winners):
            yield f"winner-{winner}", partial(self.winning, winner)
        yield "finetune", self.finetuning
        for network in size.compared:
            yield f"methods-{network}", partial(self.comparing, network)
        yield f"train-{size.deep}", partial(self.train_deep, size.deep)
        yield f"search-{size.deep}", partial(self.searching, size.deep)

    def tests(self) -> dict:
        """Run what is marked ``gpu``."""
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-m",
            "gpu",
            "-q",
            "-n",
            "0",
            "-p",
            "no:cacheprovider",
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        (self.out / "tests.txt").write_text(done.stdout + done.stderr)
        return {"code": done.returncode, "said": done.stdout.strip().splitlines()[-1:]}

    def evaluation(self, name: str) -> list[Row]:
        """Candidates in steady state, beside the plain way."""
        data, network = self.data(), self.network(name)
        groups = trace(network, data.input_shape)
        objective = Objective(network, groups, data, budget=0.5).to(self.device)
        mode, images = objective.choose(), len(data.validation)
        generator = np.random.default_rng(0)
        ratios = generator.random((self.size.repeats, len(groups.widths)))
        every = [objective.budget.reach(row) for row in ratios]
        plain_form = replace(mode, precision="plain", masked=False)
        plain = Evaluator(data.validation, plain_form)
        objective._score(every[0])

        def eager() -> list[float]:
            scores = []
            for widths in every:
                smaller = prune(network.to(self.device), groups, widths)
                recalibrate(smaller, data.train)
                scores.append(plain(smaller.eval()).accuracy)
            return scores

        def ours() -> list[float]:
            return [objective._score(widths).accuracy for widths in every]

        off = max(abs(a - b) for a, b in zip(eager(), ours(), strict=True))
        slow, fast = seconds(eager, ours, n=3)
        count = len(every)
        rows = [
            row(f"candidate, {mode}", name, [1e3 * s / count for s in fast], "ms",
                plain=mean(slow) / mean(fast), largest_difference=off),
            row("candidate, plain", name, [1e3 * s / count for s in slow], "ms"),
        ]  # fmt: skip
        if mode.masked:
            only = MaskedEvaluator(network.to(self.device), groups, data, mode, False, 0)
            kept = objective.kept(groups.widths)
            for _ in range(5):
                only(kept)
            (times,) = seconds(lambda: only(kept), n=20)
            work = images * objective.budget.costs.dense
            rate = macs_per_second(getattr(torch, mode.precision), self.device)
            rows.append(row(f"{images} images, dense, {mode}", name,
                            [1e3 * s for s in times], "ms",
                            limit=work / rate / mean(times)))  # fmt: skip
        return rows

    def training(self, name: str) -> list[Row]:
        """An epoch at half the MACs, beside replays of the captured step alone."""
        data, half = self.data(), self.half(name)
        network, groups, kept = half
        smaller = remove(*half).to(self.device)
        steps = steps_per_epoch(data.train)
        images, labels = next(data.train.batches(128, self.generator()))
        rate = torch.tensor(1e-4, device=self.device)
        wider = Padded(copy.deepcopy(smaller), *half)

        def captured(which: torch.nn.Module, hold: Callable | None) -> Callable[[], None]:
            step = TrainingStep(which.train(), precision="bfloat16", device=self.device,
                                static=True, hold=hold)  # fmt: skip
            for _ in range(5):
                step(images, labels, rate)
            ((_, replay),) = step._memory.values()

            def bare() -> None:
                for _ in range(steps):
                    replay()
                step._loss.item()

            return bare

        def ours() -> None:
            with padded(smaller, network, groups, kept) as (trained, hold):
                train(trained, data.train, steps=steps, lr=1e-4, precision="bfloat16",
                      hold=hold)  # fmt: skip
            self.wait()

        whole, zeros, without = seconds(
            ours, captured(wider.network, wider.hold),
            captured(copy.deepcopy(smaller), None), n=3,
        )  # fmt: skip
        return [row("fine-tuning epoch, keep 0.5", name, whole, "s",
                    bare=mean(whole) / mean(zeros)),
                row("replays of the step alone, among zeros", name, zeros, "s"),
                row("replays of the step alone, removed", name, without, "s",
                    among_zeros=mean(without) / mean(zeros))]  # fmt: skip

    def together(self, name: str, count: int) -> list[Row]:
        """Steps of several networks side by side, in steady state."""
        data, half = self.data(), self.half(name)
        each = [Padded(remove(*half).to(self.device), *half) for _ in range(count)]
        going = [Training(one.network, data.train, steps=100, lr=1e-4, hold=one.hold,
                          precision="bfloat16") for one in each]  # fmt: skip
        in_turns([itertools.islice(one, 10) for one in going], self.device)
        start = time.perf_counter()
        in_turns([itertools.islice(one, 50) for one in going], self.device)
        spent = time.perf_counter() - start
        return [row(f"{count} side by side, a step of each", name,
                    [1e3 * spent / 50 / count], "ms")]  # fmt: skip

    def searching(self, name: str) -> list[Row]:
        """A whole search without fine-tuning."""
        folder, data = self.out / f"{name}-gnn-rl", load_data(self.size.dataset)
        inside = 0.0
        tried = Objective._tried

        def timed(self_: Objective, widths: np.ndarray) -> tuple:
            nonlocal inside
            start = time.perf_counter()
            result = tried(self_, widths)
            inside += time.perf_counter() - start
            return result

        Objective._tried = timed
        start = time.perf_counter()
        try:
            best = search(self.network(name), data, episodes=self.size.episodes,
                          device=str(self.device), out=folder, overwrite=True,
                          progress=False).best  # fmt: skip
        finally:
            Objective._tried = tried
        total = time.perf_counter() - start
        return [row(f"search, {self.size.episodes} episodes", name, [total], "s",
                    outside_evaluation=1 - inside / total,
                    accuracy=best.accuracy)]  # fmt: skip

    def winning(self, name: str) -> dict:
        """What a method finds, unless that was brought along."""
        best = json.loads((self.winner(name) / "best.json").read_text())
        return {key: best[key] for key in ("macs_ratio", "accuracy")}

    def finetuning(self) -> list[dict]:
        """Fine-tune all winners together; one that is named again, with another seed.

        Where time is up, it is gone on with by the next call.
        """
        data = self.data()
        epoch = steps_per_epoch(data.train)
        steps = self.size.epochs * epoch
        runs, going, states = [], [], []
        for number, winner in enumerate(self.size.winners):
            name, _, method = winner.partition("-")
            network, seed = self.network(name), self.size.winners[:number].count(winner)
            groups = trace(network, data.input_shape)
            dense = copy.deepcopy(network).to(self.device) if self.size.distill else None
            best = json.loads((self.winner(winner) / "best.json").read_text())
            kept = tuple(np.array(best["kept"][group]) for group in groups.names)
            smaller = remove(network, groups, kept).to(self.device)
            recalibrate(smaller, data.train)
            wider = Padded(smaller, network, groups, kept)
            run = {"network": name, "method": method, "seed": seed,
                   "epochs": self.size.epochs, "distill": self.size.distill,
                   "macs_ratio": best["macs_ratio"],
                   "before": best["accuracy"], "last_epochs": [], "seconds_of_all": 0.0,
                   "recalibrated": accuracy(smaller, data.validation)}  # fmt: skip
            look = partial(self.look, wider.network, data, steps - 3 * epoch, run)
            training = Training(wider.network, data.train, steps=steps, seed=seed,
                                precision="bfloat16", hold=wider.hold, teacher=dense,
                                distill=self.size.distill, on_step=look)  # fmt: skip
            states.append(self.out / f"{winner}-{seed}.safetensors")
            if states[-1].is_file():
                training.go_on_from(read_weights(states[-1]))
                run |= json.loads(read_facts(states[-1])["run"])
            runs.append(run)
            going.append(training)
        start = time.perf_counter()
        in_turns([self.in_time(training) for training in going], self.device)
        for run, training, state in zip(runs, going, states, strict=True):
            run["seconds_of_all"] += time.perf_counter() - start
            said = {"run": json.dumps(run)}
            save_file(training.state(), state, said)
        if any(training.done < steps for training in going):
            done = min(training.done for training in going) // epoch
            raise TimeoutError(f"{done} of {self.size.epochs} epochs; call again")
        return [run | run["last_epochs"][-1] for run in runs]

    def in_time(self, training: Training) -> Iterator[None]:
        """Go through ``training`` while there is time."""
        for each in training:
            yield each
            if time.monotonic() > self.until:
                return

    def look(
        self, network: torch.nn.Module, data: Data, after: int, run: dict, step: int,
        loss: float,
    ) -> None:  # fmt: skip
        """Measure ``network`` at the end of each of the last epochs."""
        epoch = steps_per_epoch(data.train)
        if step % (10 * epoch) == 0:
            about = f"{run['network']} {run['method']} {run['seed']}"
            print(f"{about}: {step // epoch}, {loss:.3f}", flush=True)
        if step % epoch == 0 and step > after:
            parts = ("test", "holdout", "validation")
            scores = {part: accuracy(network, getattr(data, part)) for part in parts}
            run["last_epochs"].append(scores)
            network.train()

    def actors(self, name: str) -> list[Row]:
        """Episodes of one epoch on actors that share the GPU, in one Ray."""
        import ray

        folder = self.out.resolve()

        def stacks() -> None:  # tell where time is lost between processes
            write_stacks(folder)

        stacks()
        if not ray.is_initialized():
            ray.init(include_dashboard=False, log_to_driver=False,
                     runtime_env={"worker_process_setup_hook": stacks})  # fmt: skip
        return [self.sharing(name, count) for count in self.size.actors]

    def sharing(self, name: str, count: int) -> Row:
        """Episodes of one epoch an hour on ``count`` actors."""
        folder, ends = self.out / f"actors-{count}", []
        share = 1 / count if self.device.type == "cuda" else 0
        search(
            self.network(name), load_data(self.size.dataset), finetune="epoch",
            episodes=2 * count + self.size.epoch_episodes, env_runners=count,
            gpus_per_env_runner=share, out=folder, overwrite=True,
            on_episode=lambda done, best: ends.append(time.perf_counter()),
        )  # fmt: skip
        hourly = 3600 * (len(ends) - count - 1) / (ends[-1] - ends[count])
        return row(f"episodes of one epoch, {count} actors", name, [hourly], "per hour")

    def comparing(self, name: str) -> dict:
        """The searches of ``methods_NAME.toml`` that have no row yet, beside each other.

        Rows are in ``DIR/methods_NAME/rows``; a call that is cut short has those that were
        done, and the next one goes on.
        """
        here, out = Path(__file__).parent, self.out / f"methods_{name}"
        rows, size = here / "results" / out.name / "rows", self.size
        if rows.is_dir() and not size.methods:
            shutil.copytree(rows, out / "rows", dirs_exist_ok=True)
        file = Comparison.read(here / f"{out.name}.toml")
        comparison = replace(
            file, methods=list(size.methods or file.methods),
            search=file.search | {"dataset": size.dataset, "episodes": size.episodes,
                                  "device": self.device.type},
        )  # fmt: skip
        self.network(name)  # its weights are made once, and not by every search
        share = 1 / size.at_once if self.device.type == "cuda" else 0
        table = compare(comparison, str(out), at_once=size.at_once, gpus=share)
        failed = [] if "error" not in table else table["error"].dropna().tolist()
        return {"rows": len(table), "failed": failed}

    def train_deep(self, name: str) -> dict:
        """Train a network whose weights cannot be fetched here."""
        about, epochs = (
            Source(network=name, dataset=self.size.dataset),
            self.size.deep_epochs,
        )
        begun = about.checkpoint(epochs=epochs).exists()
        command = [sys.executable, "-m", "gnnrl_ray", "train", "--network", name,
                   "--dataset", about.dataset, "--epochs", str(epochs), "--json",
                   *["--resume"] * begun]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return json.loads(done.stdout)

    def half(
        self, name: str
    ) -> tuple[torch.nn.Module, ChannelGroups, tuple[np.ndarray, ...]]:
        """Return a network, its groups, and what is kept at half the MACs, all alike."""
        network = self.network(name).to(self.device)
        groups = trace(network, self.data().input_shape)
        budget = Budget(groups, {"flops": 0.5})
        widths = budget.project(groups.widths, budget.min_widths)
        return network, groups, keep(rank(network, groups, "l2"), widths)

    def wait(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def network(self, name: str) -> torch.nn.Module:
        """Return the trained network."""
        return load(name, load_data(self.size.dataset))

    def generator(self) -> torch.Generator:
        """Return one of the device."""
        return torch.Generator(self.device).manual_seed(0)

    def winner(self, name: str) -> Path:
        """Return a finished run, NETWORK-METHOD, searched here if there is none."""
        for folder in (self.runs, self.out):
            if (folder / name / "best.json").is_file():
                return folder / name
        network, _, method = name.partition("-")
        search(self.network(network), load_data(self.size.dataset), method=method,
               episodes=self.size.episodes, device=str(self.device),
               out=self.out / name, overwrite=True)  # fmt: skip
        return self.out / name


def write_stacks(folder: Path, every: float = 20.0) -> None:
    """Write what this process is at to ``folder``/stacks/PID.txt, every so many seconds."""
    (folder / "stacks").mkdir(parents=True, exist_ok=True)
    file = (folder / "stacks" / f"{os.getpid()}.txt").open("w")  # for as long as it lives
    faulthandler.dump_traceback_later(every, repeat=True, file=file)


def main() -> None:
    """Run the steps that are still to be done, while there is time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("benchmarks/results/winners"))
    parser.add_argument("--seconds", type=float, default=540, help="until all stops")
    parser.add_argument("--only", help="steps whose names begin with it")
    parser.add_argument("--epochs", type=int, help="of fine-tuning")
    parser.add_argument("--distill", type=float, default=0.0, help="of fine-tuning")
    parser.add_argument("--winners", help="NETWORK-METHOD,..., again for every seed")
    parser.add_argument("--try", dest="tiny", action="store_true", help="smallest numbers")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not arguments.tiny:
        parser.error("no CUDA device; --try runs on a CPU.")
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.tiny:  # what it trains is good for nothing else
        os.environ["GNNRL_HOME"] = str(arguments.out / "home")
    (arguments.out / "machine.json").write_text(json.dumps(machine(), indent=1))
    size = TINY if arguments.tiny else Size()
    if arguments.epochs:
        size = replace(size, epochs=arguments.epochs)
    size = replace(size, distill=arguments.distill)
    if arguments.winners:
        size = replace(size, winners=tuple(arguments.winners.split(",")))
    until = time.monotonic() + arguments.seconds
    bench = Bench(size, device, arguments.runs, arguments.out, until)
    for name, work in bench.steps():
        path = arguments.out / f"{name}.json"
        if path.is_file() or not name.startswith(arguments.only or ""):
            continue
        if time.monotonic() > until:
            print(f"no time for {name}; call again")
            break
        began = time.monotonic()
        try:
            found = work()
        except Exception as error:
            # The others are worth their time; this one is tried again by the next call.
            print(f"{name} FAILED: {type(error).__name__}: {error}", flush=True)
            continue
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(found, indent=1))
        partial.replace(path)
        print(f"{name} ({time.monotonic() - began:.0f} s): {json.dumps(found)}", flush=True)
    else:
        print("all done")
    free = shutil.disk_usage(arguments.out).free
    print(f"{free / 1e9:.0f} GB free")


if __name__ == "__main__":
    main()
