"""Proxies of ``torch.fx`` that know what they stand for.

A plain proxy records what is done to it and knows nothing else: the first ``if``, ``len``
or loop over a shape ends the trace, and what is changed in place is recorded as if it were
not. These carry the value that the operation really returned.
"""

import builtins
import math
import operator
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, fx
from torch.autograd import Variable

from gnnrl_ray.data.records import all_in, held_by, parts_of
from gnnrl_ray.tracing.names import CALCULATING, CREATING

_DIMENSIONS = ("ndim", "dim", "ndimension")  # how many there are


def _in_place(function: Callable[..., object]) -> Callable[..., object]:
    """Return what ``+=`` and its like do; tensors alone are changed in place."""

    def method(self: "ValueProxy", other: object) -> object:
        if not isinstance(self.value, Tensor):
            return NotImplemented
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return method


class _Knowing:
    """Answers what Python asks of its own accord, which cannot be recorded."""

    def __getattr__(self, name: str) -> Any:
        # Or ``hasattr`` would find whatever code asks for, as for a tensor of its own kind.
        if name == "value" or not hasattr(self.value, name):
            raise AttributeError(f"{type(self.value).__name__} has no attribute {name!r}")
        if name in _DIMENSIONS and isinstance(self.value, Tensor):
            count = self.value.dim()  # of all images, whatever is pruned
            return count if name == "ndim" else lambda: count
        return AttributeProxy(self, name)

    def __bool__(self) -> bool:
        return bool(self.tracer.known(self))

    def __int__(self) -> int:
        return int(self.tracer.known(self))

    def __index__(self) -> int:
        return operator.index(self.tracer.known(self))

    def __float__(self) -> float:
        return float(self.tracer.known(self))

    def __round__(self, digits: int | None = None) -> float:
        return round(self.tracer.known(self), digits)

    def __ceil__(self) -> int:
        return math.ceil(self.tracer.known(self))

    def __floor__(self) -> int:
        return math.floor(self.tracer.known(self))

    def __trunc__(self) -> int:
        return math.trunc(self.tracer.known(self))

    def __len__(self) -> int:
        return len(self.value)

    def __contains__(self, item: object) -> bool:
        return item in self.value

    def __iter__(self) -> Iterator[object]:
        if isinstance(self.value, dict):
            return iter(self.value)
        return iter([operator.getitem(self, i) for i in range(len(self.value))])

    __iadd__, __isub__ = _in_place(operator.iadd), _in_place(operator.isub)
    __imul__, __ipow__ = _in_place(operator.imul), _in_place(operator.ipow)
    __itruediv__, __imod__ = _in_place(operator.itruediv), _in_place(operator.imod)
    __ifloordiv__, __iand__ = _in_place(operator.ifloordiv), _in_place(operator.iand)
    __ior__, __ixor__ = _in_place(operator.ior), _in_place(operator.ixor)

    def __setitem__(self, index: object, value: object) -> None:
        self.tracer.assign(self, index, value)


class ValueProxy(_Knowing, fx.Proxy):
    """Stands for ``value``, which ``node`` returned.

    Attributes:
        stale: why the value is not the node's any more, if it is not.
    """

    def __init__(self, node: fx.Node, tracer: fx.Tracer, value: object) -> None:
        super().__init__(node, tracer)
        self.value = value
        self.stale = ""


class AttributeProxy(_Knowing, fx.proxy.Attribute):
    """Stands for an attribute of what ``root`` stands for, or for a call of that method."""

    stale = ""

    @property
    def value(self) -> object:
        """What the attribute is."""
        return getattr(self.root.value, self.attr)


@contextmanager
def proxies_understood() -> Iterator[None]:
    """Let Python and torch take proxies for what they stand for where these are not asked.

    ``isinstance`` says what that is an instance of. In Python alone: C, told that a proxy
    is a tensor, would read its memory as that of one. Recorded are ``len`` of images and
    tensors of sizes that are read from others.
    """
    count, is_of = len, isinstance

    def is_instance(x: object, kinds: Any) -> bool:
        return is_of(x, kinds) or (is_proxy(x) and is_of(x.value, kinds))

    def length(x: Any) -> Any:
        images = is_proxy(x) and is_of(x.value, Tensor)
        return x.size(0) if images else count(x)

    def followed(name: str) -> Callable:
        create = getattr(torch, name)

        def call(*args: Any, **kwargs: Any) -> object:
            tracers: list[Any] = []

            def look(argument: Any) -> None:
                if is_proxy(argument):
                    tracers.append(argument.tracer)

            fx.node.map_aggregate((args, kwargs), look)
            if not tracers:
                return create(*args, **kwargs)
            if is_instance(args[0], Tensor):  # in another format, or as it is
                return args[0].to(**kwargs) if kwargs else args[0].clone()
            made = create(*values_of(args), **values_of(kwargs))
            if name not in CREATING:
                return made  # of sizes that are the same for all images
            format_ = {"dtype": made.dtype, "device": made.device} | kwargs
            return getattr(tracers[0].images[0], f"new_{name}")(*args, **format_)

        return call

    def variable(cls: type, *args: Any, **kwargs: Any) -> object:
        proxy = bool(args) and is_proxy(args[0])
        return args[0] if proxy else type.__call__(cls, *args, **kwargs)

    with ExitStack() as stack:
        for name in (*CREATING, *CALCULATING):
            stack.enter_context(patch.object(torch, name, followed(name)))
        kind = type(Variable)  # of which tensors were once made, and still are in old code
        stack.enter_context(patch.object(kind, "__call__", variable, create=True))
        stack.enter_context(patch.object(builtins, "len", length))
        stack.enter_context(patch.object(builtins, "isinstance", is_instance))
        yield


