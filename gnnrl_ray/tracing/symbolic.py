"""A network as a ``torch.fx`` graph of operations, and one run of it for the shapes."""

import copy
import inspect
import itertools
import threading
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn
from torch.fx.immutable_collections import immutable_dict, immutable_list
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.utils.flop_counter import FlopCounterMode

from gnnrl_ray.data.loader import InputShape, shapes_of
from gnnrl_ray.data.records import parts_of
from gnnrl_ray.errors import InputError
from gnnrl_ray.process import taking_turns
from gnnrl_ray.tracing.assignment import assigned
from gnnrl_ray.tracing.functions import functions_followed
from gnnrl_ray.tracing.operations import RESHAPES
from gnnrl_ray.tracing.plain import with_plain_layers
from gnnrl_ray.tracing.proxies import (
    Aliases,
    ValueProxy,
    is_proxy,
    proxies_understood,
    set_item,
    shares_memory,
    tensors_in,
    values_of,
)

_Networks = TypeVar("_Networks", bound=nn.Module | tuple[nn.Module, ...])

IMAGES = 2  # to trace with: of one alone, ``squeeze`` would take the batch's axis, too

# What every module has of torch's; the others it has are as its code leaves them.
_HOOKS = vars(nn.Module()).keys() - {"_parameters", "_buffers", "_modules"}
_LEAVES = _HOOKS | {"_parameters", "_modules"}  # no tensor of these is calculated

# What makes numbers of tensors; those then depend on the image.
_READS = ("item", "tolist", "__bool__", "__int__", "__float__")

