"""Runs of a graph on images of zeros, for the shapes and what is calculated."""

from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.immutable_collections import immutable_dict, immutable_list
from torch.utils.flop_counter import FlopCounterMode

from gnnrl_ray.data.loader import InputShape
from gnnrl_ray.tracing.network import IMAGES, cannot_run, evaluating, images_like


class Interpreter(fx.Interpreter):
    """Runs a graph node by node; functions may change the lists that they are given."""

    def fetch_args_kwargs_from_env(self, n: fx.Node) -> tuple[tuple, dict]:
        """Return the arguments of a node, in lists and dictionaries as code has them."""
        return _as_written(super().fetch_args_kwargs_from_env(n))


def _as_written(value: Any) -> Any:
    if type(value) in (dict, immutable_dict):
        return {name: _as_written(each) for name, each in value.items()}
    if type(value) in (list, immutable_list):
        return list(map(_as_written, value))
    return tuple(map(_as_written, value)) if type(value) is tuple else value


class ShapeRun(Interpreter):
    """One run of a graph on images of zeros, for the shapes.

    Attributes:
        values: what each node returned: floating-point tensors on the meta device,
            shapes without storage; all else as it was.
        macs: of the nodes asked for, their multiply-accumulates for all images.
    """

    def __init__(self, graph: fx.GraphModule, counted: Iterable[fx.Node] = ()) -> None:
        super().__init__(graph)
        self.values: dict[fx.Node, object] = {}
        self.macs: dict[fx.Node, int] = {}
        self._counted = frozenset(counted)

    def run_on(self, input_shape: InputShape, count: int = IMAGES) -> "ShapeRun":
        """Run on ``count`` images of zeros; returns itself.

        Args:
            input_shape: (C, H, W) of one image, or one such for each that it takes.
            count: how many.

        Raises:
            TraceError: the network does not take such images.
        """
        images = images_like(self.module, input_shape, count)
        try:
            with evaluating(self.module), torch.no_grad():
                self.run(*images)
        except Exception as error:
            raise cannot_run(input_shape, error) from error
        return self

    def run_node(self, n: fx.Node):
        """Run one node and remember what it returns."""
        counts = n in self._counted
        with FlopCounterMode(display=False) if counts else nullcontext() as counter:
            result = super().run_node(n)
        if counts:
            self.macs[n] = counter.get_total_flops() // 2
        self.values[n] = fx.node.map_aggregate(result, _without_storage)
        return result


def _without_storage(value: object) -> object:
    if not isinstance(value, Tensor):
        return value
    return value.to("meta") if value.is_floating_point() else value.cpu()