def set_item(x: Tensor, index: object, value: object) -> Tensor:
    """Assign to a part of ``x``, in place; returns ``x``."""
    x[index] = value
    return x


def is_proxy(argument: object) -> bool:
    """Say whether ``argument`` stands for something."""
    return type(argument) in (ValueProxy, AttributeProxy)


def values_of(argument: object) -> object:
    """Return ``argument`` with what they stand for in place of proxies.

    Raises:
        StaleError: one of them stands for nothing any more.
    """
    kind = type(argument)
    if is_proxy(argument):
        if argument.stale:
            raise StaleError(argument.stale)
        return argument.value
    if kind in (tuple, list):
        return kind(map(values_of, argument))
    if kind is dict:
        return {key: values_of(value) for key, value in argument.items()}
    if (parts := parts_of(argument)) is not None:
        if not any(map(is_proxy, all_in(argument))):
            return argument
        return kind(*map(values_of, parts.given), **values_of(parts.named))
    if kind is slice:
        return slice(*map(values_of, (argument.start, argument.stop, argument.step)))
    return argument


class StaleError(Exception):
    """What a proxy stood for has been changed through another view of it."""


def tensors_in(value: object, around: tuple = ()) -> list[Tensor]:
    """Return the tensors in tuples, lists, dictionaries and records.

    Args:
        value: or a tensor.
        around: what holds it; what holds itself, too, is looked into once.
    """
    if is_proxy(value) or any(value is each for each in around):
        return []
    if isinstance(value, Tensor):
        return [value]
    around = (*around, value)
    return [tensor for part in held_by(value) for tensor in tensors_in(part, around)]


class Aliases:
    """Which proxies stand for the same memory, so that what changes one changes all."""

    def __init__(self) -> None:
        self._by_storage: dict[int, list[weakref.ref[ValueProxy]]] = {}

    def add(self, proxy: ValueProxy) -> None:
        """Take note of a new proxy."""
        for tensor in tensors_in(proxy.value):
            self._by_storage.setdefault(_storage(tensor), []).append(weakref.ref(proxy))

    def changed(self, tensors: Iterable[Tensor], result: ValueProxy) -> None:
        """Let proxies of ``tensors`` stand for ``result``, which changed them in place.

        Those of other views of the same memory become stale.
        """
        returned = result.value
        if isinstance(returned, Tensor):
            # Views of one tensor count their changes together; it is this one.
            tensors = [t for t in tensors if shares_memory(returned, t)] or tensors
        for tensor in tensors:
            renewed = isinstance(returned, Tensor) and shares_memory(returned, tensor)
            for reference in self._by_storage.get(_storage(tensor), []):
                proxy = reference()
                if proxy is None or proxy is result:
                    continue
                value = proxy.value
                if renewed and isinstance(value, Tensor) and shares_memory(value, tensor):
                    proxy.node = result.node
                elif any(_overlap(part, tensor) for part in tensors_in(value)):
                    name = getattr(result.node.target, "__name__", result.node.target)
                    proxy.stale = f"{name} has changed it in place through another view"


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def shares_memory(first: Tensor, second: Tensor) -> bool:
    """Say whether two tensors are the same view of the same memory."""
    return all(
        view(first) == view(second)
        for view in (_storage, Tensor.storage_offset, Tensor.stride, lambda t: t.shape)
    )


def _overlap(first: Tensor, second: Tensor) -> bool:
    """Say whether two tensors have any element of memory in common."""
    if _storage(first) != _storage(second):
        return False
    size = first.untyped_storage().nbytes() // first.element_size()
    marked = first.new_zeros(size, dtype=bool)
    marked.as_strided(first.shape, first.stride(), first.storage_offset()).fill_(True)
    return bool(
        marked.as_strided(second.shape, second.stride(), second.storage_offset()).any()
    )