# Of a tensor, where it stays.
_VIEWS_IN_PLACE = (
    "squeeze_", "unsqueeze_", "transpose_", "t_", "swapaxes_", "swapdims_",
)  # fmt: skip
_REORDERING = {"view": "reshape", "view_as": "reshape_as"}


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

    def __init__(self, closed: Iterable[str], images: Sequence[Tensor]) -> None:
        super().__init__()
        self._closed = frozenset(closed)
        self._images = tuple(images)
        self._aliases = Aliases()
        # What depends on what is in the image, and whether that is tensors.
        self._seen: dict[fx.Node, bool] = {}
        self._computing = False  # a value: nothing is recorded of what that takes
        self._thread = threading.get_ident()
        self._attributes: dict[str, ValueProxy] = {}
        self.failed: str | None = None
        self.constants: dict[str, Tensor] = {}

    def trace(self, root: nn.Module, concrete_args: dict | None = None) -> fx.Graph:
        tensors = [*root.named_buffers(), *root.named_parameters()]
        self._names = {id(tensor): name for name, tensor in tensors}
        self._installed = {id(module) for module in root.modules()}
        before = set(vars(root))
        try:
            with torch.no_grad(), functions_followed(root), proxies_understood():
                return super().trace(root, concrete_args)
        finally:
            # fx leaves constants on the network that it traces; code may leave proxies.
            for name in set(vars(root)) - before:
                value = vars(root).pop(name)
                if not is_proxy(value):
                    self.constants[name] = value

    def create_args_for_root(self, root_fn, is_module, concrete_args=None):
        forward = self.root.forward  # which it may have of its own, and not of its class
        # Parameters that get no image have their defaults, or are missed when it is run.
        bound = inspect.signature(forward).bind_partial(*self._images)
        self._inputs = dict(zip(_names(bound), self._images, strict=True))
        self.images = [
            self.create_proxy("placeholder", name, (), {}) for name in self._inputs
        ]
        return lambda _, *given: forward(*given), [self.root, *self.images]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if "forward" in vars(m):  # torch's own layer may do something else by that
            return module_qualified_name in self._closed
        return module_qualified_name in self._closed or super().is_leaf_module(
            m, module_qualified_name
        )

    @property
    def _idle(self) -> bool:
        """Whether what a module does now is not to be recorded: all threads call this."""
        return self._computing or threading.get_ident() != self._thread

    def call_module(self, m, forward, args, kwargs):
        weighted = next(m.parameters(), None) is not None
        made = id(m) not in self._installed and not weighted
        if self._idle or made:  # on the way, as ``nn.ReLU()(x)``: what it does is followed
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
        name = None if self._idle else self._names.get(id(attr_val))
        if name is None:
            return attr_val
        if name not in self._attributes:
            self._attributes[name] = self.create_proxy("get_attr", name, (), {})
        return self._attributes[name]

    def create_arg(self, a):
        if is_proxy(a):
            return a.node
        if type(a) in (tuple, list, dict) or (parts := parts_of(a)) is None:
            try:
                return super().create_arg(a)
            except NotImplementedError:
                raise InputError(
                    f"tensors are returned, or passed on, in a {type(a).__name__}; a "
                    "tuple, a list, a dict, a named tuple or a dataclass can be looked into"
                ) from None
        given, named = self.create_arg(parts.given), self.create_arg(parts.named)
        return self.create_node("call_function", parts.kind, given, named)

    def create_proxy(self, kind, target, args, kwargs, *names, **settings):
        if target in (*RESHAPES, "expand"):
            args, kwargs = _one_by_one(args, kwargs)
        if kind == "call_method" and target in _VIEWS_IN_PLACE:
            # What is looked at otherwise from now on is the same tensor.
            changed, target = args[0], target.removesuffix("_")
            viewed = self.create_proxy(kind, target, args, kwargs, *names, **settings)
            if type(changed) is ValueProxy:
                changed.node, changed.value = viewed.node, viewed.value
            return viewed
        given, named = values_of(args), values_of(kwargs)
        read = tensors_in(given) + tensors_in(named)
        versions = [tensor._version for tensor in read]
        self._computing, hooked = True, False
        try:
            value = self._compute(kind, target, given, named)
            if kind == "call_module":
                hooked = self._hooks_change(target, value, given, named)
        finally:
            self._computing = False
        if target is torch._assert:
            return None  # it holds, and may be about numbers of channels
        settings["proxy_factory_fn"] = lambda node: ValueProxy(node, self, value)
        proxy = super().create_proxy(kind, target, args, kwargs, *names, **settings)
        node = proxy.node
        if hooked:
            node.meta["hooked"] = True
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

    def assign(self, x: ValueProxy, index: object, value: object) -> None:
        """Record ``x[index] = value``, after which ``x`` stands for something else."""
        target: Any = x.value
        at = values_of(index)
        if x.stale and is_proxy(value) and shares_memory(value.value, target[at]):
            x.stale = ""  # by what is assigned here: ``x[index] += other``
        new = assigned(x, index, value)
        if new is None:
            changed = self.create_proxy("call_function", set_item, (x, index, value), {})
            changed.node.meta["is_wrapped"] = True  # not traced into by who unpickles it
            return
        self._computing = True
        try:
            target[at] = values_of(value)
        finally:
            self._computing = False
        new.value = target
        self._aliases.changed([target], new)
        self._aliases.add(new)

    def _compute(self, kind: str, target, args: tuple, kwargs: dict) -> object:
        match kind:
            case "placeholder":
                return self._inputs[target]
            case "get_attr":
                return get_tensor(self.root, target)
            case "call_module":
                return self.root.get_submodule(target)(*args, **kwargs)
            case "call_method":
                return getattr(args[0], target)(*args[1:], **kwargs)
        return target(*args, **kwargs)

    def _hooks_change(self, target: str, value, args: tuple, kwargs: dict) -> bool:
        """Say whether a module returns something else than it would without hooks."""
        module = self.root.get_submodule(target)
        if not (module._forward_hooks or module._forward_pre_hooks):
            return False
        plain = tensors_in(module.forward(*args, **kwargs))
        pairs = itertools.zip_longest(tensors_in(value), plain)
        return not all(a is b or torch.equal(a, b) for a, b in pairs)

    def known(self, proxy: ValueProxy) -> object:
        """Return what ``proxy`` stands for, if it is the same for every image."""
        if proxy.node in self._seen:
            raise ValueError("what happens next depends on what is in the image")
        return proxy.value


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Put all of ``network`` into evaluation mode, and leave it as it was.

    What its code keeps when it is run, such as features, counts and averages, is taken
    back: attributes, what is in lists and dictionaries of its own, and buffers.
    """
    own = [vars(module) for module in network.modules()]
    inside = [
        value for each in own for name, value in each.items()
        if isinstance(value, list | dict) and name not in _HOOKS
    ]  # fmt: skip
    kept = [(now, copy.copy(now)) for now in (*own, *inside)]
    buffers = [
        (b, b._version, b.clone()) for b in network.buffers() if not b.is_inference()
    ]
    network.eval()
    try:
        yield
    finally:
        for now, before in kept:
            _put_back(now, before)
        for buffer, version, before in buffers:
            if buffer._version != version:
                with torch.no_grad():
                    buffer.copy_(before)


def _put_back(now: list | dict, before: list | dict) -> None:
    if isinstance(now, list):
        if list(map(id, now)) != list(map(id, before)):
            now[:] = before
        return
    for key in now.keys() - before.keys():
        del now[key]
    for key, value in before.items():
        if now.get(key, now) is not value:
            now[key] = value


def copied(networks: _Networks, memo: dict | None = None) -> _Networks:
    """Return a deep copy of networks, which may share tensors.

    What one keeps of its last run, such as features, is copied without its gradients.

    Args:
        networks: one, or several in a tuple.
        memo: of ``copy.deepcopy``: copies that there are, by the ``id`` of their originals.

    Raises:
        InputError: something in it cannot be copied.
    """
    memo = {} if memo is None else memo
    for network in networks if isinstance(networks, tuple) else (networks,):
        for module in network.modules():
            own = [v for k, v in vars(module).items() if k not in _LEAVES]
            for tensor in tensors_in(own):
                if tensor.grad_fn is not None:
                    memo[id(tensor)] = tensor.detach()
    try:
        return copy.deepcopy(networks, memo)
    except Exception as error:  # whatever that of the user's own says, who is asked
        raise InputError(
            f"the network cannot be copied ({type(error).__name__}: {error}); leave out "
            "what is open or under way, such as files, locks and generators."
        ) from error


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
        tracer = _Tracer(closed, images)
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


def images_like(
    network: nn.Module, input_shape: InputShape, count: int = IMAGES
) -> tuple[Tensor, ...]:
    """Return ``count`` images of zeros of each shape, as ``network`` is and where it is."""
    weights = next(network.parameters(), None)
    if weights is None:
        raise TraceError("the network has no parameters.")
    return tuple(
        torch.zeros(count, *shape, device=weights.device, dtype=weights.dtype)
        for shape in shapes_of(input_shape)
    )


def cannot_run(input_shape: InputShape, error: Exception) -> TraceError:
    """Say that a network does not take such images."""
    shapes, reason = shapes_of(input_shape), str(error).split("\n")[0]
    kind = f"an image of shape {shapes[0]}"
    if len(shapes) > 1:
        kind = f"images of shapes {', '.join(map(str, shapes))}"
    return TraceError(f"the network cannot be run on {kind}: {reason}")


def unwrapped(network: nn.Module) -> nn.Module:
    """Return the network that ``torch.compile`` has been given.

    Raises:
        TraceError: what is none, or one whose code cannot be changed.
    """
    kind, remedy = type(network).__name__, None
    if not isinstance(network, nn.Module):
        remedy = "Source(network=NAME).load() returns one of the zoo, and its data"
    elif isinstance(network, DataParallel | DistributedDataParallel):
        remedy = "give its .module"
    elif isinstance(network, torch.jit.ScriptModule):
        remedy = "give the module that it was made from"
    if remedy is not None:
        raise TraceError(f"a {kind} cannot be pruned, but an nn.Module can; {remedy}.")
    if any(tensor.is_meta for tensor in (*network.parameters(), *network.buffers())):
        raise TraceError("the network has no weights: it is on the meta device.")
    return getattr(network, "_orig_mod", network)


def closed_in(graph: fx.GraphModule) -> tuple[str, ...]:
    """Return the modules that are one operation each of ``graph``."""
    return graph.meta.get("closed", ())


def _one_by_one(args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Return the arguments of a view with its sizes in order, each a number of its own.

    The shape of another tensor is one argument, of which some numbers may change.
    """
    names = ("input", "shape", "size")
    args = (*args, *(kwargs[name] for name in names if name in kwargs))
    kwargs = {name: value for name, value in kwargs.items() if name not in names}
    return tuple(list(a) if isinstance(a, tuple | list) else a for a in args), kwargs


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
    trained = _Tracer((*closed, *unchanging), tracer._images)
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


def _names(bound: inspect.BoundArguments) -> list[str]:
    """Return a name for each argument."""
    names = []
    for name, value in bound.arguments.items():
        several = isinstance(value, tuple)  # of ``forward(self, *images)``
        names += [f"{name}_{n}" for n in range(len(value))] if several else [name]
    return names


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


def makes_record(node: fx.Node) -> bool:
    """Say whether ``node`` puts tensors into a record, and does nothing else to them."""
    return isinstance(node.target, type) and not issubclass(node.target, Tensor)


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
