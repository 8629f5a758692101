import re
import shutil
import subprocess
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from helpers.browser import CHROMIUM
from PIL import Image

from gnnrl_ray import Outcome, SearchSettings, Source, trace
from gnnrl_ray.commands.report import report_command
from gnnrl_ray.display.page import (
    Curve,
    draw_costs,
    draw_curves,
    draw_widths,
    methods_sheet,
    page,
    sheets_of,
)
from gnnrl_ray.errors import GnnrlError
from gnnrl_ray.pruning.budget import Budget
from gnnrl_ray.pruning.importance import rank
from gnnrl_ray.pruning.removal import keep
from gnnrl_ray.run.directory import Run
from gnnrl_ray.zoo import build_network

ACCURACIES = {"random": [0.3, 0.5, 0.4], "turbo": [0.2, 0.6, 0.7], "uniform": [0.45]}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of several methods and seeds, with journals as searches write them."""
    root, network = tmp_path_factory.mktemp("runs"), build_network("resnet20").eval()
    groups = trace(network, (3, 32, 32))
    rng = np.random.default_rng(0)
    for method, accuracies in ACCURACIES.items():
        for seed in (0, 1):
            settings = SearchSettings(method=method, seed=seed, flops=0.5)
            write(root / f"{method}-{seed}", settings, accuracies, network, groups, rng)
    return root


def write(folder, settings, accuracies, network, groups, rng):
    budget = Budget.of(groups, settings)
    source = Source(network="resnet20", dataset="digits")
    run = Run.create(folder, settings, source, 10)
    for number, accuracy in enumerate(accuracies):
        widths = budget.reach(rng.random(len(groups.widths)))
        found = accuracy + 0.01 * settings.seed
        macs, params = budget.costs.macs(widths), budget.costs.params(widths)
        outcome = Outcome(
            tuple(widths.tolist()), int(macs), int(params), found, found - 1, 1.0
        )
        run.journal.append(number, outcome)
        if run.journal.best()[0] == number:
            run.write_best(budget, keep(rank(network, groups), widths))


def curves_of(root):
    return [Curve.of(Run.open(path)) for path in sorted(root.iterdir())]


class Page(HTMLParser):
    """What a page shows, and what it would fetch."""

    def __init__(self):
        super().__init__()
        self.fetched, self.texts = [], []

    def handle_starttag(self, tag, attrs):
        loads = tag in ("script", "link", "img", "iframe", "object")
        links = [v for k, v in attrs if k in ("src", "href", "xlink:href")]
        self.fetched += [v for v in links if not v.startswith("#")] + [tag] * loads

    def handle_data(self, data):
        self.texts.append(data.strip())


def test_the_page_has_every_run_and_fetches_nothing(runs, tmp_path, capsys):
    report_command([str(runs)], tmp_path / "report")
    assert "6 searches" in capsys.readouterr().out
    text = (tmp_path / "report/report.html").read_text()
    shown = Page()
    shown.feed(text)
    assert shown.fetched == []
    assert not re.search(r"url\((?!#)", text)
    assert shown.texts.count("71.00%") >= 1  # the best of all
    for method in ACCURACIES:
        assert shown.texts.count(method) >= 2
    for name in ("curves-0", "widths-0", "costs"):
        assert (tmp_path / f"report/{name}.png").stat().st_size > 5_000
        ElementTree.parse(tmp_path / f"report/{name}.svg")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_a_browser_without_a_network_shows_the_page(runs, tmp_path):
    report_command([str(runs)], tmp_path / "report")
    browser = [
        *CHROMIUM, f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1200,3000",
    ]  # fmt: skip
    page = (tmp_path / "report/report.html").resolve().as_uri()
    shown = subprocess.run(
        [*browser, f"--screenshot={tmp_path / 'page.png'}", "--dump-dom", page],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    for said in ("6 searches", "Tables 1 and 2", "best validation accuracy in %"):
        assert said in shown.stdout
    with Image.open(tmp_path / "page.png") as picture:
        assert picture.size == (1200, 3000)
        colours = picture.convert("RGB").getcolors(2**24)
        ink = 1 - max(count for count, _ in colours) / (1200 * 3000)
    assert 0.02 < ink < 0.5  # tables and pictures, and paper around them
    assert len(colours) > 50


def test_curves_are_the_best_so_far(runs):
    (figure,) = draw_curves(curves_of(runs)).values()
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert lines["random (2)"].get_ydata() == pytest.approx([30.5, 50.5, 50.5])
    assert lines["turbo (2)"].get_ydata() == pytest.approx([20.5, 60.5, 70.5])
    assert any(line.get_ydata()[0] == pytest.approx(46) for line in figure.axes[0].lines)


def test_methods_are_beside_each_other_after_equally_many(runs, monkeypatch):
    monkeypatch.setattr("gnnrl_ray.display.page._MARKS", (1, 2, 3, 4))
    sheet = methods_sheet(curves_of(runs))
    rows = {row[1]: row[2:] for row in sheet.rows}
    assert rows["turbo"] == ["2", "20.50%", "60.50%", "70.50%", "", "70.50%"]
    assert rows["uniform"] == ["2", "45.50%", "", "", "", "45.50%"]
    assert (
        methods_sheet([c for c in curves_of(runs) if "turbo" in str(c.run.storage)]) is None
    )


def test_bars_are_what_the_best_run_of_each_method_drops(runs):
    (figure,) = draw_widths(curves_of(runs)).values()
    assert len(figure.axes) == len(ACCURACIES)
    for axis in figure.axes:
        method = axis.get_title(loc="left").split(",")[0]
        best = Run.open(runs / f"{method}-1").best()
        dropped = [1 - w / best["dense"][g] for g, w in best["groups"].items()]
        assert [p.get_height() for p in axis.patches] == pytest.approx(
            [100 * d for d in dropped]
        )
        # ResNet-20 has three streams.
        assert len({p.get_facecolor() for p in axis.patches}) == 2
        colors = [p.get_facecolor() for p in axis.patches]
        assert min(colors.count(color) for color in set(colors)) == 3


def test_the_front_is_what_nothing_is_better_and_cheaper_than(runs):
    axis = draw_costs(curves_of(runs)).axes[0]
    front = axis.lines[-1].get_ydata()
    assert (np.diff(front) > 0).all()
    assert front[-1] == pytest.approx(71)


def test_a_method_has_its_colour_in_every_picture(runs):
    curves = curves_of(runs)
    (figure,) = draw_curves(curves).values()
    costs = {line.get_label(): line for line in draw_costs(curves).axes[0].lines}
    for line in figure.axes[0].lines:
        method = line.get_label().split(" ")[0]
        if method in ACCURACIES:
            assert costs[method].get_color() == line.get_color()
    assert len({costs[method].get_color() for method in ACCURACIES}) == len(ACCURACIES)


def test_seeds_are_points_and_their_mean_a_line(runs):
    lines = draw_costs(curves_of(runs)).axes[0].lines
    names = [line.get_label() for line in lines]
    points, mean = lines[names.index("turbo")], lines[names.index("turbo") + 1]
    assert sorted(points.get_ydata()) == pytest.approx([70, 71])
    assert points.get_linestyle() == "None"
    assert mean.get_ydata() == pytest.approx([70.5])


def test_names_are_shown_and_not_interpreted(runs, tmp_path):
    evil = tmp_path / "<script>alert(1)</script>"
    shutil.copytree(runs / "random-0", evil)
    curves = [Curve.of(Run.open(evil))]
    shown = Page()
    shown.feed(page(sheets_of(curves), draw_curves(curves)))
    assert shown.fetched == []


def test_places_without_runs_are_said(tmp_path):
    with pytest.raises(GnnrlError, match="is no run, and no folder"):
        report_command([str(tmp_path / "nowhere")], tmp_path)
    with pytest.raises(GnnrlError, match="no run with a candidate"):
        report_command([str(tmp_path)], tmp_path)


def test_what_was_searched_in_other_ways_is_not_averaged(tmp_path):
    """Scores after training are of another kind; so are budgets, and agents."""
    network = build_network("resnet20").eval()
    groups, rng = trace(network, (3, 32, 32)), np.random.default_rng(0)
    ways = {
        "gnn-rl": {}, "gnn-rl --finetune 200": {"finetune": 200},
        "gnn-rl --agent paper": {"agent": {"algorithm": "ddpg"}},
        "gnn-rl --no-fit --agent hidden=[8]": {"agent": {"hidden": [8]}, "fit": False},
    }  # fmt: skip
    for n, way in enumerate(ways.values()):
        for seed in (0, 1):
            settings = SearchSettings(seed=seed, flops=0.5, env_runners=seed, **way)
            write(tmp_path / f"{n}-{seed}", settings, [0.1 * n, 0.2], network, groups, rng)
    settings = SearchSettings(flops=0.4)
    write(tmp_path / "less", settings, [0.4, 0.5], network, groups, rng)
    curves = curves_of(tmp_path)
    searches, accuracies, methods = sheets_of(curves)
    assert {row[2] for row in searches.rows} == set(ways)
    assert [row[1:3] for row in methods.rows] == [[way, "2"] for way in ways]
    assert sorted((row[2], row[3]) for row in accuracies.rows) == sorted(
        [*((way, "2") for way in ways), ("gnn-rl", "1")]
    )
    assert {curve.cell for curve in curves} == {
        "resnet20 on digits, --flops 0.5", "resnet20 on digits, --flops 0.4",
    }  # fmt: skip
