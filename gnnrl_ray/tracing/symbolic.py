"""A network as a ``torch.fx`` graph, run once to learn its shapes."""

import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import StochasticDepth

from gnnrl_ray.errors import InputError


class TraceError(InputError):
    """A network that cannot be traced, or an operation that is not understood."""


class _Tracer(fx.Tracer):
    """Follows everything but torch's own modules and those at ``closed``."""

    record_stack_traces = True

    def __init__(self, closed: Iterable[str]) -> None:
        super().__init__()
        self._closed = frozenset(closed)
        self.failed: str | None = None  # the innermost module that cannot be followed

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # Code that depends on the mode would be frozen in the one it is traced in.
        return (
            module_qualified_name in self._closed
            or isinstance(m, StochasticDepth)
            or super().is_leaf_module(m, module_qualified_name)
        )

    def call_module(self, m, forward, args, kwargs):
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            self.failed = self.failed or self.path_of_module(m)
            raise


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Put all of ``network`` into evaluation mode, and each module back afterwards."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def symbolic(
    network: nn.Module, closed: Iterable[str] = (), skip: bool = False
) -> fx.GraphModule:
    """Return ``network`` as a graph of operations that shares its modules and weights.

    Args:
        network: left as it is; returned as it is if it is such a graph already.
        closed: modules to take as one operation each, whatever is in them.
        skip: take those that cannot be followed as closed, too; ``closed_in`` says which.

    Raises:
        TraceError: control flow that depends on values, or code that cannot be followed.
    """
    if isinstance(network, fx.GraphModule):
        return network
    closed = tuple(closed)
    while True:
        tracer = _Tracer(closed)
        try:
            with evaluating(network):
                graph = tracer.trace(network)
        except Exception as error:
            if not skip or tracer.failed is None:
                raise _cannot_follow(tracer.failed or "", error) from error
            closed += (tracer.failed,)
        else:
            break
    graph._tracer_cls = None  # any will do for who unpickles it
    result = fx.GraphModule(network, graph)
    result.meta["closed"] = closed
    for name, module in result.named_modules():
        module.training = network.get_submodule(name).training
    return result


def closed_in(graph: fx.GraphModule) -> tuple[str, ...]:
    """Return the modules that are one operation each of ``graph``."""
    return graph.meta.get("closed", ())


def _cannot_follow(module: str, error: Exception) -> TraceError:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if _foreign(f.filename)]
    where = module or "the network itself"
    if frames:
        last = frames[-1]
        where += f" at {last.filename}:{last.lineno} ({last.line})"
    return TraceError(f"cannot follow {where}: {error}")


def _foreign(filename: str) -> bool:
    """Say whether code is the user's, neither torch's nor of this file."""
    return "/torch/" not in filename and __file__ not in filename


class ShapeRun(fx.Interpreter):
    """One run of a graph on zeros, for the shapes.

    Attributes:
        values: what each node returned: floating-point tensors on the meta device,
            shapes without storage; all else as it was.
        macs: of the nodes asked for, their multiply-accumulates.
    """

    def __init__(self, graph: fx.GraphModule, counted: Iterable[fx.Node] = ()) -> None:
        super().__init__(graph)
        self.values: dict[fx.Node, object] = {}
        self.macs: dict[fx.Node, int] = {}
        self._counted = frozenset(counted)

    def run_on(self, input_shape: tuple[int, ...]) -> "ShapeRun":
        """Run on one image of zeros of ``input_shape`` (C, H, W); returns itself.

        Raises:
            TraceError: the network does not take such images.
        """
        weights = next(self.module.parameters(), None)
        if weights is None:
            raise TraceError("the network has no parameters.")
        image = torch.zeros(1, *input_shape, device=weights.device, dtype=weights.dtype)
        try:
            with evaluating(self.module), torch.no_grad():
                self.run(image)
        except Exception as error:
            reason = str(error).split("\n")[0]
            raise TraceError(
                f"the network cannot be run on an image of shape {input_shape}: {reason}"
            ) from error
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


def get_tensor(network: nn.Module, name: str) -> Tensor:
    """Return the parameter or buffer of ``network`` with the qualified ``name``."""
    owner, _, attribute = name.rpartition(".")
    return getattr(network.get_submodule(owner), attribute)


def _without_storage(value: object) -> object:
    if not isinstance(value, Tensor):
        return value
    return value.to("meta") if value.is_floating_point() else value.cpu()


def describe_node(node: fx.Node, reason: str) -> str:
    """Say what ``node`` is, the module and line it comes from, and ``reason``."""
    frames = (node.stack_trace or "").split("  File ")
    ours = [f.split() for f in frames if f.strip() and _foreign(f)]
    source = f" at {' '.join(ours[-1])}" if ours else ""
    scope = node.meta.get("nn_module_stack") or {}
    module = next(reversed(scope), "") or "the network itself"
    target = getattr(node.target, "__name__", node.target)
    return f"{target} in {module}: {reason}{source}."
