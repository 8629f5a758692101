"""The tables of methods in docs/results.md, from what comparisons have measured.

    F=methods_resnet20; gnnrl-ray compare benchmarks/$F.toml --out benchmarks/results/$F
    python -m benchmarks.methods

A comparison goes on where it was: what is in ``rows/`` is not measured again. So it may
take as many evenings as it likes.
"""

from pathlib import Path

import pandas as pd

from gnnrl_ray.display.comparison import comparison_markdown, paired, summary

ROOT = Path(__file__).parent.parent
PAGE, RESULTS = ROOT / "docs/results.md", ROOT / "benchmarks/results"
COMPARISONS = ("methods_resnet20", "methods_resnet56", "tuned_resnet20")


def render(text: str) -> str:
    """Return the page ``text`` with every table that there are results for."""
    for name in COMPARISONS:
        path = RESULTS / name / "results.csv"
        marks = f"<!-- {name} -->", f"<!-- end of {name} -->"
        if path.exists():
            table = pd.read_csv(path)
            order = ["budget", "pruned_validation_mean"]
            found = summary(table).sort_values(order, ascending=False)
            best = found["method"].iloc[0]
            table = table.sort_values(
                "method", key=lambda name: name != best, kind="stable"
            )
            pairs = paired(table).query("method == @best")  # all are in results.csv
            before, rest = text.split(marks[0])
            after = rest.split(marks[1])[1]
            own = comparison_markdown(found, pairs)
            text = f"{before}{marks[0]}\n{own}{marks[1]}{after}"
    return text


def main() -> None:
    """Write the page."""
    PAGE.write_text(render(PAGE.read_text()))


if __name__ == "__main__":
    main()
