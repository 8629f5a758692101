import json
import shlex
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest

from gnnrl_ray.errors import InputError
from gnnrl_ray.jobs.sweep import Sweep, SweepError, over_seeds, run_sweep
from gnnrl_ray.run.journal import Journal

SEARCH = {
    "network": "resnet20", "dataset": "digits", "episodes": 4, "finetune": "none",
    "precision": "float32", "hidden": [16], "graph_dim": 8, "updates_per_step": 1,
}  # fmt: skip

FILE = """
[search]
network = "resnet20"
dataset = "digits"
method = "random"
episodes = 12
finetune = "none"
precision = "float32"
[space]
seed = [0, 1]
[asha]
grace = 12
"""


@pytest.mark.usefixtures("ray_session", "weights")
@pytest.mark.cluster
def test_a_sweep_is_searches_a_table_and_a_picture(tmp_path):
    sweep = Sweep(SEARCH, {"warmup_episodes": [2], "seed": [0, 1]})
    out, last = tmp_path / "sweep", {}
    table = run_sweep(sweep, str(out), at_once=2, on_progress=last.update)
    assert sweep.size == len(table) == len(last) == 2
    assert set(table["seed"]) == {0, 1}
    assert table["accuracy"].is_monotonic_decreasing
    assert (table["episode"] == 4).all()
    assert (table["error"] == "").all()
    for _, row in table.iterrows():
        journal = Journal(out / row["run"] / "journal.jsonl")
        assert len(journal) == 4
        assert journal.best()[1].accuracy == row["accuracy"]
        settings = json.loads((out / row["run"] / "run.json").read_text())["settings"]
        assert settings["seed"] == row["seed"]
        assert settings["agent"]["warmup_episodes"] == 2
    assert pd.read_csv(out / "results.csv")["accuracy"].tolist() == list(table["accuracy"])
    assert (out / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert list(out.glob("*/events.out.tfevents*"))
    with pytest.raises(SweepError, match="holds a sweep already; go on with --resume"):
        run_sweep(sweep, str(out))
    # What is finished is not run again.
    before = [path.read_bytes() for path in sorted(out.glob("runs/*/journal.jsonl"))]
    again = run_sweep(sweep, str(out), resume=True)
    assert again["accuracy"].tolist() == table["accuracy"].tolist()
    assert before == [p.read_bytes() for p in sorted(out.glob("runs/*/journal.jsonl"))]
    for changed, said in (
        (Sweep(SEARCH, {"warmup_episodes": [3], "seed": [0, 1]}),
         r"\[space\] warmup_episodes = \[2\], not \[3\]"),
        (Sweep(SEARCH | {"episodes": 5}, sweep.space), r"\[search\] episodes = 4, not 5"),
        (Sweep(SEARCH, sweep.space, samples=2), "samples = 1, not 2"),
        (Sweep(SEARCH, sweep.space | {"fit": [False]}), r"\[space\] fit = None, not "),
    ):  # fmt: skip
        with pytest.raises(SweepError, match=f"was started with {said}"):
            run_sweep(changed, str(out), resume=True)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session", "weights")
@pytest.mark.cluster
def test_spaces_schedulers_and_searchers_of_ray_tune(tmp_path):
    from ray import tune
    from ray.tune.schedulers import FIFOScheduler
    from ray.tune.search.optuna import OptunaSearch

    class Stops(FIFOScheduler):
        """Lets no search get further than its second episode."""

        def on_trial_result(self, tune_controller, trial, result):
            return self.STOP if result["episode"] >= 2 else self.CONTINUE

    space = {"min_keep": tune.quniform(0.1, 0.3, 0.1)}
    sweep = Sweep(SEARCH | {"method": "random"}, space, samples=2)
    table = run_sweep(sweep, str(tmp_path / "sweep"), scheduler=Stops(),
                      search_alg=OptunaSearch(seed=0))  # fmt: skip
    assert sweep.size == len(table) == 2
    assert set((10 * table["min_keep"]).round(6)) <= {1, 2, 3}
    assert (table["episode"] == 2).all()
    assert (table["error"] == "").all()


def test_ends_that_are_never_drawn_may_be_out_of_bounds():
    space = {"min_keep": {"uniform": [0.1, 1]}, "flops": {"uniform": [0, 1]}}
    assert Sweep({}, space, samples=3).size == 3


def test_what_ray_tune_has_is_taken_as_it_is():
    from ray import tune

    drawn = tune.loguniform(1e-4, 1e-2)
    sweep = Sweep(
        {}, {"actor_lr": drawn, "seed": tune.grid_search([0, 1, 2]), "round_to": [1, 8]}, 2
    )
    assert sweep.size == 12
    assert sweep.param_space()["actor_lr"] is drawn
    assert sweep.param_space()["seed"] == {"grid_search": [0, 1, 2]}
    sweep = Sweep({}, {"seed": [1]}, asha={"grace": 3})
    with pytest.raises(SweepError, match="takes the place of"):
        run_sweep(sweep, "nowhere", scheduler=sweep.scheduler())


@pytest.mark.cluster
@pytest.mark.usefixtures("weights")
def test_an_interrupted_sweep_goes_on(tmp_path):
    file, out = tmp_path / ("a [red] name" + 90 * "n") / "sweep.toml", tmp_path / "out"
    file.parent.mkdir()
    file.write_text(FILE)
    command = [sys.executable, "-m", "gnnrl_ray", "sweep", file, "--out", out]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True,
        # What a shell starts in the background ignores Ctrl-C, and so would this.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    deadline = time.monotonic() + 300
    while len(_episodes(out)) < 4 and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=240)[1]
    assert process.returncode == 130, said
    # One line, however long the path: it is there to be copied.
    assert f"sweep {shlex.quote(str(file))} --out {out} --resume\n" in said
    before = len(_episodes(out))
    assert before < 24
    done = subprocess.run([*command, "--resume", "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [row["episode"] for row in json.loads(done.stdout)] == [12, 12]
    assert "sweep sweep 24/24 episodes" in done.stderr
    # Each episode once, and what each search leaves behind.
    assert sorted(_episodes(out)) == sorted(2 * [*range(12)])
    assert len(list(out.glob("runs/*/pruned.safetensors"))) == 2


def _episodes(out):
    lines = (p.read_text().splitlines() for p in out.glob("runs/*/journal.jsonl"))
    return [json.loads(line)["episode"] for run in lines for line in run]


@pytest.mark.usefixtures("ray_session", "weights")
@pytest.mark.parametrize(("more", "gpus"), [({"env_runners": 9}, 0), ({}, 1)])
def test_what_there_is_no_room_for_is_refused(tmp_path, more, gpus):
    sweep = Sweep(SEARCH | more, {"seed": [0]})
    with pytest.raises(SweepError, match=r"one search takes \d+ .PUs .* cluster has [40]:"):
        run_sweep(sweep, str(tmp_path / "sweep"), gpus=gpus)


@pytest.mark.parametrize(
    ("search", "space", "message"),
    [
        (
            {"flop": 0.5},
            {},
            r"'flop' is no setting of a search; did you mean flops\? known: activations, "
            "actor_lr, ",
        ),
        ({}, {"out": ["x"]}, "'out' is no setting"),
        ({"seed": 1}, {"seed": [1, 2]}, "'seed' cannot be tried"),
        ({}, {"network": ["resnet20"]}, "'network' cannot be tried"),
        ({}, {"seed": 1}, "seed = 1 is neither a list of values nor"),
        ({}, {"noise": {"normal": [0, 1]}}, "neither a list of values nor"),
        ({}, {"noise": []}, "neither a list of values nor"),
        ({}, {"episodes": [2, 3]}, "'episodes' cannot be tried"),
        ({}, {"env_runners": [0, 2]}, "'env_runners' cannot be tried"),
        ({}, {"seed": ["a"]}, "--seed 'a' is not a whole number"),
        ({}, {"seed": [0, 1, -1]}, "--seed -1 must be at least 0"),
        ({}, {"min_keep": [0.1, 2.0]}, "--min-keep 2.0 must be less than 1"),
        ({}, {"method": ["random", "dice"]}, "--method 'dice' is not one of"),
        ({}, {"noise": [0.5]}, "noise"),  # the default agent has none
        ({}, {"min_keep": {"uniform": [0, 2]}}, "--min-keep 1.99.* must be less than 1"),
        ({}, {"min_keep": {"uniform": [0.5, 0.1]}}, "two numbers, the smaller first"),
        ({}, {"min_keep": {"uniform": [0.5]}}, "two numbers, the smaller first"),
        ({}, {"min_keep": {"uniform": [0.1, "x"]}}, "two numbers, the smaller first"),
        ({}, {"min_keep": {"uniform": [0.1, float("nan")]}}, "the smaller first"),
        ({}, {"min_keep": {"uniform": [0.1, float("inf")]}}, "min_keep = "),
        ({}, {"min_keep": {"loguniform": [0, 0.1]}}, "min_keep = { loguniform ="),
        ({}, {"min_keep": {"choice": []}}, "one or more values"),
        ({}, {"seed": {"randint": [0.5, 2]}}, "two whole numbers, the smaller first"),
        ({}, {"seed": {"uniform": [0, 2]}}, "--seed 2e-06 is not a whole number"),
    ],
)
def test_what_cannot_be_tried_is_named(search, space, message):
    with pytest.raises(InputError, match=message):
        Sweep(search, space)


@pytest.mark.parametrize(
    ("top", "message"),
    [
        *((f"samples = {n}", "samples = ") for n in ("0", "-2", "1.5", "'x'", "true")),
        *((f"asha = {{ grace = {n} }}", r"\[asha\] grace = ") for n in ("0", "7", "'x'")),
        *(
            (f"asha = {{ factor = {n} }}", r"\[asha\] factor = ")
            for n in ("1", "nan", "'x'")
        ),
        ("asha = { grase = 3 }", r"\[asha\] knows grace and factor"),
        ("asha = 3", "asha has to be a table"),
        ("tables = 3", "unexpected keyword argument 'tables'"),
    ],
)
def test_what_a_file_asks_for_in_vain_is_said_with_its_name(tmp_path, top, message):
    path = tmp_path / "sweep.toml"
    path.write_text(f"{top}\n[search]\nepisodes = 6\n[space]\nseed = [0, 1]\n")
    with pytest.raises(SweepError, match=f"{path}.*{message}") as caught:
        Sweep.read(path)
    assert not str(caught.value).endswith("..")
    path.write_text("asha = {}\n[search]\nepisodes = 6\n")  # 30 are more than there are
    assert Sweep.read(path).size == 1


@pytest.mark.usefixtures("weights")
def test_budgets_out_of_reach_are_said_before_anything_is_started(tmp_path):
    for space in ({"flops": [0.5, 3.0]}, {"flops": {"uniform": [1e-9, 0.5]}}):
        with pytest.raises(InputError, match=r"--flops .* cannot be reached"):
            run_sweep(Sweep(SEARCH, space), str(tmp_path / "sweep"))
    assert not (tmp_path / "sweep").exists()


def test_files_are_read(tmp_path):
    path = tmp_path / "sweep.toml"
    path.write_text(
        '[search]\nnetwork = "resnet56"\n[space]\nmin_keep = { uniform = [0, 0.5] }\n'
    )
    assert Sweep.read(path).space == {"min_keep": {"uniform": [0, 0.5]}}
    for text in ("[search", "[serach]\n", "[search]\n[space]\n[asha]\nepisodes = 3\n"):
        path.write_text(text)
        with pytest.raises(SweepError):
            Sweep.read(path)


def test_the_published_sweep():
    from tuned_examples.sweep_warmup_noise import sweep

    assert sweep.size == 72


@pytest.mark.parametrize(
    ("runners", "gpus", "bundles"),
    [
        (0, 0.5, [{"CPU": 1, "GPU": 0.5}]),
        (2, 1, [{"CPU": 1}, {"CPU": 2, "GPU": 0.5}, {"CPU": 2, "GPU": 0.5}]),
        (2, 4, [{"CPU": 1}, {"CPU": 2, "GPU": 2}, {"CPU": 2, "GPU": 2}]),
    ],
)
def test_a_search_and_its_env_runners_have_room(runners, gpus, bundles):
    sweep = Sweep({"env_runners": runners, "cpus_per_env_runner": 2.0}, {"seed": [0]})
    assert sweep.resources(gpus).bundles == bundles


def test_seeds_are_averaged_over():
    sweep = Sweep({"algorithm": "ddpg"}, {"noise": [0.1, 0.2], "seed": [0, 1]})
    table = pd.DataFrame(
        {
            "noise": [0.1, 0.1, 0.2, 0.2],
            "seed": [0, 1, 0, 1],
            "accuracy": [0.5, 0.7, 0.8, float("nan")],
        }
    )
    found = over_seeds(sweep, table)
    assert found["noise"].tolist() == [0.2, 0.1]
    assert found["mean"].tolist() == pytest.approx([0.8, 0.6])
    assert found["count"].tolist() == [1, 2]
