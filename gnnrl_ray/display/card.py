"""What whoever is handed a pruned network should know of it, in Markdown."""

import json
from collections.abc import Mapping

from gnnrl_ray.display.paper import markdown_table
from gnnrl_ray.display.report import budget_used
from gnnrl_ray.run.directory import Run


def model_card(run: Run) -> str:
    """Return the model card of the winner of ``run``, a finished search."""
    best, facts, measures = run.best(), run.facts, run.measures()
    name = run.source.network or "a network of one's own"
    tuned = None
    if run.storage.exists("finetune.json"):
        tuned = json.loads(run.storage.read("finetune.json"))
    parts = [
        f"# {name} at {budget_used(best)}",
        f"Pruned by gnnrl_ray {facts['versions'].get('gnnrl-ray', '')} "
        f"(method `{run.settings.method}`, seed {run.settings.seed}, candidate "
        f"{best['episode']} of {len(run.journal)}): channels were removed, not masked.",
        "## What it is worth",
        _measured(measures) if measures else "Not measured; see `gnnrl-ray evaluate`.",
        _splits(run),
        "## How it was made",
        _table({"data set": run.source.dataset, "validation": run.source.validation}
               | {f"SHA-256 of {k}": v for k, v in facts.get("hashes", {}).items()}
               | {k: v for k, v in run.settings.to_dict().items() if v is not None}),
        "## Fine-tuning",
        _table(tuned) if tuned else "None; the statistics of normalisation are its own.",
        "## Widths",
        _table({g: f"{w} of {best['dense'][g]}" for g, w in best["groups"].items()}),
        "## Where",
        _table(facts["versions"] | facts["hardware"]),
    ]  # fmt: skip
    if exports := run.exports():
        parts += ["## Files", "\n".join(f"- {e['checked']}" for e in exports.values())]
    return "\n\n".join(parts) + "\n"


def _measured(measures: Mapping[str, Mapping]) -> str:
    costs = {"macs": "multiply-accumulates", "params": "parameters"}
    splits = [s for s in ("validation", "holdout", "test") if s in measures["dense"]]
    head = ["network", *(f"{s}, top-1 %" for s in splits), *costs.values()]
    rows = [
        [name, *(f"{100 * row[s]:.2f}" for s in splits), *(f"{row[c]:,}" for c in costs)]
        for name, row in measures.items()
    ]
    return markdown_table(head, rows)


def _splits(run: Run) -> str:
    match run.source.validation:
        case "test-5k":
            return (
                "The search has seen the labels of the validation images, which are of the "
                "test set; `holdout` is the rest of it, which nothing has seen."
            )
        case "train-5k":
            return "Validation images are training images; nothing has seen the test set."
    return "Validation data were given by whoever searched."


def _table(facts: Mapping[str, object]) -> str:
    return markdown_table(("", ""), [(name, str(value)) for name, value in facts.items()])
