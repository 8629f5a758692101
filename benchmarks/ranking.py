"""How well kriging ranks candidates that it has not seen: docs/results.md.

    python -m benchmarks.ranking --json benchmarks/results/ranking.json

The first candidates of one search are known, those of all other searches of the network
within the same budget are to be ranked. Nothing is scored anew.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import norm, rankdata, spearmanr

from gnnrl_ray.agent import kriging
from gnnrl_ray.agent.candidates import History

ROOT = Path(__file__).parent / "results"
KNOWN = (10, 20, 40, 90, 150)
GOOD = 1 / 3  # the share of all that is to be ranked
BEST = 10
WIDTHS = {
    "resnet20": np.repeat([16, 32, 64], 4), "resnet56": np.repeat([16, 32, 64], 10)
}  # fmt: skip


class Ranks(History):
    """What was scored, learnt as normal scores of its ranks."""

    @property
    def worths(self) -> np.ndarray:  # noqa: D102
        return norm.ppf((rankdata(self.scores) - 0.5) / len(self))


Judge = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def _judged(
    known: np.ndarray, scores: np.ndarray, others: np.ndarray,
    kernel: kriging.Kernel | None = None, history: type[History] = History,
) -> np.ndarray:  # fmt: skip
    return kriging.promise(history(known, scores), others, kernel)


JUDGES: dict[str, Judge] = {
    "as it is": _judged,
    "smooth alone": partial(_judged, kernel=kriging.smooth),
    "rough alone": partial(_judged, kernel=kriging.rough),
    "of ranks": partial(_judged, history=Ranks),
}


def searches() -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Yield network and budget, folder, and the candidates of every search that is kept."""
    for path in sorted(ROOT.glob("**/journal.jsonl")):
        run = json.loads(path.with_name("run.json").read_text())
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        rows = [row for row in rows if row.get("accuracy") is not None]
        network, settings = run["source"]["network"], run["settings"]
        cell = f"{network} at {settings['flops']}"
        if rows and network in WIDTHS and settings["finetune"] == "recalibrate":
            yield cell, str(path.parent.relative_to(ROOT)), pd.DataFrame(rows)


def measure() -> pd.DataFrame:
    """Return a row for every search, number of known candidates, and judge."""
    found = pd.DataFrame(list(searches()), columns=["cell", "search", "rows"])
    rows = []
    for cell, here in found.groupby("cell"):
        dense = WIDTHS[cell.split()[0]]
        for search, own in zip(here["search"], here["rows"], strict=True):
            if len(own) < max(KNOWN) or len(here) == 1:
                continue
            others = pd.concat(here["rows"][here["search"] != search].tolist())
            wanted, truth = _ratios(others, dense), others["accuracy"].to_numpy()
            for known in KNOWN:
                ratios = _ratios(own[:known], dense)
                scores = own["accuracy"][:known].to_numpy() - 1
                for name, judge in JUDGES.items():
                    compared = _compare(judge(ratios, scores, wanted), truth)
                    row = {"cell": cell, "search": search, "known": known, "judge": name}
                    rows.append(row | compared)
    return pd.DataFrame(rows)


def _ratios(rows: pd.DataFrame, dense: np.ndarray) -> np.ndarray:
    return 1 - np.array(rows["widths"].tolist()) / dense


def _compare(judged: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Return rank correlations, of all and of the good, and what the favourites have."""
    good = truth >= np.quantile(truth, 1 - GOOD)
    return {
        "all": spearmanr(judged, truth).statistic,
        "good": spearmanr(judged[good], truth[good]).statistic,
        "favourites": truth[np.argsort(-judged)[:BEST]].mean(),
    }


def main() -> None:
    """Print the means, and write every row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="Every row.")
    args = parser.parse_args()
    table = measure()
    means = table.groupby(["cell", "known", "judge"])[["all", "good", "favourites"]].mean()
    print(means.round(3).to_string())
    if args.json:
        args.json.write_text(table.to_json(orient="records", indent=1))


if __name__ == "__main__":
    main()
