"""Searches on real clusters, where things go wrong."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import ray
from helpers import sleeping
from helpers.processes import env_runners, ray_processes
from helpers.sleeping import AGENT, Sleepy, searching

from gnnrl_ray.run.journal import Journal

TESTS = Path(__file__).parent


@pytest.fixture
def sleepy(tmp_path, monkeypatch):
    """Candidates sleep for a moment; what was scored is written to ``scored``."""
    monkeypatch.setattr(Sleepy, "folder", tmp_path)
    monkeypatch.setattr(Sleepy, "least", 0.05)
    monkeypatch.setattr(Sleepy, "most", 0.5)
    monkeypatch.setattr(searching, "Objective", Sleepy)
    monkeypatch.setenv("PYTHONPATH", str(TESTS))  # of the env runners
    return tmp_path


def scored(folder):
    """Return how often each candidate was scored to the end."""
    lines = (folder / "scored").read_text().splitlines()
    return Counter(tuple(json.loads(line)["widths"]) for line in lines)


def check(folder, episodes):
    """Everything that has to hold of a run that is over, whatever has happened to it."""
    lines = (folder / "run/journal.jsonl").read_text().splitlines()
    numbers = [json.loads(line)["episode"] for line in lines]
    assert sorted(numbers) == list(range(episodes))  # each once
    journal = Journal(folder / "run/journal.jsonl")
    assert not journal.failures
    outcomes = dict(journal)
    best = json.loads((folder / "run/best.json").read_text())
    assert best["accuracy"] == max(o.accuracy for o in outcomes.values())
    assert best["episode"] == journal.best()[0]
    assert len({o.widths for o in outcomes.values()}) > episodes / 2
    return outcomes


@pytest.mark.slow
def test_four_nodes_share_a_search(cluster, sleepy):
    for _ in range(4):
        cluster(num_cpus=1)
    sleeping.run(
        sleepy / "run", episodes=16, env_runners=4, cpus_per_env_runner=1.0,
        address=cluster.address,
    )  # fmt: skip
    outcomes = check(sleepy, 16)
    assert set(scored(sleepy).values()) == {1}
    lines = (sleepy / "scored").read_text().splitlines()
    assert len({json.loads(line)["node"] for line in lines}) == 4
    assert not env_runners()
    # The warm-up is the same as in one process.
    warm_up = AGENT["warmup_episodes"]
    sleeping.run(sleepy / "alone", episodes=warm_up)
    for episode, outcome in Journal(sleepy / "alone/journal.jsonl"):
        assert outcome.widths == outcomes[episode].widths


@pytest.mark.cluster
def test_dead_and_hung_actors_and_lost_nodes_cost_no_episode(cluster, sleepy):
    """The small form of the chaos below: each calamity once."""
    cluster(num_cpus=2)
    lost = cluster(num_cpus=1)
    done = []

    def on_episode(count, best):
        done.append(count)
        if count == 3:
            env_runners()[0].kill()
        if count == 8:
            (sleepy / "hang").touch()
        if count == 14:
            cluster.remove(lost, allow_graceful=False)
            cluster(num_cpus=1)

    sleeping.run(
        sleepy / "run", episodes=24, env_runners=3, cpus_per_env_runner=1.0,
        address=cluster.address, episode_timeout=10, on_episode=on_episode,
    )  # fmt: skip
    outcomes = check(sleepy, 24)
    assert not (sleepy / "hang").exists()  # somebody hung
    assert max(done) == 24
    # What was lost in mid-air may have been scored to the end just before.
    again = sum(scored(sleepy).values()) - len({o.widths for o in outcomes.values()})
    assert again <= 2


def drive(folder, episodes, *options):
    """Start a driver of its own; it makes its own Ray."""
    return subprocess.Popen(
        [sys.executable, str(TESTS / "helpers/sleeping.py"), str(folder / "run"),
         "--episodes", str(episodes), *map(str, options)],
        env=os.environ | {"SLEEPY": str(folder), "PYTHONPATH": str(TESTS)},
        stdout=subprocess.DEVNULL, stderr=(folder / "stderr").open("a"),
    )  # fmt: skip


def said(folder):
    return (folder / "stderr").read_text()[-2000:]


def wait_until(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def lines(folder):
    path = folder / "run/journal.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def wait_for_lines(folder, count, driver, seconds=300):
    deadline = time.monotonic() + seconds
    while lines(folder) < count:
        assert driver.poll() is None, said(folder)
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.cluster
def test_a_killed_driver_goes_on_and_leaves_nothing_behind(tmp_path):
    ray.shutdown()
    before = ray_processes()
    options = ("--env-runners", 2, "--least", 0.05, "--most", 0.3)
    driver = drive(tmp_path, 18, *options)
    wait_for_lines(tmp_path, 8, driver)
    driver.kill()
    driver.wait()
    wait_until(lambda: not env_runners(), 30)
    there = lines(tmp_path)
    driver = drive(tmp_path, 18, *options)
    assert driver.wait(200) == 0, said(tmp_path)
    outcomes = check(tmp_path, 18)
    # Only what was under way when it died may have been scored twice.
    again = sum(scored(tmp_path).values()) - len({o.widths for o in outcomes.values()})
    assert again <= 2
    assert there >= 8
    # Ray's agents notice only after a while that their raylet is gone.
    wait_until(lambda: not ray_processes() - before, 150)


@pytest.mark.slow
def test_chaos(tmp_path):
    """20 actors killed, one hung, a raylet removed and added, 5 drivers killed."""
    from ray.cluster_utils import Cluster

    ray.shutdown()
    before, episodes, rng = ray_processes(), 240, np.random.default_rng(0)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 3})
    lost = cluster.add_node(num_cpus=1)
    options = ("--env-runners", 4, "--address", cluster.address, "--episode-timeout", 15,
               "--least", 1, "--most", 4)  # fmt: skip
    kills = drivers = started = 0
    driver = drive(tmp_path, episodes, *options)
    deaths = sorted(rng.choice(np.arange(15, 220), 5, replace=False))
    while driver.poll() is None:
        done = lines(tmp_path)
        alive = env_runners()
        if drivers < len(deaths) and done >= deaths[drivers]:
            driver.send_signal(signal.SIGKILL)
            driver.wait()
            drivers += 1
            driver, started = drive(tmp_path, episodes, *options), done
        elif len(alive) >= 2 and started + 3 <= done < 220 and kills < 25:
            rng.choice(alive).kill()
            kills += 1
        if lost is not None and done > 60:
            (tmp_path / "hang").touch()
            cluster.remove_node(lost, allow_graceful=False)
            lost = None
            cluster.add_node(num_cpus=1)
        time.sleep(rng.uniform(2, 5))
    assert driver.returncode == 0, said(tmp_path)
    outcomes = check(tmp_path, episodes)
    counts = scored(tmp_path)
    again = sum(counts.values()) - len({o.widths for o in outcomes.values()})
    print(f"{kills} actors and {drivers} drivers killed, {again} candidates scored again")
    assert kills >= 20
    assert drivers == 5
    assert not (tmp_path / "hang").exists()
    # Never what the journal had: only what died between its last line and the journal's.
    assert again <= kills + 4 * drivers + 2
    cluster.shutdown()
    wait_until(lambda: not ray_processes() - before, 150)
