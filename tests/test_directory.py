import contextlib
import json
import shutil
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from helpers.widths import random_widths
from safetensors.torch import save_file

from gnnrl_ray import (
    Budget,
    Costs,
    Outcome,
    SearchSettings,
    Source,
    load_pruned,
    prune,
    trace,
)
from gnnrl_ray.pruning.importance import rank
from gnnrl_ray.pruning.removal import keep
from gnnrl_ray.run.directory import Run, RunError
from gnnrl_ray.storage import Storage
from gnnrl_ray.zoo import build_network
from gnnrl_ray.zoo.weights import WeightsError


def finish(folder, name, **how):
    """Write a run of ``name`` with one outcome; returns the winner."""
    torch.manual_seed(0)
    network = build_network(name).eval()
    groups = trace(network, (3, 32, 32), **how)
    widths = random_widths(groups, np.random.default_rng(0))
    settings = SearchSettings(method="random", **how)
    run = Run.create(folder, settings, Source(network=name), 10)
    costs = Costs(groups)
    scored = Outcome(
        tuple(widths.tolist()), int(costs.macs(widths)), int(costs.params(widths)),
        accuracy=0.5, reward=-0.5, seconds=1.0,
    )  # fmt: skip
    run.journal.append(7, scored)
    run.write_best(
        Budget(groups, {"flops": 0.999}, min_keep=0), keep(rank(network, groups), widths)
    )
    winner = prune(network, groups, widths)
    run.save_network("pruned", winner)
    return winner


@pytest.fixture
def finished(tmp_path):
    """A run of the zoo's ResNet-20, its winner written; returns folder and winner."""
    folder = tmp_path / "run"
    return folder, finish(folder, "resnet20")


def test_winners_are_rebuilt_in_a_new_process(tmp_path):
    kinds = {
        "shufflenet_v1": {},
        "shufflenet_v2": {"keep": r"conv5|stage4"},
        "torchvision:mobilenet_v3_small": {"skip_untraceable": True},
    }
    x = torch.randn(2, 3, 32, 32)
    for i, (name, how) in enumerate(kinds.items()):
        winner = finish(tmp_path / str(i), name, **how)
        save_file({"x": x, "y": winner(x).detach()}, tmp_path / str(i) / "seen.safetensors")
    code = """if True:
        import sys, torch
        from gnnrl_ray import load_pruned
        from safetensors.torch import load_file
        for folder in sys.argv[1:]:
            seen = load_file(folder + "/seen.safetensors")
            with torch.no_grad():
                assert torch.allclose(load_pruned(folder)(seen["x"]), seen["y"], atol=1e-5)
            print("rebuilt", folder)
    """
    folders = [str(tmp_path / str(i)) for i in range(len(kinds))]
    done = subprocess.run(
        [sys.executable, "-c", code, *folders], capture_output=True, text=True, check=False
    )
    assert done.stdout.count("rebuilt /") == len(kinds), done.stderr


def test_no_code_is_run_because_a_file_names_it(finished):
    folder, winner = finished
    best = json.loads((folder / "best.json").read_text()) | {"network": "os:abort"}
    (folder / "best.json").write_text(json.dumps(best))
    with pytest.raises(RunError, match="is your own; pass `network`"):
        load_pruned(folder)
    x = torch.randn(2, 3, 32, 32)
    again = load_pruned(folder, build_network("resnet20"))
    assert torch.equal(again(x), winner(x))


def test_the_winner_is_rebuilt_without_the_dense_weights(finished):
    folder, winner = finished
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(load_pruned(folder)(x), winner(x))


def test_finetuned_weights_come_first(finished):
    folder, winner = finished
    with torch.no_grad():
        winner.linear.bias += 1
    Run.open(folder).save_network("finetuned", winner)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(load_pruned(folder)(x), winner(x))
    assert not torch.equal(load_pruned(folder, weights="pruned")(x), winner(x))


