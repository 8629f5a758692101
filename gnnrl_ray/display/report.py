"""Runs and networks as numbers, tables and pictures for people."""

import io
from collections.abc import Sequence
from itertools import groupby

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.table import Table

from gnnrl_ray.data import Data
from gnnrl_ray.display.drawing import motif_names
from gnnrl_ray.graph.hierarchy import HierarchicalGraph
from gnnrl_ray.pruning.costs import Costs
from gnnrl_ray.run.directory import Run
from gnnrl_ray.tracing.groups import ChannelGroups


def measures_table(rows: dict[str, dict[str, float]], data: Data) -> Table:
    """Return the measures of several networks, the first being what others are held to."""
    title = f"{data.name}, validation {data.protocol}, top-1 accuracy in %"
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("network")
    dense = next(iter(rows.values()))
    splits = [name for name in ("validation", "holdout", "test") if name in dense]
    for column in (*splits, "MACs", "%", "parameters", "%"):
        table.add_column(column, justify="right")
    for name, row in rows.items():
        cells = [f"{100 * row[split]:.2f}" for split in splits]
        for cost in ("macs", "params"):
            cells += [f"{row[cost]:,}", f"{100 * row[cost] / dense[cost]:.1f}"]
        table.add_row(name, *cells)
    return table


def speed_table(speeds: dict[str, dict[str, dict]], where: str) -> Table:
    """Return how fast networks are, the first being what others are held to.

    Args:
        speeds: by network and batch, of :func:`~gnnrl_ray.scoring.speed.measure_speed`.
        where: they were measured.
    """
    table = Table(title=f"a pass, on {where}", box=SIMPLE_HEAD)
    for column in ("network", "batch", "median, ms", "95 %, ms", "images/s", "times",
                   "memory, MB"):  # fmt: skip
        table.add_column(column, justify="left" if column == "network" else "right")
    dense = next(iter(speeds.values()))
    for name, batches in speeds.items():
        for batch, speed in batches.items():
            times = dense[batch]["median_ms"] / speed["median_ms"]
            table.add_row(
                name, batch, f"{speed['median_ms']:.2f}", f"{speed['p95_ms']:.2f}",
                f"{speed['per_second']:,.0f}", f"{times:.2f}",
                f"{speed['memory'] / 1e6:.1f}",
            )  # fmt: skip
    return table


def describe(graph: HierarchicalGraph) -> dict:
    """Return what there is to prune in a network, for JSON.

    ``groups``: for each its ``channels``, what widths are ``multiple_of``, the
    layers it is ``made`` and ``read`` by, and the depth-wise ones in between that
    ``carry`` it; ``whole``, ``left`` and ``closed`` as in :class:`ChannelGroups`;
    ``levels`` of motifs.
    """
    groups, costs = graph.groups, Costs(graph.groups)
    return {
        "macs": costs.dense,
        "params": int(costs.params(groups.widths)),
        "groups": {
            name: {
                "channels": int(groups.widths[g]),
                "multiple_of": int(groups.multiple_of[g]),
                "made": _layers(groups, g, "outputs", depthwise=False),
                "carry": _layers(groups, g, "outputs", depthwise=True),
                "read": _layers(groups, g, "inputs", depthwise=False),
            }
            for g, name in enumerate(groups.names)
        },
        "whole": dict(groups.whole),
        "left": list(groups.left),
        "closed": list(groups.closed),
        "levels": [
            [{"motif": motif.label, "instances": len(motif.children)} for motif in motifs]
            for motifs in graph.levels
        ],
    }


def _layers(groups: ChannelGroups, g: int, end: str, depthwise: bool) -> list[str]:
    """Return the layers of one sort with channels of group ``g`` at their ``end``."""
    return [
        op.module or op.name
        for op in groups.layers
        if op.depthwise == depthwise and g in groups.group_of(getattr(op, end))
    ]


def groups_table(groups: ChannelGroups) -> Table:
    """Return what would be pruned: groups, their layers and share of the cost."""
    costs = Costs(groups)
    total = costs.dense
    table = Table(title=f"{len(groups.names)} channel groups")
    for column in ("group", "channels", "layers", "MACs without it"):
        table.add_column(column, justify="left" if column == "group" else "right")
    for g, name in enumerate(groups.names):
        ends = [np.concatenate([op.inputs, op.outputs]) for op in groups.layers]
        layers = sum(g in groups.group_of(channels) for channels in ends)
        least = np.where(
            np.arange(len(groups.names)) == g, groups.multiple_of, groups.widths
        )
        width, step = groups.widths[g], groups.multiple_of[g]
        channels = str(width) if step == 1 else f"{width // step} x {step}"
        share = f"{costs.macs(least) / total:.1%}"
        table.add_row(name, channels, str(layers), share)
    return table


