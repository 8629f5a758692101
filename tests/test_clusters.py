"""Searches on real clusters, where things go wrong."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import ray
from helpers import sleeping
from helpers.processes import env_runners, ours, ray_processes
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
        time.sleep(0.5)  # looking through all processes takes a while itself


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


class Chaos:
    """A cluster on this machine, a driver of its own, and what has been done to them."""

    OPTIONS = ("--env-runners", 4, "--episode-timeout", 15, "--least", 1, "--most", 4)

    def __init__(self, folder, episodes):
        self.folder, self.episodes = folder, episodes
        self.done_to = Counter()
        self.start_cluster()
        self.start_driver()

    def start_cluster(self):
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 3})
        self.spare = self.cluster.add_node(num_cpus=1)

    def start_driver(self):
        address = ("--address", self.cluster.address)
        self.driver = drive(self.folder, self.episodes, *self.OPTIONS, *address)
        self.began = lines(self.folder)

    def kill_driver(self):
        self.driver.kill()
        self.driver.wait()
        self.start_driver()

    def kill_one_actor(self, rng):
        rng.choice(env_runners()).kill()

    def kill_all_actors(self):
        for process in env_runners():
            process.kill()

    def stop_one_actor(self):
        """As a machine does that swaps: it neither answers nor ends."""
        env_runners()[0].suspend()

    def hang_one_actor(self):
        (self.folder / "hang").touch()

    def replace_a_raylet(self):
        self.cluster.remove_node(self.spare, allow_graceful=False)
        self.spare = self.cluster.add_node(num_cpus=1)

    def kill_gcs(self):
        """The head of the cluster goes; the driver says so, and goes on with another."""
        (gcs,) = ours("gcs_server")
        gcs.kill()
        assert self.driver.wait(180) not in (None, 0)
        self.cluster.shutdown()
        wait_until(lambda: not env_runners(), 60)
        self.start_cluster()
        self.start_driver()


@pytest.mark.slow
def test_chaos(tmp_path):
    """25 actors and 5 drivers killed, all actors at once, one hung, one stopped; a raylet
    killed and replaced; the GCS killed, and with it the cluster.
    """
    ray.shutdown()
    before, episodes, rng = ray_processes(), 360, np.random.default_rng()
    chaos = Chaos(tmp_path, episodes)
    places = sorted(rng.choice(np.arange(15, 330), 10, replace=False).tolist())
    calamities = [
        *[chaos.kill_driver] * 5, chaos.kill_all_actors, chaos.stop_one_actor,
        chaos.hang_one_actor, chaos.replace_a_raylet, chaos.kill_gcs,
    ]  # fmt: skip
    rng.shuffle(calamities)
    print(dict(zip(places, (c.__name__ for c in calamities), strict=True)))
    while chaos.driver.poll() is None:
        done, ready = lines(tmp_path), len(env_runners()) >= 2
        ready &= done >= chaos.began + 3
        if calamities and done >= places[0] and ready:
            calamity = calamities.pop(0)
            places.pop(0)
            calamity()
            chaos.done_to[calamity.__name__] += 1
        elif ready and done < 340 and chaos.done_to["kill_one_actor"] < 25:
            chaos.kill_one_actor(rng)
            chaos.done_to["kill_one_actor"] += 1
        time.sleep(rng.uniform(2, 5))
    assert chaos.driver.returncode == 0, said(tmp_path)
    outcomes, counts = check(tmp_path, episodes), scored(tmp_path)
    again = sum(counts.values()) - len({o.widths for o in outcomes.values()})
    print(f"{dict(chaos.done_to)}: {again} candidates scored again")
    assert not calamities
    assert chaos.done_to["kill_one_actor"] == 25
    assert not (tmp_path / "hang").exists()
    # Never what the journal had: only what died between its last line and the journal's.
    drivers = chaos.done_to["kill_driver"] + chaos.done_to["kill_gcs"]
    assert again <= chaos.done_to["kill_one_actor"] + 4 * drivers + 4 + 2
    chaos.cluster.shutdown()
    wait_until(lambda: not ray_processes() - before, 150)
