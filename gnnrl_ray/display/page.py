"""Finished searches as one page that opens without a network."""

import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.figure import Figure

from gnnrl_ray.display.paper import Sheet, accuracy_sheet, speed_sheet
from gnnrl_ray.display.report import budget_used
from gnnrl_ray.graph.facts import inside_blocks
from gnnrl_ray.run.directory import Run
from gnnrl_ray.tracing.groups import ChannelGroups, trace
from gnnrl_ray.zoo import build_network, is_ours

_MARKS = (10, 20, 40, 60, 90, 120, 150, 180)  # candidates
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 75em; margin: 2em auto;
       padding: 0 1em; color: #222; }
table { border-collapse: collapse; margin: 1em 0; }
th, td { padding: .25em .8em; border-bottom: 1px solid #ddd; text-align: right; }
td { white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
div { overflow-x: auto; }
svg { max-width: 100%; height: auto; }
"""


@dataclass(frozen=True)
class Curve:
    """What a page says of one run.

    Attributes:
        run: its directory.
        cell: network and budget, for people.
        best: best validation accuracy in [0, 1] after each candidate.
    """

    run: Run
    cell: str
    best: np.ndarray

    @classmethod
    def of(cls, run: Run) -> "Curve":
        """Read a run."""
        accuracies = [outcome.accuracy for _, outcome in run.journal]
        where = f"{run.source.network or 'a network'} on {run.source.dataset}"
        cell = f"{where}, {run.settings.limits}"
        return cls(run, cell, np.maximum.accumulate(accuracies))

    @property
    def manner(self) -> str:
        """How it was searched; runs that differ in no more than seeds are of one."""
        return self.run.settings.manner


def draw_curves(curves: Sequence[Curve]) -> dict[str, Figure]:
    """Draw the best so far by candidate, a picture for each network and budget."""
    figures, colours = {}, _colours(curves)
    for n, (cell, rows) in enumerate(_by_cell(curves).items()):
        figure = Figure(figsize=(9.5, 4.5), layout="constrained")
        axis = figure.subplots()
        for method in dict.fromkeys(row.manner for row in rows):
            colour = colours[method]
            own = [100 * row.best for row in rows if row.manner == method]
            if max(map(len, own)) == 1:
                best = max(curve[0] for curve in own)
                axis.axhline(best, ls=":", lw=1.5, color=colour, label=method)
                continue
            length = min(map(len, own))
            several = np.array([o[:length] for o in own])
            episodes = np.arange(1, length + 1)
            axis.fill_between(
                episodes, several.min(0), several.max(0), color=colour, alpha=0.2, lw=0
            )
            label = f"{method} ({len(own)})" if len(own) > 1 else method
            axis.plot(episodes, several.mean(0), color=colour, label=label)
            for one in own:  # those that have gone further than all of their method
                further = np.arange(length, len(one) + 1)
                axis.plot(further, one[length - 1 :], color=colour, lw=0.8, alpha=0.7)
        axis.set(xlabel="candidates", ylabel="best validation accuracy in %", title=cell)
        axis.xaxis.get_major_locator().set_params(integer=True)
        figure.legend(fontsize=8, loc="outside right upper")
        figures[f"curves-{n}"] = figure
    return figures


def draw_widths(curves: Sequence[Curve]) -> dict[str, Figure]:
    """Draw what the best run of each method keeps of every group: the paper's Figure 3."""
    figures = {}
    for n, (cell, rows) in enumerate(_by_cell(curves).items()):
        best: dict[str, Curve] = {}
        for row in sorted(rows, key=lambda row: row.best[-1]):
            best[row.manner] = row
        dense = rows[0].run.best()["dense"]
        streams = _streams(rows[0].run)
        width = max(7.0, 0.22 * len(dense))
        figure = Figure(figsize=(width, 1.7 * len(best) + 0.8), layout="constrained")
        axes = figure.subplots(len(best), 1, sharex=True, sharey=True, squeeze=False)
        for axis, (method, row) in zip(axes[:, 0], best.items(), strict=True):
            found = row.run.best()
            dropped = [100 * (1 - w / dense[g]) for g, w in found["groups"].items()]
            colors = ["C1" if stream else "C0" for stream in streams]
            axis.bar(range(len(dropped)), dropped, color=colors or "C0")
            axis.set(ylabel="dropped, %", ylim=(0, 100))
            axis.set_title(f"{method}, {found['accuracy']:.2%}", fontsize=9, loc="left")
        names = list(dense)
        axes[-1, 0].set_xticks(range(len(names)), names, rotation=90, fontsize=6)
        note = "; orange: passed on from block to block" if any(streams) else ""
        figure.suptitle(cell + note, fontsize=10)
        figures[f"widths-{n}"] = figure
    return figures


def draw_costs(curves: Sequence[Curve]) -> Figure:
    """Draw accuracy against multiply-accumulates, all winners: the paper's Figure 4.

    A line is through the means of a method over its seeds, by budget.
    """
    figure = Figure(figsize=(9.5, 4.5), layout="constrained")
    axis, colours = figure.subplots(), _colours(curves)
    points: dict[str, dict[str, dict[str, list]]] = {}  # by network, method, budget
    for curve in curves:
        found, network = curve.run.best(), curve.run.source.network or "a network"
        dense = found["budget"].get("flops", {}).get("dense")
        if dense:
            own = points.setdefault(network, {}).setdefault(curve.manner, {})
            point = found["macs"] / dense, 100 * found["accuracy"]
            own.setdefault(curve.run.settings.limits, []).append(point)
    for (network, methods), mark in zip(points.items(), cycle("os^Dv"), strict=False):
        for method, budgets in methods.items():
            every = np.concatenate(list(budgets.values()))
            label = f"{network} {method}" if len(points) > 1 else method
            axis.plot(*every.T, mark, ms=4, alpha=0.7, color=colours[method], label=label)
            means = sorted(tuple(np.mean(several, 0)) for several in budgets.values())
            axis.plot(*zip(*means, strict=True), lw=0.7, color=colours[method])
    for methods in points.values():
        every = [p for own in methods.values() for several in own.values() for p in several]
        front = _front(sorted(every))
        axis.step(*zip(*front, strict=True), where="post", color="grey", lw=1, zorder=0)
    axis.set(xlabel="share of the multiply-accumulates", ylabel="validation accuracy in %",
             title="winners; grey: the Pareto front of each network")  # fmt: skip
    if points:
        figure.legend(fontsize=7, loc="outside right upper")
    return figure


def _front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return those of ``points``, cheapest first, that nothing cheaper is as good as."""
    return [p for n, p in enumerate(points) if all(p[1] > q[1] for q in points[:n])]


def _colours(curves: Sequence[Curve]) -> dict[str, tuple[float, float, float]]:
    """Return the colour that each method has in all pictures."""
    methods = list(dict.fromkeys(curve.manner for curve in curves))
    palette = colormaps["tab20"].colors
    return dict(zip(methods, cycle(palette[::2] + palette[1::2]), strict=False))


def sheets_of(curves: Sequence[Curve]) -> list[Sheet]:
    """Return all tables: every run, and the paper's, with what there is to fill them."""
    heads = ("run", "network, budget", "method", "seed", "candidates", "used",
             "validation")  # fmt: skip
    rows = []
    folders = {str(curve.run.storage).rpartition("/")[0] for curve in curves}
    folder = folders.pop() if len(folders) == 1 else ""
    for curve in sorted(curves, key=lambda c: (c.cell, -c.best[-1])):
        run, found = curve.run, curve.run.best()
        name = str(run.storage).removeprefix(f"{folder}/")
        rows.append([name, curve.cell, curve.manner, run.settings.seed, len(run.journal),
                     budget_used(found), f"{found['accuracy']:.2%}"])  # fmt: skip
    rows = [[str(cell) for cell in row] for row in rows]
    note = "Top-1 accuracy on the validation split, before fine-tuning."
    note += f" All are in {folder}." if folder else ""
    runs = [curve.run for curve in curves]
    own = Sheet("Searches", heads, rows, note), accuracy_sheet(runs, _groups_of(runs))
    more = methods_sheet(curves), speed_sheet(runs)
    return [*own, *(sheet for sheet in more if sheet is not None)]


def methods_sheet(curves: Sequence[Curve]) -> Sheet | None:
    """Return the best of each method after equally many candidates, if there are several.

    Means over the searches that have come so far; rules have one candidate.
    """
    rows = []
    for cell, own in _by_cell(curves).items():
        methods = list(dict.fromkeys(row.manner for row in own))
        for method in methods if len(methods) > 1 else ():
            found = [c.best for c in own if c.manner == method]
            means = [_mean_after(found, mark) for mark in _MARKS]
            last = np.mean([best[-1] for best in found])
            rows.append([cell, method, str(len(found)), *means, f"{last:.2%}"])
    if not rows:
        return None
    heads = ("network, budget", "method", "n", *map(str, _MARKS), "so far")
    note = "Best validation accuracy after so many candidates, mean over n searches."
    return Sheet("Methods beside each other", heads, rows, note)


def _mean_after(curves: Sequence[np.ndarray], mark: int) -> str:
    if min(map(len, curves)) < mark:
        return ""
    return f"{np.mean([curve[mark - 1] for curve in curves]):.2%}"


def page(
    sheets: Sequence[Sheet],
    figures: dict[str, Figure],
    script: tuple[str, str] = ("", ""),
    live: str = "",
) -> str:
    """Return the page: tables and figures, and nothing that would have to be fetched.

    Args:
        sheets: the first has a row for each search.
        figures: by their names.
        script: and its nonce, if there is one.
        live: what stands first, and is replaced by the script; HTML.
    """
    tables = "\n".join(map(as_table, sheets))
    pictures = "\n".join(
        f"<figure>{as_svg(figure)}</figure>" for figure in figures.values()
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>gnnrl-ray: {len(sheets[0].rows)} searches</title>"
        f"<style>{_STYLE}</style>{_script(*script)}</head>\n"
        f"<body><h1>{len(sheets[0].rows)} searches</h1>\n"
        f"{live}{tables}\n{pictures}\n</body></html>\n"
    )


def _script(text: str, nonce: str) -> str:
    return f'<script nonce="{nonce}">{text}</script>' if text else ""


def as_table(sheet: Sheet) -> str:
    """Return a table as HTML."""
    head = "".join(f"<th>{html.escape(h)}</th>" for h in sheet.heads)
    body = "\n".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
        for row in sheet.rows
    )
    return (
        f"<h2>{html.escape(sheet.title)}</h2>\n<div><table><thead><tr>{head}</tr></thead>"
        f"\n<tbody>{body}</tbody></table></div>\n<p>{html.escape(sheet.note)}</p>"
    )


def as_svg(figure: Figure) -> str:
    """Return a figure as an SVG element; its text stays text."""
    picture = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "gnnrl-ray"}):
        figure.savefig(picture, format="svg", metadata={"Date": None})
    text = picture.getvalue()
    return text[text.index("<svg") :]


def _by_cell(curves: Sequence[Curve]) -> dict[str, list[Curve]]:
    cells: dict[str, list[Curve]] = {}
    for curve in curves:
        cells.setdefault(curve.cell, []).append(curve)
    return cells


def _groups_of(runs: Sequence[Run]) -> list[ChannelGroups | None]:
    """Return the groups of each run's network; none of networks that are not ours."""
    known: dict[tuple, ChannelGroups | None] = {}
    found = []
    for run in runs:
        name, shape = run.source.network, tuple(run.best()["input_shape"])
        key = (name, shape, run.classes, *run.settings.tracing.values())
        if key not in known:
            known[key] = None
            if name is not None and is_ours(name):
                network = build_network(name, run.classes, shape[-1])
                known[key] = trace(network, shape, **run.settings.tracing, check=False)
        found.append(known[key])
    return found


def _streams(run: Run) -> list[bool]:
    """Say of each group whether blocks pass it on; nothing of networks not of the zoo."""
    (groups,) = _groups_of([run])
    return [] if groups is None else (~inside_blocks(groups)).tolist()
