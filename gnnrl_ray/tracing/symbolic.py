"""A network as a ``torch.fx`` graph of operations."""

import traceback
from collections.abc import Iterable

import torch
from torch import Tensor, fx, nn

from gnnrl_ray.data.loader import InputShape
from gnnrl_ray.process import taking_turns
from gnnrl_ray.tracing.network import TraceError, copied, evaluating, images_like, unwrapped
from gnnrl_ray.tracing.plain import with_plain_layers
from gnnrl_ray.tracing.tracer import Tracer

_REORDERING = {"view": "reshape", "view_as": "reshape_as"}


@taking_turns
def symbolic(
    network: nn.Module,
    input_shape: InputShape,
    closed: Iterable[str] = (),
    skip: bool = False,
) -> fx.GraphModule:
    """Return ``network`` as a graph of operations that shares its modules and weights.

    Every operation returns something new: what is done in place is what later ones read.
    Layers that call a function with their own weights are torch's plain layers in it.

    Args:
        network: left as it is; returned as it is if it is such a graph already.
        input_shape: (C, H, W) of one image, or one such for each that it takes.
        closed: modules to take as one operation each, whatever is in them.
        skip: take those that cannot be followed as closed, too; ``closed_in`` says which.

    Raises:
        TraceError: control flow that depends on the image, or code that cannot be followed.
    """
    if isinstance(network, fx.GraphModule) and "closed" in network.meta:
        return network
    network = unwrapped(network)
    images, closed = images_like(network, input_shape), tuple(closed)
    while True:
        tracer = Tracer(closed, images)
        try:
            with evaluating(network):
                graph = tracer.trace(network)
        except Exception as error:
            if not skip or tracer.failed is None:
                raise _cannot_follow(tracer.failed or "", error) from error
            closed += (tracer.failed,)
        else:
            break
    _follow_mode(graph, network, images, closed)
    _free_of_order(graph)
    _spare_images(graph, images)
    graph._tracer_cls = None  # any will do for who unpickles it
    plain = with_plain_layers(graph, network)
    vars(network).update(tracer.constants)
    try:
        result = fx.GraphModule(network, graph)
    finally:
        for name in tracer.constants:
            vars(network).pop(name)
    result._non_persistent_buffers_set.update(tracer.constants)
    for name, layer in plain.items():
        result.set_submodule(name, layer)
    result.meta["closed"] = closed
    for name, module in result.named_modules():
        module.training = network.get_submodule(name).training
    return result


def closed_in(graph: fx.GraphModule) -> tuple[str, ...]:
    """Return the modules that are one operation each of ``graph``."""
    return graph.meta.get("closed", ())


def makes_record(node: fx.Node) -> bool:
    """Say whether ``node`` puts tensors into a record, and does nothing else to them."""
    return isinstance(node.target, type) and not issubclass(node.target, Tensor)


def describe_node(node: fx.Node, reason: str) -> str:
    """Say what ``node`` is, the module and line it comes from, and ``reason``."""
    frames = (node.stack_trace or "").split("  File ")
    ours = [f.split() for f in frames if f.strip() and _foreign(f)]
    source = f" at {' '.join(ours[-1])}" if ours else ""
    scope = node.meta.get("nn_module_stack") or {}
    module = next(reversed(scope), "") or "the network itself"
    target = getattr(node.target, "__name__", node.target)
    return f"{target} in {module}: {reason}{source}."


def _spare_images(graph: fx.Graph, images: Iterable[Tensor]) -> None:
    """Let ``graph`` change copies of images where the network changes ``images`` in place.

    Whoever runs it may have use for them again.
    """
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    for node, image in zip(inputs, images, strict=True):
        if image._version:
            with graph.inserting_before(inputs[-1].next):
                copied = graph.call_method("clone", (node,))
            node.replace_all_uses_with(copied, lambda user, own=copied: user is not own)


def _free_of_order(graph: fx.Graph) -> None:
    """Let reshapes take numbers in any order of memory.

    Where ``view`` can be called, ``reshape`` does the same.
    """
    for node in graph.nodes:
        if node.op == "call_method" and node.target in _REORDERING:
            kinds = (*node.args[1:], *node.kwargs.values())
            if not any(isinstance(kind, torch.dtype) for kind in kinds):
                node.target = _REORDERING[node.target]


def _follow_mode(
    graph: fx.Graph,
    network: nn.Module,
    images: tuple[Tensor, ...],
    closed: tuple[str, ...],
) -> None:
    """Let functions that do something else in training do so in the graph.

    ``F.dropout(x, 0.5, self.training)`` is one; what it is given is seen by tracing once
    more, in training.
    """
    calls = (node for node in graph.nodes if node.op == "call_function")
    if not any(
        flag is False
        for node in calls
        for flag in (*node.args, *(v for k, v in node.kwargs.items() if k != "inplace"))
    ):
        return
    unchanging = [str(n.target) for n in graph.nodes if n.meta.get("identity")]
    trained = Tracer((*closed, *unchanging), images)
    try:
        with torch.random.fork_rng(devices=[]):
            other = trained.trace(copied(network).train())
    except Exception:
        return  # what it does in training cannot be followed
    mode = None
    for node, twin in zip(graph.nodes, other.nodes, strict=False):
        if node.target != twin.target or len(node.args) != len(twin.args):
            return
        for at, (now, then) in enumerate(zip(_flags(node), _flags(twin), strict=True)):
            if now is False and then is True:
                if mode is None:
                    first = next(n for n in graph.nodes if n.op != "placeholder")
                    with graph.inserting_before(first):
                        mode = graph.get_attr("training")
                if at < len(node.args):
                    node.update_arg(at, mode)
                else:
                    node.update_kwarg(list(node.kwargs)[at - len(node.args)], mode)


def _flags(node: fx.Node) -> list:
    return [*node.args, *node.kwargs.values()]


def _cannot_follow(module: str, error: Exception) -> TraceError:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if _foreign(f.filename)]
    where = module or "the network itself"
    if frames:
        last = frames[-1]
        where += f" at {last.filename}:{last.lineno} ({last.line})"
    return TraceError(f"cannot follow {where}: {error}")


def _foreign(filename: str) -> bool:
    """Say whether code is the user's, neither torch's nor of these files."""
    return "/torch/" not in filename and "/gnnrl_ray/tracing/" not in filename
