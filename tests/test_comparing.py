import contextlib
import json

import numpy as np
import pandas as pd
import pytest
import torch

from gnnrl_ray import Costs, cli, trace
from gnnrl_ray.data import LOADERS
from gnnrl_ray.data.digits import load_digits
from gnnrl_ray.display.comparison import comparison_markdown, paired, summary
from gnnrl_ray.errors import GnnrlError
from gnnrl_ray.jobs.comparing import Comparison, ComparisonError, compare
from gnnrl_ray.run.directory import Run
from gnnrl_ray.zoo import build_network
from gnnrl_ray.zoo.weights import read_weights

FILE = """
networks = ["resnet20"]
budgets = [{ params = 0.4, flops = 0.8 }]
methods = ["uniform", "random"]
seeds = [1]
[search]
episodes = 3
finetune = "none"
precision = "float32"
device = "cpu"
[finetune]
epochs = 1
batch_size = 128
lr = 0.01
"""


@pytest.fixture(autouse=True)
def home(tmp_path, weights, few_digits):
    (tmp_path / "file.toml").write_text(FILE)
    return tmp_path


def small(**changes):
    given = {
        "networks": ["resnet20"], "budgets": [{"flops": 0.5}], "methods": ["random"],
        "search": {"episodes": 2, "finetune": "none", "precision": "float32"},
    } | changes  # fmt: skip
    return Comparison(**given)


def test_every_cell_is_searched_tuned_and_measured_once(home):
    comparison, told = Comparison.read(home / "file.toml"), []
    out = str(home / "out")
    steps = []
    table = compare(comparison, out, on_progress=lambda *said: told.append(said),
                    on_tuning=lambda *said: steps.append(said[:3]))  # fmt: skip
    assert len(table) == 2
    assert steps == [(t[5:], n, 2) for t in table["run"] for n in (1, 2)]
    assert (table["macs_share"] <= 0.8).all()
    assert set(table["budget"]) == {"params 0.4, flops 0.8"}
    assert table["evaluations"].tolist() == [1, 3]
    assert table["tuned_test"].notna().all()
    for row in table.itertuples():
        run = Run.open(home / "out" / row.run)
        assert run.best()["accuracy"] == pytest.approx(row.pruned_validation)
        assert run.settings.seed == row.seed
        measured = run.measures()  # for `gnnrl-ray report`
        assert measured["pruned"]["validation"] == row.pruned_validation
        assert measured["finetuned"]["test"] == row.tuned_test
    # Again: nothing is done that was done; what failed, or is missing, is.
    told.clear()
    (home / "out/rows").joinpath(f"{table['run'][1][5:]}.json").unlink()
    again = compare(comparison, out, on_progress=lambda *said: told.append(said))
    pd.testing.assert_frame_equal(table, again)
    assert {name for name, *_ in told} <= {table["run"][1][5:]}
    saved = pd.read_csv(home / "out/results.csv")
    assert saved["pruned_test"].tolist() == pytest.approx(table["pruned_test"].tolist())


def test_what_is_of_other_settings_is_not_taken_for_these(home):
    out, told = str(home / "out"), []

    def compared(**change):
        told.clear()
        return compare(small(methods=["random"], **change), out,
                       on_progress=lambda *said: told.append(said))  # fmt: skip

    first = compared(search={"finetune": "none", "episodes": 2})
    compared(search={"finetune": "none", "episodes": 2, "device": "cpu"})
    assert not told
    longer = compared(search={"finetune": "none", "episodes": 4})
    assert (first["evaluations"][0], longer["evaluations"][0]) == (2, 4)
    tuned = compared(search={"finetune": "none", "episodes": 4},
                     finetune={"epochs": 1, "batch_size": 512})  # fmt: skip
    assert tuned["tuned_test"].notna().all()
    assert tuned["pruned_test"][0] == longer["pruned_test"][0]
    for change, said in (
        ({"finetune": "none", "episodes": 2}, "4 candidates already, more than the 2"),
        ({"finetune": "recalibrate", "episodes": 4}, "started with --finetune none, not"),
    ):
        with pytest.raises(ComparisonError, match=said):
            compared(search=change)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_tasks_find_what_one_process_finds(home, monkeypatch):
    monkeypatch.setitem(LOADERS, "digits", lambda _: load_digits())  # as in the tasks
    comparison = small(methods=["uniform"])
    here = compare(comparison, str(home / "here"))
    there = compare(comparison, str(home / "there"), at_once=2)
    drop = ["seconds"]
    pd.testing.assert_frame_equal(here.drop(columns=drop), there.drop(columns=drop))