def test_what_is_of_an_earlier_winner_is_neither_taken_for_this_one_s_nor_lost(finished):
    folder, winner = finished
    run = Run.open(folder)
    with torch.no_grad():
        winner.linear.bias += 1
    run.save_network("finetuned", winner)
    run.measured({"dense": {"test": 0.9}, "finetuned": {"test": 0.8}})
    run.exported("elsewhere.onnx", "finetuned", "checked")
    for name in ("finetuned.pt", "model_card.md", "finetuned.txt"):
        (folder / name).write_text("of the first")
    network = build_network("resnet20").eval()
    groups = trace(network, (3, 32, 32))
    widths = np.maximum(groups.widths // 2, 1)
    costs = Costs(groups)
    run.journal.append(9, Outcome(
        tuple(widths.tolist()), int(costs.macs(widths)), int(costs.params(widths)),
        accuracy=0.6, reward=-0.4, seconds=1.0,
    ))  # fmt: skip
    run.write_best(
        Budget(groups, {"flops": 0.999}, min_keep=0), keep(rank(network, groups), widths)
    )
    with pytest.raises(WeightsError, match="no weights file"):  # as when it is killed now
        load_pruned(folder)
    second = prune(network, groups, widths)
    run.save_network("pruned", second)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(load_pruned(folder)(x), second(x))
    assert torch.equal(load_pruned(folder / "earlier/7")(x), winner(x))
    assert (run.measures(), run.exports()) == ({}, {})
    assert {path.name for path in folder.iterdir()} == {
        "run.json", "journal.jsonl", "best.json", "pruned.safetensors", "earlier",
        "finetuned.txt",
    }  # fmt: skip
    assert {path.name for path in (folder / "earlier/7").iterdir()} == {
        "best.json", "pruned.safetensors", "finetuned.safetensors", "finetuned.pt",
        "measures.json", "exports.json", "model_card.md",
    }  # fmt: skip


def test_what_is_said_of_weights_goes_with_them(finished):
    folder, winner = finished
    run = Run.open(folder)
    run.save_network("finetuned", winner)
    run.measured({"pruned": {"test": 0.7}, "finetuned": {"test": 0.8}})
    run.exported("elsewhere.onnx", "finetuned", "checked")
    run.exported("pruned.pt", "pruned", "checked, too")
    for name in ("finetuned.int8.onnx", "pruned.pt", "model_card.md"):
        (folder / name).write_text("of the first")
    run.save_network("finetuned", winner)  # the same
    assert set(run.measures()) == {"pruned", "finetuned"}
    assert set(run.exports()) == {"elsewhere.onnx", "pruned.pt"}
    with torch.no_grad():
        winner.linear.bias += 1
    run.save_network("finetuned", winner)
    assert set(run.measures()) == {"pruned"}
    assert set(run.exports()) == {"pruned.pt"}
    assert (folder / "pruned.pt").exists()
    aside = folder / "earlier/7"
    assert {p.name for p in aside.iterdir()} == {"finetuned.int8.onnx", "model_card.md"}


def test_whenever_a_search_is_killed_at_a_new_winner_neither_is_lost(
    finished, tmp_path, monkeypatch
):
    folder, first = finished
    Run.open(folder).save_network("finetuned", first)
    network = build_network("resnet20").eval()
    groups = trace(network, (3, 32, 32))
    widths, budget = np.maximum(groups.widths // 2, 1), Budget(groups, {"flops": 0.999})
    kept = keep(rank(network, groups), widths)
    second, x = prune(network, groups, widths), torch.randn(2, 3, 32, 32)
    for step in range(5):
        again = tmp_path / f"{step}"
        shutil.copytree(folder, again)
        run = Run.open(again)
        run.journal.append(9, Outcome(tuple(widths.tolist()), 1, 1, 0.6, -0.4, 1.0))
        with contextlib.suppress(Killed):
            killed_at(step, monkeypatch, partial(run.write_best, budget, kept))
            assert step > 1
        run = Run.open(again)
        if run.lags():  # as a search that goes on does
            run.write_best(budget, kept)
        run.save_network("pruned", second)
        assert torch.equal(load_pruned(again)(x), second(x))
        assert torch.equal(load_pruned(again / "earlier/7")(x), first(x))


@pytest.mark.parametrize("content", ["", "[]", "3", '{"pruned": 3}', "{" * 10**5])
def test_damaged_files_beside_it_do_not_keep_a_network_from_being_saved(finished, content):
    folder, winner = finished
    for name in ("measures.json", "exports.json"):
        (folder / name).write_text(content)
    with torch.no_grad():
        winner.linear.bias += 1
    Run.open(folder).save_network("pruned", winner)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(load_pruned(folder)(x), winner(x))


@pytest.mark.parametrize("weights", ["", "/", "a/", "x" * 5000, "\0", "run.json/", ".."])
def test_weights_that_are_nowhere_do_not_keep_a_run_from_being_opened(finished, weights):
    folder, _ = finished
    facts = json.loads((folder / "run.json").read_text())
    facts["source"]["weights"] = weights
    (folder / "run.json").write_text(json.dumps(facts))
    Run.open(folder)


@pytest.mark.parametrize("episode", ["../../../thesis", "7", None, [1]])
def test_what_is_put_aside_stays_in_the_run(finished, episode, tmp_path):
    folder, winner = finished
    best = json.loads((folder / "best.json").read_text()) | {"episode": episode}
    (folder / "best.json").write_text(json.dumps(best))
    (folder / "model_card.md").write_text("of the first")
    with torch.no_grad():
        winner.linear.bias += 1
    Run.open(folder).save_network("pruned", winner)
    assert (folder / "earlier/unknown/model_card.md").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


def test_best_says_everything(finished):
    folder, winner = finished
    best = json.loads((folder / "best.json").read_text())
    assert best["episode"] == 7
    assert best["params"] == sum(p.numel() for p in winner.parameters())
    assert best["macs_ratio"] == best["macs"] / best["macs_dense"]
    assert (
        best["groups"]["conv1"] == winner.conv1.out_channels == len(best["kept"]["conv1"])
    )
    assert best["error"] == 1 - best["accuracy"]


def test_settings_versions_and_hardware_are_kept(finished):
    facts = json.loads((finished[0] / "run.json").read_text())
    assert facts["settings"] == SearchSettings(method="random").to_dict()
    assert facts["source"]["network"] == "resnet20"
    assert facts["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    assert facts["hardware"]["cores"] >= 1


def test_a_run_in_the_way_is_not_touched(finished):
    folder, _ = finished
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(RunError, match=r"--resume .*--overwrite.*--out"):
        Run.create(folder, SearchSettings(), Source(), 10)
    assert before == {p.name: p.read_bytes() for p in folder.iterdir()}
    assert (
        len(Run.create(folder, SearchSettings(), Source(), 10, overwrite=True).journal) == 0
    )


def test_overwrite_spares_folders_that_are_no_runs(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError):
        Run.create(tmp_path, SearchSettings(), Source(), 10, overwrite=True)
    assert (tmp_path / "thesis.tex").exists()


@pytest.mark.parametrize("content", ["{}", "[]", "3", '{"settings": 3}', "{" * 10**5])
def test_overwrite_spares_what_only_looks_like_a_run(tmp_path, content):
    (tmp_path / "thesis.tex").write_text("years of work")
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(RunError):
        Run.create(tmp_path, SearchSettings(), Source(), 10, overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} == {"thesis.tex", "run.json"}


def test_what_is_overwritten_comes_back_unless_something_takes_its_place(tmp_path):
    first = Run.create(tmp_path, SearchSettings(), Source(), 10)
    first.journal.append(0, Outcome((1,), 1, 1, 0.5, -0.5, 1.0))
    (tmp_path / "notes.txt").write_text("mine")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    Run.create(tmp_path, SearchSettings(seed=1), Source(), 10, overwrite=True).replace()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()
            if path.is_file()} == before  # fmt: skip
    # Nor does it go if whoever was to take its place is killed at once.
    Run.create(tmp_path, SearchSettings(seed=1), Source(), 10, overwrite=True)
    with pytest.raises(RunError, match="--overwrite"):
        Run.create(tmp_path, SearchSettings(seed=1), Source(), 10)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()
            if path.is_file()} == before  # fmt: skip
    second = Run.create(tmp_path, SearchSettings(seed=1), Source(), 10, overwrite=True)
    second.journal.append(0, Outcome((2,), 1, 1, 0.25, -0.75, 1.0))
    second.replace()
    assert Run.open(tmp_path).settings.seed == 1
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"notes.txt", "run.json", "journal.jsonl"}


