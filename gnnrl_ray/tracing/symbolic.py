"""A network as a ``torch.fx`` graph of operations, and one run of it for the shapes."""

import copy
import inspect
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

from gnnrl_ray.errors import InputError
from gnnrl_ray.tracing.plain import with_plain_layers
from gnnrl_ray.tracing.proxies import (
    Aliases,
    AttributeProxy,
    ValueProxy,
    tensors_in,
    values_of,
)

IMAGES = 2  # to trace with: of one alone, ``squeeze`` would take the batch's axis, too

# What makes numbers of tensors; those then depend on the image.
_READS = ("item", "tolist", "__bool__", "__int__", "__float__")


class TraceError(InputError):
    """A network that cannot be traced, or an operation that is not understood."""


class _Tracer(fx.Tracer):
    """Runs a network on images, and records what it does to them.

    Follows everything but torch's own modules, those at ``closed``, and those that return
    their input as it is, which may do otherwise in training.

    Attributes:
        failed: the innermost module that cannot be followed.
        constants: tensors that the code makes of its own, by the names they have got.
    """

    record_stack_traces = True

    def __init__(self, closed: Iterable[str], image: Tensor) -> None:
        super().__init__()
        self._closed = frozenset(closed)
        self._image = image
        self._aliases = Aliases()
        # What depends on what is in the image, and whether that is tensors.
        self._seen: dict[fx.Node, bool] = {}
        self._computing = False  # a value: nothing is recorded of what that takes
        self._attributes: dict[str, ValueProxy] = {}
        self.failed: str | None = None
        self.constants: dict[str, Tensor] = {}

    def trace(self, root: nn.Module, concrete_args: dict | None = None) -> fx.Graph:
        tensors = [*root.named_buffers(), *root.named_parameters()]
        self._names = {id(tensor): name for name, tensor in tensors}
        before = set(vars(root))
        try:
            with torch.no_grad():
                return super().trace(root, concrete_args)
        finally:
            # fx leaves constants on the network that it traces.
            for name in set(vars(root)) - before:
                self.constants[name] = vars(root).pop(name)

    def create_args_for_root(self, root_fn, is_module, concrete_args=None):
        # All parameters but the first have their defaults, or are missed when it is run.
        name = list(inspect.signature(root_fn).parameters)[1]
        return root_fn, [self.root, self.create_proxy("placeholder", name, (), {})]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name in self._closed or super().is_leaf_module(
            m, module_qualified_name
        )

    def call_module(self, m, forward, args, kwargs):
        if self._computing:
            return forward(*args, **kwargs)
        try:
            result = super().call_module(m, forward, args, kwargs)
        except Exception:
            self.failed = self.failed or self.path_of_module(m)
            raise
        if len(args) == 1 and result is args[0] and not kwargs:
            # As stochastic depth does, which is there in training alone.
            result = self.create_proxy("call_module", self.path_of_module(m), args, {})
            result.node.meta["identity"] = True
        return result

    def getattr(self, attr, attr_val, parameter_proxy_cache):
        name = None if self._computing else self._names.get(id(attr_val))
        if name is None:
            return attr_val
        if name not in self._attributes:
            self._attributes[name] = self.create_proxy("get_attr", name, (), {})
        return self._attributes[name]

    def create_arg(self, a):
        if type(a) in (ValueProxy, AttributeProxy):
            return a.node
        return super().create_arg(a)

    def create_proxy(self, kind, target, args, kwargs, *names, **settings):
        given, named = values_of(args), values_of(kwargs)
        read = tensors_in(given) + tensors_in(named)
        versions = [tensor._version for tensor in read]
        self._computing = True
        try:
            value = self._compute(kind, target, given, named)
        finally:
            self._computing = False
        if target is torch._assert:
            return None  # it holds, and may be about numbers of channels
        settings["proxy_factory_fn"] = lambda node: ValueProxy(node, self, value)
        proxy = super().create_proxy(kind, target, args, kwargs, *names, **settings)
        node = proxy.node
        seen = [self._seen[n] for n in node.all_input_nodes if n in self._seen]
        tensors = bool(tensors_in(value))
        # Of a tensor one may ask its shape.
        if kind == "placeholder" or (seen and (tensors or target in _READS)):
            self._seen[node] = tensors
        elif not all(seen):
            self._seen[node] = False
        pairs = zip(read, versions, strict=True)
        self._aliases.changed([t for t, version in pairs if t._version != version], proxy)
        self._aliases.add(proxy)
        return proxy

    def _compute(self, kind: str, target, args: tuple, kwargs: dict) -> object:
        match kind:
            case "placeholder":
                return self._image
            case "get_attr":
                return get_tensor(self.root, target)
            case "call_module":
                return self.root.get_submodule(target)(*args, **kwargs)
            case "call_method":
                return getattr(args[0], target)(*args[1:], **kwargs)
        return target(*args, **kwargs)

    def known(self, proxy: ValueProxy) -> object:
        """Return what ``proxy`` stands for, if it is the same for every image."""
        if proxy.node in self._seen:
            raise ValueError("what happens next depends on what is in the image")
        return proxy.value


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
    network: nn.Module,
    input_shape: tuple[int, ...],
    closed: Iterable[str] = (),
    skip: bool = False,
) -> fx.GraphModule:
    """Return ``network`` as a graph of operations that shares its modules and weights.

    Every operation returns something new: what is done in place is what later ones read.
    Layers that call a function with their own weights are torch's plain layers in it.

    Args:
        network: left as it is; returned as it is if it is such a graph already.
        input_shape: (C, H, W) of one image.
        closed: modules to take as one operation each, whatever is in them.
        skip: take those that cannot be followed as closed, too; ``closed_in`` says which.

    Raises:
        TraceError: control flow that depends on the image, or code that cannot be followed.
    """
    if isinstance(network, fx.GraphModule) and "closed" in network.meta:
        return network
    network = unwrapped(network)
    image, closed = images_like(network, input_shape), tuple(closed)
    while True:
        tracer = _Tracer(closed, image)
        try:
            with evaluating(network):
                graph = tracer.trace(network)
        except Exception as error:
            if not skip or tracer.failed is None:
                raise _cannot_follow(tracer.failed or "", error) from error
            closed += (tracer.failed,)
        else:
            break
    _follow_mode(graph, network, tracer, closed)
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