def test_what_fails_is_a_row_and_is_tried_again(home):
    comparison = small(budgets=[{"flops": 0.0001}, {"flops": 0.5}])
    table = compare(comparison, str(home / "out"))
    assert "cannot be reached" in table["error"][0]
    assert table["pruned_test"].notna().tolist() == [False, True]
    assert len(list((home / "out/rows").iterdir())) == 1
    assert len(summary(table)) == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [({"methods": ["dice"]}, "'dice' is no method; known: gnn-rl, uniform"),
     ({"methods": []}, "methods has to be a list of one or more"),
     ({"search": {"flops": 0.5}}, "'flops' is no setting"),
     ({"search": {"episodes": 0}}, "--episodes"),
     ({"budgets": [{"flops": -1}]}, "--flops"),
     ({"finetune": {"epoch": 1}}, r"\[finetune\] knows .* not 'epoch'"),
     ({"finetune": {"lr": -1}}, r"\[finetune\] lr"),
     ({"budgets": [{"energy": 1}]}, "energy"),
     ({"variants": {"mine": {"levels": 1}}}, "mine = .* no table with a method"),
     ({"variants": {"random": {"method": "uniform"}}}, "a name .* that no method has"),
     ({"variants": {"../mine": {"method": "random"}}}, "a name of letters, digits"),
     ({"variants": 3}, "variants has to be a table"), ({"search": []}, "search has to be"),
     ({"networks": ["resnet21"]}, "resnet21"), ({"search": {"dataset": "mnist"}}, "mnist"),
     ({"variants": {"mine": {"method": "random", "levles": 1}}, "methods": ["mine"]},
      "levles")],
)  # fmt: skip
def test_what_cannot_be_is_said_before_anything_runs(change, said):
    with pytest.raises(GnnrlError, match=said):
        small(**change)


def test_a_variant_is_a_method_with_settings_of_its_own():
    comparison = small(
        methods=["gnn-rl", "paper"],
        variants={"paper": {"method": "gnn-rl", "agent": {"algorithm": "ddpg"}}},
    )
    first, second = map(comparison.settings, comparison.cells())
    assert (first.method, first.agent) == ("gnn-rl", {})
    assert (second.method, second.agent) == ("gnn-rl", {"algorithm": "ddpg"})
    assert [cell.name.split("-")[-2] for cell in comparison.cells()] == ["rl", "paper"]


def test_files_that_are_no_comparison(home):
    for content in ("", "networks = 3", "x = [", FILE.replace("seeds", "sedes"), "\0"):
        (home / "file.toml").write_text(content)
        with pytest.raises(ComparisonError, match=r"file\.toml"):
            Comparison.read(home / "file.toml")


def test_nothing_but_failures_is_one(home):
    with pytest.raises(ComparisonError, match=r"all searches failed, .* cannot be reached"):
        compare(small(budgets=[{"flops": 0.0001}]), str(home / "out"))
    assert "cannot be reached" in (home / "out/results.csv").read_text()


def test_only_pruned_layers_are_updated(home):
    """By hand: what has the dense shape keeps the dense values, and the rest changes."""
    comparison = small(
        methods=["inside"], finetune={"epochs": 1, "batch_size": 500, "only_pruned": True},
        budgets=[{"flops": 0.7}],
    )  # fmt: skip
    table = compare(comparison, str(home / "out"))
    run = Run.open(home / "out" / table["run"][0])
    dense = comparison.source(next(comparison.cells())).load()[0].state_dict()
    files = [f"{run.storage}/{name}.safetensors" for name in ("pruned", "finetuned")]
    pruned, tuned = map(read_weights, files)
    same = {n for n in tuned if torch.equal(tuned[n], pruned[n])}
    parameters = {n for n in tuned if n.endswith(("weight", "bias"))}
    alike = {n for n in parameters if tuned[n].shape == dense[n].shape}
    assert alike
    assert parameters - alike
    assert same & parameters == alike


