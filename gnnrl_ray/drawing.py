"""Pictures of hierarchical graphs.

Axis letters: N nodes of one graph.
"""

from pathlib import Path

import matplotlib
import numpy as np

from gnnrl_ray.graph import HierarchicalGraph, Motif

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

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
    colours = [plt.get_cmap("tab20")(i % 20) for i in range(len(motifs))]
    chain, stages = _chain(graph)
    rows = -(-len(chain) // _PER_ROW)
    heights = [0.9 * rows + 0.4, *(_height(motif) for motif in motifs)]
    figure, axes = plt.subplots(
        len(heights), 1, figsize=(13, sum(heights) + 0.6), layout="constrained",
        gridspec_kw={"height_ratios": heights},
    )  # fmt: skip
    figure.suptitle(f"{title}: {len(graph.levels)} levels", fontsize=12)
    _draw_chain(axes[0], chain, stages, colours)
    for i, (motif, axis) in enumerate(zip(motifs, axes[1:], strict=True)):
        _draw_motif(axis, motif, graph)
        count = len(motif.children)
        text = f"M{i + 1}: {count} instance{'s' * (count > 1)}, first {motif.places[0][0]}"
        axis.set_title(text, loc="left", fontsize=9, color=colours[i])
    used = {kind for motif in motifs for kind in motif.label.split("-")}
    kinds = [kind for kind in _KIND_COLOURS if kind in used]
    figure.legend(
        handles=[Line2D([], [], color=_KIND_COLOURS[k], label=k, lw=2) for k in kinds],
        loc="outside lower center", ncols=len(kinds), fontsize=8, frameon=False,
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _chain(graph: HierarchicalGraph) -> tuple[list[int], list[tuple[int, int, int]]]:
    """Return the motif of each instance in network order, and stages (motif, from, to)."""
    motif_of = [i for i, motif in enumerate(graph.levels[0]) for _ in motif.children]
    top = graph.levels[-1][0].children[0]
    if len(graph.levels) == 1:
        return [0], []
    if len(graph.levels) == 2:
        return [motif_of[child] for child in top], []
    sequences = [(m, row) for m, motif in enumerate(graph.levels[1]) for row in motif.children]
    chain: list[int] = []
    stages = []
    for child in top:
        motif, row = sequences[child]
        stages.append((motif, len(chain), len(chain) + len(row)))
        chain += [motif_of[instance] for instance in row]
    return chain, stages


def _height(motif: Motif) -> float:
    return 0.35 * (1 + np.ptp(_positions(motif)[:, 1])) + 0.35


def _positions(motif: Motif) -> np.ndarray:
    """float [N, 2]: the longest way from the entry, and a row of its own for a branch."""
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
    kinds = motif.label.split("-")
    depth = places[:, 0]
    for start, end in motif.edges.T.tolist():
        # A long edge along its own row would hide the nodes between.
        bent = depth[end] - depth[start] > 1 and places[start, 1] == places[end, 1]
        colour = _KIND_COLOURS[kinds[end - 1]]
        style = {"arrowstyle": "-|>", "color": colour, "lw": 1.6, "shrinkA": 4, "shrinkB": 4}
        if bent:
            style["connectionstyle"] = f"arc3,rad={-min(0.35, 1.2 / (depth[end] - depth[start]))}"
        axis.annotate("", places[end], places[start], arrowprops=style)
    axis.plot(*places.T, "o", color="white", mec="0.3", ms=6, zorder=3)
    axis.set_xlim(-0.5, max(12, depth.max()) + 0.5)
    axis.set_ylim(places[:, 1].min() - 0.7, 0.9)
    axis.set_axis_off()


def _draw_chain(
    axis: Axes, chain: list[int], stages: list[tuple[int, int, int]], colours: list
) -> None:
    for i, motif in enumerate(chain):
        row, column = divmod(i, _PER_ROW)
        axis.barh(-row, 0.92, left=column, height=0.5, color=colours[motif])
        axis.text(column + 0.46, -row, f"M{motif + 1}", ha="center", va="center", fontsize=8)
    letters: dict[int, str] = {}
    for motif, start, end in stages:
        letter = letters.setdefault(motif, chr(ord("A") + len(letters) % 26))
        for row in range(start // _PER_ROW, (end - 1) // _PER_ROW + 1):
            left = max(start - row * _PER_ROW, 0)
            right = min(end - row * _PER_ROW, _PER_ROW) - 0.08
            axis.plot([left, right], [-row - 0.33] * 2, color="0.3", lw=1.5)
            axis.text((left + right) / 2, -row - 0.36, letter, ha="center", va="top", fontsize=8)
    axis.set_xlim(-0.5, _PER_ROW)
    axis.set_ylim(-((len(chain) - 1) // _PER_ROW) - 0.7, 0.4)
    axis.set_title("the network; equal letters: equal stages" if stages else "the network",
                   loc="left", fontsize=9)  # fmt: skip
    axis.set_axis_off()
