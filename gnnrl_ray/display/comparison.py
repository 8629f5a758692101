"""Comparisons of methods as tables and pictures."""

import io
from collections.abc import Iterator
from itertools import combinations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.table import Table
from scipy import stats

from gnnrl_ray.display.paper import ACCURACIES, markdown_table

_CELL = ["network", "budget", "method"]
_SPLITS = ("validation", "holdout", "test")


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each network, budget and method, over its seeds.

    For every accuracy in %: ``_mean``, ``_sd`` over searches, and ``_ci``, half the 95 %
    confidence interval of the mean. ``tuned`` is over all fine-tunings; ``change`` is that
    on the test set beside the dense network.

    Args:
        table: of :func:`~gnnrl_ray.jobs.comparing.compare`.
    """
    table = _without_errors(table)
    rows = []
    for about, cell in _by(table, *_CELL):
        row = dict(zip(_CELL, about, strict=True))
        searches = cell.drop_duplicates("seed")
        row |= {"n": len(searches), "evaluations": searches["evaluations"].mean()}
        for share in ("macs", "params", "paper"):
            row[f"{share}_share"] = searches[f"{share}_share"].mean()
        for kind, found in (("pruned", searches), ("tuned", cell)):
            for split in _SPLITS:
                row |= _spread(f"{kind}_{split}", found[f"{kind}_{split}"])
        row |= {n: 100 * searches[n].mean() for n in searches if n.startswith("after_")}
        change = cell["tuned_test"].astype(float) - cell["dense_test"]
        row["change"] = 100 * change.mean()
        kind = cell.get("kind", cell["method"]).iloc[0]  # what a variant is one of
        about = row["network"], cell["data"].iloc[0], kind
        row["paper"] = ACCURACIES.get(about, (np.nan,) * 3)[1]
        rows.append(row)
    return pd.DataFrame(rows)


def _by(table: pd.DataFrame, *names: str) -> Iterator[tuple[tuple, pd.DataFrame]]:
    """Yield the values of ``names`` and the rows that have them, in the table's order."""
    for about, rows in table.groupby(list(names), sort=False):
        yield tuple(np.atleast_1d(np.array(about, object))), rows


def _without_errors(table: pd.DataFrame) -> pd.DataFrame:
    return table.query("error.isna()") if "error" in table else table


def _spread(name: str, shares: pd.Series) -> dict[str, float]:
    values = 100 * shares.dropna().to_numpy(float)
    count = len(values)
    sd = values.std(ddof=1) if count > 1 else np.nan
    half = stats.t.ppf(0.975, count - 1) * sd / count**0.5 if count > 1 else np.nan
    mean = values.mean() if count else np.nan
    return {f"{name}_mean": mean, f"{name}_sd": sd, f"{name}_ci": half}


def paired(table: pd.DataFrame) -> pd.DataFrame:
    """Return, for each pair of methods, how far apart they are with the same seeds.

    ``difference`` of the first to the second in points of accuracy, ``p`` of Student's
    paired test, ``n`` seeds, at least one; on the holdout, after fine-tuning where there
    was one.
    """
    rows = []
    table = _without_errors(table)
    for (network, budget), cell in _by(table, "network", "budget"):
        tuned = cell["tuned_holdout"].notna().to_numpy().all()
        column = "tuned_holdout" if tuned else "pruned_holdout"
        means = cell.pivot_table(column, "seed", "method", aggfunc="mean", sort=False)
        for first, second in combinations(means.columns, 2):
            both = 100 * means[[first, second]].dropna().to_numpy(float)
            if not len(both):
                continue
            gap = both[:, 0] - both[:, 1]
            apart = len(gap) > 1 and np.ptp(gap) > 0
            p = stats.ttest_rel(*both.T).pvalue if apart else np.nan
            rows.append((network, budget, first, second, gap.mean(), p, len(gap)))
    names = ["network", "budget", "method", "beside", "difference", "p", "n"]
    return pd.DataFrame(rows, columns=names)


