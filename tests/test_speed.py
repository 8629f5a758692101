import itertools
import json
import platform
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

from gnnrl_ray import search
from gnnrl_ray.commands import measure, networks
from gnnrl_ray.display.paper import accuracy_sheet, speed_sheet
from gnnrl_ray.errors import InputError
from gnnrl_ray.run.directory import Run
from gnnrl_ray.scoring.speed import measure_speed


class Sleepy(nn.Module):
    """Takes a while, and so much memory."""

    def __init__(self, seconds, megabytes):
        super().__init__()
        self.seconds, self.megabytes = seconds, megabytes
        self.weight = nn.Parameter(torch.zeros(250_000))  # 1 MB

    def forward(self, x):
        held = torch.ones(250_000 * self.megabytes)
        time.sleep(self.seconds)
        return x.mean() + held[0]


def test_times_and_memory_are_what_was_taken():
    networks = {"slow": Sleepy(0.02, 40), "fast": Sleepy(0.005, 4)}
    found = measure_speed(networks, (3, 10, 10), batch=4, rounds=8)
    for name, network in networks.items():
        assert found[name]["rounds"] == 8
        assert found[name]["median_ms"] >= network.seconds * 1e3
        assert found[name]["p95_ms"] >= found[name]["median_ms"]
        least = (1 + network.megabytes) * 1e6 + 4 * 4 * 300
        assert least <= found[name]["memory"] <= 1.1 * least + 1e5
        rate = 4e3 / found[name]["median_ms"]
        assert found[name]["per_second"] == pytest.approx(rate)
    assert found["slow"]["median_ms"] > 2 * found["fast"]["median_ms"]


def test_networks_take_turns_forth_and_back():
    """Or what a busy machine takes every few milliseconds would be one network's alone."""
    called, networks = [], {}
    for name in ("dense", "pruned", "finetuned"):
        networks[name] = nn.Identity()
        networks[name].register_forward_hook(lambda *_, name=name: called.append(name))
    measure_speed(networks, (3, 4, 4), batch=1, rounds=30, memory=False)
    turns = [called[i : i + 3] for i in range(0, len(called), 3)][-30:]
    assert all(sorted(turn) == sorted(networks) for turn in turns)
    assert all(turn == before[::-1] for before, turn in itertools.pairwise(turns))


def test_what_takes_long_has_fewer_rounds():
    slow = {"slow": Sleepy(0.01, 1)}
    found = measure_speed(slow, (3, 8, 8), batch=1, rounds=50, seconds=0.01)
    assert found["slow"]["rounds"] == 5


def test_a_batch_that_does_not_fit_is_said():
    with pytest.raises(InputError, match="--batch 10000000000000 does not fit in memory"):
        measure_speed({"a": Sleepy(0, 1)}, (3, 100, 100), batch=10**13, rounds=5)


def test_the_command_keeps_what_it_measured_for_the_tables(
    network, groups, digits, tmp_path, monkeypatch, capsys
):
    search(network, digits, method="uniform", finetune="none", precision="float32",
           flops=0.3, out=tmp_path / "run")  # fmt: skip
    run = Run.open(tmp_path / "run")
    assert speed_sheet([run]) is None
    from gnnrl_ray import Costs

    monkeypatch.setattr(networks, "of_run", lambda *_: (network, digits, Costs(groups)))
    measure.measure_command(str(tmp_path / "run"), batch=[1, 32], rounds=5, threads=1,
                            device="cpu", as_json=True)  # fmt: skip
    rows = json.loads(capsys.readouterr().out)
    assert rows.keys() == {"dense", "pruned"}
    for size in ("1", "32"):
        dense, pruned = (rows[name]["speed"][size] for name in ("dense", "pruned"))
        assert pruned["memory"] < dense["memory"]
    assert Run.open(tmp_path / "run").measures() == rows
    # What else is measured stands beside it.
    run.measured({"dense": {"test": 0.9}, "pruned": {"test": 0.5}})
    assert run.measures()["dense"]["speed"] == rows["dense"]["speed"]
    sheet = speed_sheet([run])
    (row,) = sheet.rows
    assert row[0] == "a network"
    assert f"| {row[5]} | {row[6]} |" in sheet.to_markdown()
    measured = run.measures()["pruned"]["speed"]["32"]["median_ms"]
    assert row[6] == f"{measured:.2f}"


def test_the_papers_figures_stand_beside_ours(network, digits, tmp_path):
    from gnnrl_ray import Source

    source = Source(network="resnet20", dataset="cifar10")
    runs = []
    for seed in (0, 1):
        search(network, digits, method="uniform", finetune="none", precision="float32",
               out=tmp_path / str(seed), source=source, seed=seed)  # fmt: skip
        runs.append(Run.open(tmp_path / str(seed)))
        runs[-1].measured(
            {"dense": {"test": 0.91}, "pruned": {"test": 0.4 + 0.1 * seed},
             "finetuned": {"test": 0.88 + 0.02 * seed}}
        )  # fmt: skip
    (row,) = accuracy_sheet(runs, [None, None]).rows
    assert row[:4] == ["resnet20", "cifar10", "uniform --finetune none", "2"]
    assert row[6:] == ["45.00", "89.00", "-2.00", "50", "84.00", "-7.73"]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's malloc")
def test_a_young_process_takes_no_memory_anew_in_every_pass():
    """Hidden states of 2 MB; in a process of its own, which nothing has settled before."""
    code = """if True:
        import resource, torch
        from gnnrl_ray.scoring.speed import images_for, measure_speed
        torch.set_num_threads(1)
        network = torch.nn.Sequential(*(torch.nn.Conv2d(16, 16, 1) for _ in range(4)))
        measure_speed({"it": network}, (16, 32, 32), batch=32, rounds=5, memory=False)
        images = torch.rand(32, 16, 32, 32)
        def faults():
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        with torch.inference_mode():
            network(images)
            before = faults()
            for _ in range(10):
                network(images)
        print(faults() - before)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert int(done.stdout) < 1000, done.stderr  # 20,000 pages are of 2 MB, 40 times