def whole_table(groups: ChannelGroups) -> Table:
    """Return which layers keep all that they make, and why."""
    table = Table(title=f"{len(groups.whole)} layers are left whole")
    table.add_column("layer")
    table.add_column("why", overflow="fold")
    for name, reason in groups.whole.items():
        table.add_row(name, reason)
    return table


def left_table(groups: ChannelGroups) -> Table:
    """Return what was not understood."""
    table = Table(title="not traced")
    table.add_column("module or operation", overflow="fold")
    for name in (*groups.closed, *groups.left):
        table.add_row(name)
    return table


def motifs_table(graph: HierarchicalGraph) -> Table:
    """Return the levels of the hierarchical graph."""
    table = Table(title=f"{len(graph.levels)} levels")
    for column in ("motif", "of", "instances", "states", "edges", "first"):
        left = column in ("motif", "of", "first")
        table.add_column(column, justify="left" if left else "right", overflow="fold")
    features = graph.features(graph.groups.widths)
    below: list[str] = []
    for t, (motifs, names) in enumerate(zip(graph.levels, motif_names(graph), strict=True)):
        for motif, name in zip(motifs, names, strict=True):
            # At the top, instances differ in what their edges are one level down.
            rows = features[motif.children] if t == 0 else motif.children
            states = len({row.tobytes() for row in rows})
            numbers = (len(motif.children), states, motif.edges.shape[1])
            parts = (
                motif.label.split("-") if t == 0 else [below[c] for c in motif.children[0]]
            )
            place = motif.places[0][0]
            table.add_row(name, _shortened(parts), *map(str, numbers), place)
        below = [name for m, name in zip(motifs, names, strict=True) for _ in m.children]
    return table


def _shortened(words: Sequence[str]) -> str:
    """Write words with repetitions counted: ``M1 M2 x3``."""
    runs = [(word, len(list(same))) for word, same in groupby(words)]
    return " ".join(word if n == 1 else f"{word} x{n}" for word, n in runs)


def sweep_table(summary: pd.DataFrame, searches: int) -> Table:
    """Return the accuracies of a sweep, a row for equal settings."""
    table = Table(title=f"{searches} searches, best validation accuracy")
    for column in summary:
        table.add_column(str(column), justify="right")
    for row in summary.itertuples(index=False):
        table.add_row(*(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row))
    return table


def budget_used(best: dict) -> str:
    """Say what of the dense network's costs the winner has: ``49.9% of the ...``."""
    return ", ".join(
        f"{use['cost'] / use['dense']:.1%} of the {use['unit']}"
        for use in best["budget"].values()
    )


def draw_search(run: Run) -> None:
    """Keep what :func:`search_figure` draws, as ``search.png`` of the run."""
    picture = io.BytesIO()
    search_figure(run).savefig(picture, dpi=120, format="png")
    run.storage.write("search.png", picture.getvalue())


def search_figure(run: Run) -> Figure:
    """Draw accuracy by episode, and what the winner keeps of every group."""
    episodes = np.array([episode for episode, _ in run.journal])
    scores = np.array([outcome.accuracy for _, outcome in run.journal])
    best = run.best()
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(episodes, 100 * scores, ".", color="tab:grey", label="candidate")
    left.plot(episodes, 100 * np.maximum.accumulate(scores), label="best so far")
    left.set(xlabel="episode", ylabel="validation accuracy in %")
    left.set_title(f"{best['method']} at {budget_used(best)}", fontsize=10)
    left.legend()
    dense = best["dense"]
    kept = [width / dense[name] for name, width in best["groups"].items()]
    right.barh(range(len(kept)), kept)
    right.set_yticks(range(len(kept)), list(dense), fontsize=7)
    right.invert_yaxis()
    right.set(xlabel="share of channels kept", xlim=(0, 1))
    right.set_title(f"winner: episode {best['episode']}, {best['accuracy']:.2%}")
    return figure