def _cells(found: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Return headings and rows for people; fine-tuning only where there was some."""
    tuned = found["tuned_test_mean"].notna().to_numpy().any()
    headings = ["network", "budget", "method", "n", "evaluations", "MACs %", "paper's %",
                "validation", "holdout"]  # fmt: skip
    if tuned:
        headings += ["test, fine-tuned", "beside dense", "paper"]
    rows = []
    for row in found.to_dict("records"):
        cells = [row["network"], row["budget"], row["method"], str(row["n"]),
                 f"{row['evaluations']:.0f}", f"{100 * row['macs_share']:.1f}",
                 f"{100 * row['paper_share']:.1f}", _plus_minus(row, "pruned_validation"),
                 _plus_minus(row, "pruned_holdout")]  # fmt: skip
        if tuned:
            paper = "" if np.isnan(row["paper"]) else f"{row['paper']:.2f}"
            cells += [_plus_minus(row, "tuned_test"), f"{row['change']:+.2f}", paper]
        rows.append(cells)
    return headings, rows


def _plus_minus(row: dict, name: str) -> str:
    mean, sd, half = (row[f"{name}_{kind}"] for kind in ("mean", "sd", "ci"))
    if np.isnan(sd):
        return f"{mean:.2f}"
    return f"{mean:.2f} ± {sd:.2f} ({mean - half:.1f} to {mean + half:.1f})"


def _curves(found: pd.DataFrame) -> str:
    """Return the best so far after some evaluations, as Markdown; rules have one."""
    looks = [n for n in found if str(n).startswith("after_")]
    rows = found.dropna(subset=looks, how="all").to_dict("records") if looks else []
    if not rows:
        return ""
    names = [name.removeprefix("after_") for name in looks]
    lines = []
    for row in rows:
        cells = ["" if np.isnan(row[n]) else f"{row[n]:.2f}" for n in looks]
        lines.append([*(row[name] for name in _CELL), *cells])
    text = markdown_table(["network", "budget", "method", *names], lines)
    return f"\n{text}\n\nBest validation accuracy after so many evaluations, mean.\n"


def comparison_table(found: pd.DataFrame) -> Table:
    """Return a :func:`summary` for a terminal."""
    headings, rows = _cells(found)
    table = Table(title="top-1 accuracy in %, mean ± sd", box=SIMPLE_HEAD)
    for column in headings:
        left = column in ("network", "budget", "method")
        table.add_column(column, justify="left" if left else "right")
    for row in rows:
        table.add_row(*row)
    return table


def comparison_markdown(found: pd.DataFrame, pairs: pd.DataFrame) -> str:
    """Return a :func:`summary`, and what :func:`paired` says, as Markdown."""
    text = markdown_table(*_cells(found))
    text += (
        "\n\nTop-1 accuracy in %, mean ± standard deviation over n seeds (and the 95 % "
        "confidence interval of the mean).\n"
    )
    text += _curves(found)
    several = [r for r in pairs.itertuples() if r.n > 1]  # of one seed, nothing is known
    if several:
        text += "\n| network | budget | method | beside | points | p | n |\n" + "|---" * 7
        text += "|\n" + "\n".join(
            f"| {r.network} | {r.budget} | {r.method} | {r.beside} | {r.difference:+.2f} "
            f"| {r.p:.3f} | {r.n} |"
            for r in several
        )
        text += "\n\nDifferences with the same seeds, on the holdout; paired t-test.\n"
    return text


def draw_comparison(table: pd.DataFrame) -> bytes:
    """Draw accuracy on the holdout of every search, by network and budget, as PNG."""
    table = _without_errors(table)
    cells = list(_by(table, "network", "budget"))
    figure = Figure(figsize=(max(4.5 * len(cells), 5), 4), layout="constrained")
    axes = figure.subplots(1, max(len(cells), 1), squeeze=False)[0]
    for axis, ((network, budget), cell) in zip(axes, cells, strict=False):
        methods = list(dict.fromkeys(cell["method"]))
        # First, or it may lie on the frame: limits keep their distance from what is drawn.
        axis.axhline(100 * cell["dense_holdout"].mean(), color="grey", lw=1, label="dense")
        for kind, mark in (("pruned", "o"), ("tuned", "^")):
            values = cell[f"{kind}_holdout"].astype(float)
            if values.notna().to_numpy().any():
                places = [methods.index(method) for method in cell["method"]]
                label = {"pruned": "as found", "tuned": "fine-tuned"}[kind]
                axis.plot(places, 100 * values, mark, alpha=0.7, label=label)
        axis.set_xticks(range(len(methods)), methods, rotation=60)
        axis.set(title=f"{network}, {budget}", ylabel="accuracy on the holdout in %")
        axis.legend(fontsize=7)
    picture = io.BytesIO()
    figure.savefig(picture, dpi=120, format="png")
    return picture.getvalue()