class Killed(BaseException):
    pass


def killed_at(step, monkeypatch, function):
    """Call ``function``, and end it before the ``step``-th file is moved or removed."""
    steps = iter(range(step))

    def counted(original):
        def call(*args):
            if next(steps, None) is None:
                raise Killed
            return original(*args)

        return call

    with monkeypatch.context() as patch:
        for name in ("move", "remove"):
            patch.setattr(Storage, name, counted(getattr(Storage, name)))
        function()


def files(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*") if path.is_file()
    }  # fmt: skip


def test_whenever_an_overwriting_process_is_killed_the_run_is_whole(finished, monkeypatch):
    folder, winner = finished
    Run.open(folder).save_network("finetuned", winner)
    for name in ("earlier/3/pruned.safetensors", "events/first"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(name)
    before = files(folder)

    def overwrite():
        Run.create(folder, SearchSettings(seed=1), Source(), 10, overwrite=True)

    def recover():
        Run.recover(Storage(folder))

    for step in range(10**3):
        with contextlib.suppress(Killed):
            killed_at(step, monkeypatch, overwrite)
            assert Run.open(folder).settings.seed == 1
            assert step > 15
        for again in range(60):  # who brings it back is killed, too
            with contextlib.suppress(Killed):
                killed_at(again, monkeypatch, recover)
        recover()
        assert files(folder) == before, step
        if step > 30:
            break


def test_a_run_that_came_to_nothing_is_in_nobody_s_way(tmp_path):
    Run.create(tmp_path, SearchSettings(), Source(), 10)
    run = Run.create(tmp_path, SearchSettings(seed=1), Source(), 10)
    run.journal.append(0, Outcome((1,), 1, 1, 0.5, -0.5, 1.0))
    run.replace()
    with pytest.raises(RunError, match="--overwrite"):
        Run.create(tmp_path, SearchSettings(seed=2), Source(), 10)
    assert Run.open(tmp_path).settings.seed == 1


def test_other_weights_or_data_are_refused(tmp_path):
    hashes = {"weights": "a" * 64, "data": "b" * 64}
    Run.create(tmp_path, SearchSettings(), Source(), 10, hashes)
    run = Run.open(tmp_path)
    run.check(hashes)
    for what in hashes:
        with pytest.raises(RunError, match=f"the {what} are not those .* started with"):
            run.check(hashes | {what: "c" * 64})


def test_a_run_directory_runs_no_code_of_its_own(tmp_path):
    for source in (Source(network="evil:f"), Source(weights="http://there/w.pt"),
                   Source(data_dir="s3://there/data")):  # fmt: skip
        folder = tmp_path / str(hash(source))
        run = Run.create(folder, SearchSettings(), source, 10)
        assert run.asks_trust
        with pytest.raises(RunError, match="--trust"):
            run.check_trust({}, trust=False)
        run.check_trust({}, trust=True)
        run.check_trust(vars(source), trust=False)  # said again


def test_journals_of_other_networks_are_named(network, groups, tmp_path):
    budget = Budget(groups, {"flops": 0.5})
    run = Run.create(tmp_path, SearchSettings(), Source(), 10)
    widths = tuple(int(width) for width in groups.widths)
    macs = budget.costs.dense
    run.journal.append(0, Outcome(widths, macs, 1, 0.5, -0.5, 1.0))
    Run.open(tmp_path).check_journal(budget)
    run.journal.append(1, Outcome(widths, macs - 1, 1, 0.5, -0.5, 1.0))
    with pytest.raises(RunError, match=r"episode 1 .* is not of this network"):
        Run.open(tmp_path).check_journal(budget)


def test_damaged_and_missing_files_are_named(finished, tmp_path):
    folder, _ = finished
    with pytest.raises(RunError, match=r"no run\.json"):
        Run.open(tmp_path / "elsewhere")
    weights = folder / "pruned.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(WeightsError, match="truncated or damaged"):
        load_pruned(folder)
    (folder / "best.json").write_text("{")
    with pytest.raises(RunError, match=r"best\.json is damaged"):
        load_pruned(folder)


def test_what_actors_do_is_kept_for_who_looks_on(finished, monkeypatch):
    folder, _ = finished
    run = Run.open(folder)
    assert run.actors() is None
    run.report_actors({1: ("episode 3", 2.5), 2: ("idle", 0.0)})
    run.report_actors({1: ("idle", 0.0)})  # too soon
    _, rows = Run.open(folder).actors()
    assert rows == [(1, "episode 3", 2.5), (2, "idle", 0.0)]
    for damaged in (
        '{"time": 1}',
        "[",
        '{"time": 0, "actors": [[1]]}',
        '{"time": [], "actors": 3}',
    ):
        (folder / "actors.json").write_text(damaged)
        assert run.actors() is None
    run.report_actors({})
    assert not (folder / "actors.json").exists()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Storage, "write", full)
    Run.open(folder).report_actors({1: ("idle", 0.0)})  # no reason to end a search


@pytest.mark.parametrize("budget", [None, "much", [1]])
def test_a_winner_without_a_budget_is_said(finished, budget):
    folder, _ = finished
    best = json.loads((folder / "best.json").read_text()) | {"budget": budget}
    (folder / "best.json").write_text(json.dumps(best))
    with pytest.raises(RunError, match=r"best\.json says no budget"):
        Run.open(folder).best()
