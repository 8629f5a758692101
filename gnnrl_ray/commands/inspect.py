"""The command ``inspect``."""

import json
from pathlib import Path
from typing import Annotated

import typer

from gnnrl_ray.commands.terminal import JsonOption, console
from gnnrl_ray.errors import InputError
from gnnrl_ray.settings import parse_shape
from gnnrl_ray.zoo import build_network, check_network


def inspect_command(
    network: Annotated[str, typer.Option(help="As for `gnnrl-ray search`.")] = "resnet20",
    input_shape: Annotated[
        list[str],
        typer.Option(
            metavar="C,H,W", help="Of an image; again for each that the network takes."
        ),
    ] = ("3,32,32",),  # type: ignore[assignment]
    classes: Annotated[int, typer.Option(min=1, max=10**6, help="Of the network.")] = 10,
    keep: Annotated[
        str | None, typer.Option(metavar="REGEX", help="As for `gnnrl-ray search`.")
    ] = None,
    skip_untraceable: Annotated[
        bool, typer.Option(help="Leave whole what cannot be traced.")
    ] = False,
    levels: Annotated[
        int, typer.Option(min=1, max=3, help="Of the graph: 1 flat, 2 motifs, 3 stages.")
    ] = 3,
    draw: Annotated[
        Path | None,
        typer.Option(metavar="FILE.svg|png", help="Draw the hierarchical graph there."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show channel groups, motifs and costs: what would be pruned, and why not."""
    check_network(network)
    shapes = [parse_shape(shape) for shape in input_shape]
    if draw is not None and draw.suffix not in (".svg", ".png"):
        raise InputError(f"--draw {draw} must end in .svg or .png.")

    from gnnrl_ray.display import report
    from gnnrl_ray.display.drawing import draw_graph
    from gnnrl_ray.graph.hierarchy import HierarchicalGraph
    from gnnrl_ray.tracing.groups import trace

    built = build_network(network, classes, shapes[0][-1])
    groups = trace(built, shapes, keep=keep, skip_untraceable=skip_untraceable)
    graph = HierarchicalGraph(groups, levels)
    if draw is not None:
        draw_graph(graph, network, draw)
    if as_json:
        print(json.dumps({"network": network} | report.describe(graph)))
        return
    console.print(report.groups_table(groups), report.motifs_table(graph))
    for table in (report.whole_table(groups), report.left_table(groups)):
        if table.row_count:
            console.print(table)
    facts = report.describe(graph)
    print(f"{network}: {facts['macs']:,} MACs, {facts['params']:,} parameters")