def images_like(
    network: nn.Module, input_shape: tuple[int, ...], count: int = IMAGES
) -> Tensor:
    """Return ``count`` images of zeros where ``network`` is, in its format."""
    weights = next(network.parameters(), None)
    if weights is None:
        raise TraceError("the network has no parameters.")
    shape = (count, *input_shape)
    return torch.zeros(shape, device=weights.device, dtype=weights.dtype)


def unwrapped(network: nn.Module) -> nn.Module:
    """Return the network that ``torch.compile`` has been given."""
    return getattr(network, "_orig_mod", network)


def closed_in(graph: fx.GraphModule) -> tuple[str, ...]:
    """Return the modules that are one operation each of ``graph``."""
    return graph.meta.get("closed", ())


def _follow_mode(
    graph: fx.Graph, network: nn.Module, tracer: _Tracer, closed: tuple[str, ...]
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
    trained = _Tracer((*closed, *unchanging), tracer._image)
    try:
        with torch.random.fork_rng(devices=[]):
            other = trained.trace(copy.deepcopy(network).train())
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


class ShapeRun(fx.Interpreter):
    """One run of a graph on ``IMAGES`` images of zeros, for the shapes.

    Attributes:
        values: what each node returned: floating-point tensors on the meta device,
            shapes without storage; all else as it was.
        macs: of the nodes asked for, their multiply-accumulates for one image.
    """

    def __init__(self, graph: fx.GraphModule, counted: Iterable[fx.Node] = ()) -> None:
        super().__init__(graph)
        self.values: dict[fx.Node, object] = {}
        self.macs: dict[fx.Node, int] = {}
        self._counted = frozenset(counted)

    def run_on(self, input_shape: tuple[int, ...]) -> "ShapeRun":
        """Run on images of zeros of ``input_shape`` (C, H, W); returns itself.

        Raises:
            TraceError: the network does not take such images.
        """
        image = images_like(self.module, input_shape)
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
            self.macs[n] = counter.get_total_flops() // 2 // IMAGES
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
