"""Pictures of hierarchical graphs.

Axis letters: N nodes of one graph.
"""

from collections.abc import Iterable
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from gnnrl_ray.graph.hierarchy import HierarchicalGraph, Motif
from gnnrl_ray.graph.regions import stride

_KIND_COLOURS = {
    "conv": "tab:blue", "linear": "tab:cyan", "norm": "tab:olive",
    "activation": "tab:orange", "pool": "tab:purple", "add": "tab:green",
    "multiply": "tab:brown", "concat": "tab:red", "select": "tab:pink",
    "reshape": "tab:gray", "other": "black",
}  # fmt: skip
_PER_ROW = 24  # instances in one row of the network's chain


def draw_graph(graph: HierarchicalGraph, title: str, path: Path) -> None:
    """Draw the network as a chain of motif instances, and each motif that it is made of.

    Nodes are hidden states and arrows operations, coloured by kind; in the chain, arrows
    are motif instances, coloured by motif, and brackets are the stages of a third level.

    Args:
        graph: of the network.
        title: its name.
        path: ``.svg`` or ``.png``.
    """
    motifs = graph.levels[0]
    colours = [matplotlib.colormaps["tab20"](i % 20) for i in range(len(motifs))]
    chain, stages = _chain(graph)
    rows = -(-len(chain) // _PER_ROW)
    heights = [0.9 * rows + 0.4, *(_height(motif) for motif in motifs)]
    figure = Figure(figsize=(13, sum(heights) + 0.6), layout="constrained")
    axes = figure.subplots(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    figure.suptitle(f"{title}: {len(graph.levels)} levels", fontsize=12)
    _draw_chain(axes[0], chain, stages, colours)
    for i, (motif, axis) in enumerate(zip(motifs, axes[1:], strict=True)):
        _draw_motif(axis, motif, graph)
        count = len(motif.children)
        axis.text(
            -2.6, 0.1, f"M{i + 1}", fontsize=9, va="center",
            bbox={"facecolor": colours[i], "lw": 0},
        )  # fmt: skip
        text = f"{count} instance{'s' * (count > 1)}\n{motif.places[0][0]}"
        axis.text(-2.6, -0.35, text, fontsize=7, va="top")
    used = {kind for motif in motifs for kind in motif.label.split("-")}
    kinds = [kind for kind in _KIND_COLOURS if kind in used]
    figure.legend(
        handles=[Line2D([], [], color=_KIND_COLOURS[k], label=k, lw=2) for k in kinds],
        loc="outside lower center", ncols=len(kinds), fontsize=8, frameon=False,
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    # The same graph, the same file.
    with matplotlib.rc_context({"svg.hashsalt": "gnnrl-ray"}):
        figure.savefig(
            path, dpi=110, metadata={"Date": None} if path.suffix == ".svg" else None
        )


def motif_names(graph: HierarchicalGraph) -> list[list[str]]:
    """Return short names of the motifs of each level: M1, M2, ..; A, B, ..; network."""
    letters = [chr(ord("A") + i) if i < 26 else f"Z{i - 25}" for i in range(1000)]
    names = [[f"M{i + 1}" for i in range(len(graph.levels[0]))]]
    names += [letters[: len(motifs)] for motifs in graph.levels[1:]]
    names[-1] = ["network"]
    return names


def _chain(graph: HierarchicalGraph) -> tuple[list[int], list[tuple[str, int, int]]]:
    """Return the motif of each instance in network order, and stages (name, from, to).

    Single edges that join states inside a block are left out.
    """
    motif_of = [i for i, motif in enumerate(graph.levels[0]) for _ in motif.children]
    joins = {i for i, motif in enumerate(graph.levels[0]) if motif.label == "concat"}

    def drawn(instances: Iterable[int]) -> list[int]:
        return [motif_of[i] for i in instances if motif_of[i] not in joins]

    top = graph.levels[-1][0].children[0]
    if len(graph.levels) == 1:
        return [0], []
    if len(graph.levels) == 2:
        return drawn(top), []
    letters = motif_names(graph)[1]
    sequences = [
        (letter, row)
        for letter, motif in zip(letters, graph.levels[1], strict=True)
        for row in motif.children
    ]
    chain: list[int] = []
    stages = []
    for child in top:
        letter, row = sequences[child]
        start = len(chain)
        chain += drawn(row)
        stages.append((letter, start, len(chain)))
    return chain, stages


def _height(motif: Motif) -> float:
    return 0.35 * (1 + np.ptp(_positions(motif)[:, 1])) + 0.35


def _positions(motif: Motif) -> np.ndarray:
    """Float [N, 2]: the longest way from the entry, and a row of its own for a branch."""
    depth = np.zeros(motif.nodes, int)
    row = np.zeros(motif.nodes)
    taken: set[tuple[int, int]] = set()
    edges = motif.edges.T.tolist()
    for node in range(1, motif.nodes):  # in execution order, so parents come first
        parents = [a for a, b in edges if b == node]
        depth[node] = 1 + max((depth[p] for p in parents), default=0)
        wish = int(row[max(parents, key=lambda p: depth[p])]) if parents else 0
        if len(parents) > 1:
            wish = 0
        while (int(depth[node]), wish) in taken:
            wish += 1
        taken.add((int(depth[node]), wish))
        row[node] = wish
    return np.stack([depth, -row], 1)


def _draw_motif(axis: Axes, motif: Motif, graph: HierarchicalGraph) -> None:
    places = _positions(motif)
    depth = places[:, 0]
    for (start, end), row in zip(motif.edges.T.tolist(), motif.children[0], strict=True):
        operation = graph.groups.operations[graph.edges[row]]
        # A long edge along its own row would hide the nodes between.
        length = depth[end] - depth[start]
        bent = length > 1 and places[start, 1] == places[end, 1]
        axis.annotate(
            "", places[end], places[start],
            arrowprops={
                "arrowstyle": "-|>", "color": _KIND_COLOURS[operation.kind], "lw": 1.6,
                "shrinkA": 4, "shrinkB": 4,
                "connectionstyle": f"arc3,rad={-0.7 / length if bent else 0}",
            },
        )  # fmt: skip
        side = round(operation.kernel**0.5)
        shrinks = round(stride(graph.groups, graph.edges[row]))
        words = [f"{side}x{side}"] if operation.kind == "conv" else []
        words += ["dw"] if operation.depthwise else []
        words += (
            [f"/{shrinks}"] if shrinks > 1 and operation.kind in ("conv", "pool") else []
        )
        middle = (places[start] + places[end]) / 2
        axis.text(*middle, " ".join(words), fontsize=6, ha="center", va="bottom")
    axis.plot(*places.T, "o", color="white", mec="0.3", ms=6, zorder=3)
    axis.set_xlim(-2.7, max(12, depth.max()) + 0.5)
    axis.set_ylim(places[:, 1].min() - 0.7, 0.9)
    axis.set_axis_off()


def _draw_chain(
    axis: Axes, chain: list[int], stages: list[tuple[str, int, int]], colours: list
) -> None:
    for i, motif in enumerate(chain):
        row, column = divmod(i, _PER_ROW)
        axis.barh(-row, 0.92, left=column, height=0.5, color=colours[motif])
        axis.text(
            column + 0.46, -row, f"M{motif + 1}", ha="center", va="center", fontsize=8
        )
    for letter, start, end in stages:
        for row in range(start // _PER_ROW, (end - 1) // _PER_ROW + 1):
            left = max(start - row * _PER_ROW, 0)
            right = min(end - row * _PER_ROW, _PER_ROW) - 0.08
            axis.plot([left, right], [-row - 0.33] * 2, color="0.3", lw=1.5)
            axis.text(
                (left + right) / 2, -row - 0.36, letter, ha="center", va="top", fontsize=8
            )
    axis.set_xlim(-0.5, _PER_ROW)
    axis.set_ylim(-((len(chain) - 1) // _PER_ROW) - 0.7, 0.4)
    axis.set_title("the network; equal letters: equal stages" if stages else "the network",
                   loc="left", fontsize=9)  # fmt: skip
    axis.set_axis_off()
