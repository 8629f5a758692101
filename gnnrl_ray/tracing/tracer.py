"""What runs a network on images, and records what it does to them."""

import inspect
import itertools
import threading
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from gnnrl_ray.data.records import parts_of
from gnnrl_ray.errors import InputError
from gnnrl_ray.tracing.assignment import assigned
from gnnrl_ray.tracing.functions import functions_followed
from gnnrl_ray.tracing.network import get_tensor
from gnnrl_ray.tracing.operations import RESHAPES
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

# What makes numbers of tensors; those then depend on the image.
_READS = ("item", "tolist", "__bool__", "__int__", "__float__")

# Of a tensor, where it stays.
_VIEWS_IN_PLACE = (
    "squeeze_", "unsqueeze_", "transpose_", "t_", "swapaxes_", "swapdims_",
)  # fmt: skip


class Tracer(fx.Tracer):
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
        """Record what ``root`` does to the images; it is left as it was."""
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
        """Return what is to be called, and the proxies that it is given."""
        forward = self.root.forward  # which it may have of its own, and not of its class
        # Parameters that get no image have their defaults, or are missed when it is run.
        bound = inspect.signature(forward).bind_partial(*self._images)
        self._inputs = dict(zip(_names(bound), self._images, strict=True))
        self.images = [
            self.create_proxy("placeholder", name, (), {}) for name in self._inputs
        ]
        return lambda _, *given: forward(*given), [self.root, *self.images]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Say whether a module is one operation, whatever is in it."""
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
        """Follow a module, or record it; note which one cannot be followed."""
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
        """Return an attribute of a module; of parameters and buffers, what is recorded."""
        name = None if self._idle else self._names.get(id(attr_val))
        if name is None:
            return attr_val
        if name not in self._attributes:
            self._attributes[name] = self.create_proxy("get_attr", name, (), {})
        return self._attributes[name]

    def create_arg(self, a):
        """Return ``a`` with nodes in place of proxies; records are made by a node."""
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
        """Do what a node is to do, and record it."""
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


def _one_by_one(args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Return the arguments of a view with its sizes in order, each a number of its own.

    The shape of another tensor is one argument, of which some numbers may change.
    """
    names = ("input", "shape", "size")
    args = (*args, *(kwargs[name] for name in names if name in kwargs))
    kwargs = {name: value for name, value in kwargs.items() if name not in names}
    return tuple(list(a) if isinstance(a, tuple | list) else a for a in args), kwargs


def _names(bound: inspect.BoundArguments) -> list[str]:
    """Return a name for each argument."""
    names = []
    for name, value in bound.arguments.items():
        several = isinstance(value, tuple)  # of ``forward(self, *images)``
        names += [f"{name}_{n}" for n in range(len(value))] if several else [name]
    return names
