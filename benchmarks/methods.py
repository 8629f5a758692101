"""The tables of methods in docs/results.md and the README's picture of them.

What comparisons have measured, and no more:

    F=methods_resnet20; gnnrl-ray compare benchmarks/$F.toml --out benchmarks/results/$F
    python -m benchmarks.methods

A comparison goes on where it was: what is in ``rows/`` is not measured again. So it may
take as many evenings as it likes.
"""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from benchmarks.headline import insert
from gnnrl_ray.display.comparison import (
    comparison_markdown,
    markdown_table,
    paired,
    summary,
)

ROOT = Path(__file__).parent.parent
PAGE, README = ROOT / "docs/results.md", ROOT / "README.md"
RESULTS = ROOT / "benchmarks/results"
PICTURE = ROOT / "docs/images/curves.png"
COMPARISONS = ("methods_resnet20", "methods_resnet56", "tuned_resnet20")
SHOWN = {"gnn-rl": "C3", "gp": "C0", "turbo": "C2", "tpe": "C4", "random": "C7"}


def render(text: str) -> str:
    """Return the page ``text`` with every table that there are results for."""
    for name in COMPARISONS:
        path = RESULTS / name / "results.csv"
        if path.exists():
            table = pd.read_csv(path)
            order = ["budget", "pruned_validation_mean"]
            found = summary(table).sort_values(order, ascending=False)
            best = found["method"].iloc[0]
            table = table.sort_values(
                "method", key=lambda name: name != best, kind="stable"
            )
            pairs = paired(table).query("method == @best")  # all are in results.csv
            own = comparison_markdown(found, pairs).removesuffix("\n")
            text = insert(text, own, name)
    return text


def render_readme(text: str) -> str:
    """Return the README ``text`` with the table of methods that all four cells have."""
    tables = [pd.read_csv(RESULTS / name / "results.csv") for name in COMPARISONS[:2]]
    found = summary(pd.concat(tables))
    found["cell"] = found["network"] + ", " + found["budget"].map(
        lambda budget: f"{float(budget.removeprefix('flops ')):.0%}"
    )  # fmt: skip
    found["said"] = found.apply(_said, axis=1)
    wide = found.pivot(index="method", columns="cell", values="said").dropna()
    mean = found.pivot(index="method", columns="cell", values="pruned_validation_mean")
    order = mean.loc[wide.index].mean(axis=1).sort_values(ascending=False).index
    wide = wide.loc[order, list(dict.fromkeys(found["cell"]))]
    rows = [[f"`{method}`", *cells] for method, *cells in wide.itertuples()]
    return insert(text, markdown_table(["method", *wide], rows), "methods")


def _said(row: pd.Series) -> str:
    mean, n = f"{row['pruned_validation_mean']:.1f}", row["n"]
    return mean if n == 1 else f"{mean} ± {row['pruned_validation_sd']:.1f} ({n})"


def draw(budget: str = "flops 0.5") -> Figure:
    """Draw the best so far by evaluation: mean of all seeds, from the worst to the best."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    for axis, name in zip(figure.subplots(1, 2), COMPARISONS, strict=False):
        table = pd.read_csv(RESULTS / name / "results.csv").query("budget == @budget")
        looks = [column for column in table if column.startswith("after_")]
        evaluations = [int(look.removeprefix("after_")) for look in looks]
        for method, color in SHOWN.items():
            best = 100 * table.loc[table["method"] == method, looks]
            axis.fill_between(evaluations, best.min(), best.max(), color=color, alpha=0.15)
            axis.plot(
                evaluations, best.mean(), color=color, label=f"{method} ({len(best)})"
            )
        for method, style in (("inside", "--"), ("uniform", ":")):
            rule = 100 * table.loc[table["method"] == method, "pruned_validation"].mean()
            axis.axhline(rule, color="grey", ls=style, lw=1, label=f"{method}, a rule")
        axis.set(title=f"{table['network'].iloc[0]}, half the MACs", xlabel="evaluations")
    figure.axes[0].set_ylabel("best validation accuracy in %")
    figure.axes[1].legend(fontsize=8)
    return figure


def main() -> None:
    """Write pages and picture."""
    README.write_text(render_readme(README.read_text()))
    PAGE.write_text(render(PAGE.read_text()))
    draw().savefig(PICTURE, dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main()