def table_of(**accuracies):
    rows = []
    for method, values in accuracies.items():
        for seed, value in enumerate(values):
            rows.append(
                {"network": "resnet20", "data": "cifar10", "budget": "flops 0.5",
                 "seed": seed, "run": "",
                 "method": method.replace("_", "-"), "evaluations": 180, "macs_share": 0.5,
                 "params_share": 0.5, "paper_share": 0.49,
                 **{f"dense_{s}": 0.92 for s in ("validation", "holdout", "test")},
                 **{f"pruned_{s}": value for s in ("validation", "holdout", "test")},
                 **{f"tuned_{s}": value + 0.2 for s in ("validation", "holdout", "test")},
                 "finetune_seed": 0}
            )  # fmt: skip
    return pd.DataFrame(rows)


def test_summaries_are_by_hand():
    table = table_of(gnn_rl=[0.70, 0.72, 0.71], random=[0.60, 0.58, 0.62])
    found = summary(table).set_index("method")
    assert found.loc["gnn-rl", "pruned_holdout_mean"] == pytest.approx(71)
    assert found.loc["gnn-rl", "pruned_holdout_sd"] == pytest.approx(1)
    # t of two degrees of freedom at 97.5 %: 4.3027
    half = 4.3027 * 2 / 3**0.5
    assert found.loc["random", "pruned_holdout_ci"] == pytest.approx(half, 1e-4)
    assert found.loc["gnn-rl", "change"] == pytest.approx(-1)
    assert found.loc["gnn-rl", "paper"] == 91.31
    pair = paired(table).iloc[0]
    assert (pair["method"], pair["beside"], pair["n"]) == ("gnn-rl", "random", 3)
    gaps = np.array([10, 14, 9])
    assert pair["difference"] == pytest.approx(gaps.mean())
    t = gaps.mean() / (gaps.std(ddof=1) / 3**0.5)
    assert 0.01 < pair["p"] < 0.03
    assert t == pytest.approx(7.2, abs=0.1)
    text = comparison_markdown(found.reset_index(), paired(table))
    assert "| gnn-rl | 3 | 180 | 50.0 | 49.0 | 71.00 ± 1.00 (68.5 to 73.5) |" in text
    assert "| +11.00 | 0.0" in text
    few = paired(table_of(gnn_rl=[0.70, 0.72], random=[0.60, 0.58], local=[0.6]))
    text = comparison_markdown(found.reset_index(), few)
    assert "| gnn-rl | random |" in text
    assert "| local |" not in text


@pytest.mark.filterwarnings("error")
def test_methods_without_a_seed_in_common_are_no_pair():
    table = table_of(gnn_rl=[0.70, 0.72], random=[0.60, 0.58])
    assert len(paired(table)) == 1
    apart = table[(table.method == "gnn-rl") == (table.seed == 0)]
    assert len(apart) == 2
    assert not len(paired(apart))
    comparison_markdown(summary(apart), paired(apart))


def test_the_papers_count_is_by_hand():
    network = build_network("resnet20")
    groups = trace(network, (3, 32, 32))
    costs = Costs(groups)
    assert costs.paper_share(groups.widths) == 1
    widths = groups.widths // 2  # every convolution keeps half of what it makes
    flops = {}
    for name, module in network.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            size = {16: 1024, 32: 256, 64: 64}[module.out_channels]
            kernel = module.kernel_size[0] ** 2
            each = module.in_channels * (2 * kernel - 1) + 1
            flops[name] = each * module.out_channels * size
    counted = sum(f / 4 for f in flops.values()) + flops["conv1"] / 4  # of a whole image
    assert costs.paper_share(widths) == pytest.approx(counted / sum(flops.values()))


def test_the_command(home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    short = FILE.replace('"random"', "").replace("epochs = 1", "epochs = 0")
    (home / "file.toml").write_text(short)
    monkeypatch.setattr("sys.argv", ["gnnrl-ray", "compare", "file.toml", "--json"])
    with contextlib.suppress(SystemExit):
        cli.main()
    found = json.loads(capsys.readouterr().out)
    assert [row["method"] for row in found] == ["uniform"]
    text = (home / "compared/file/results.md").read_text()
    assert text.count("| resnet20 |") == 1
    assert (home / "compared/file/results.png").stat().st_size > 5_000
