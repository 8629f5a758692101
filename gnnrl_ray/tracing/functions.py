"""What C calls out of sight: ``torch.autograd.Function``, and what torch has compiled."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from types import BuiltinMethodType, FunctionType, MethodType, ModuleType
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import FunctionCtx
from torch.utils.checkpoint import CheckpointFunction

from gnnrl_ray.errors import InputError
from gnnrl_ray.tracing.proxies import is_proxy, tensors_in, values_of


@contextmanager
def functions_followed(network: nn.Module) -> Iterator[None]:
    """Let what is done in the ``forward`` of functions be recorded.

    Their ``backward`` is not: one that says something else than autograd does, as a
    straight-through estimator, would be lost, so a function with such a one is an error.
    What has been scripted or compiled of Python is followed as it was written.

    Args:
        network: that is traced; it and all code may call functions by names of their own.
    """
    original = vars(Function)["apply"]

    def apply(cls: type[Function], *args: object, **kwargs: object) -> object:
        if not any(map(is_proxy, args)):
            return original.__get__(None, cls)(*args, **kwargs)
        if cls is not CheckpointFunction and not _derives(cls, values_of(args)):
            raise InputError(f"the gradient of {cls.__name__} is not that of its forward")
        return _forward(cls, args)

    with ExitStack() as stack:
        for owner in (*_own_code(network), *network.modules()):
            for name, value in list(vars(owner).items()):
                if (written := _as_written(value)) is not None:
                    stack.enter_context(patch.object(owner, name, written))
        for owner in _owners(network):
            for name, value in list(vars(owner).items()):
                static = type(value) is staticmethod
                cls = _applied(value.__func__ if static else value)
                if cls is not None:
                    ours = MethodType(apply, cls)
                    ours = staticmethod(ours) if static else ours
                    stack.enter_context(patch.object(owner, name, ours))
        stack.enter_context(patch.object(Function, "apply", classmethod(apply)))
        yield


def _own_code(network: nn.Module) -> Iterable[ModuleType]:
    """Return the files that the network's classes are written in, but for torch's."""
    kinds = {kind for module in network.modules() for kind in type(module).__mro__}
    names = {k.__module__ for k in kinds if not k.__module__.startswith("torch.")}
    return [m for m in map(sys.modules.get, sorted(names)) if type(m) is ModuleType]


def _as_written(value: object) -> object | None:
    """Return the function that ``value`` was compiled from, if it was."""
    if type(value) is torch.jit.ScriptFunction:
        return getattr(value, "_torchdynamo_inline", None)
    if type(value) is FunctionType:
        return vars(value).get("_torchdynamo_orig_callable")
    return None


def _owners(network: nn.Module) -> Iterable[object]:
    """Return whatever may call a function by a name of its own, if there are functions."""
    if all(cls.__module__.startswith("torch.") for cls in Function.__subclasses__()):
        return ()
    imported = [m for m in sys.modules.values() if type(m) is ModuleType]
    return {*imported, *network.modules(), *map(type, network.modules())}


def _applied(value: object) -> type[Function] | None:
    """Return the function that ``value`` is the ``apply`` of."""
    kinds = (BuiltinMethodType, MethodType)  # ``isinstance`` would wake what is lazy
    if type(value) in kinds and getattr(value, "__name__", "") == "apply":
        cls = getattr(value, "__self__", None)
        if isinstance(cls, type) and issubclass(cls, Function):
            return cls
    return None


def _forward(cls: type, args: tuple) -> object:
    if cls.setup_context is not Function.setup_context:
        return cls.forward(*args)
    context = FunctionCtx()
    context.needs_input_grad = (False,) * len(args)
    return cls.forward(context, *args)


def _derives(cls: type, args: tuple) -> bool:
    """Say whether ``backward`` returns what autograd makes of ``forward``."""
    generator = torch.Generator().manual_seed(0)

    def drawn(given: object) -> object:
        if not (isinstance(given, Tensor) and given.is_floating_point()):
            return given
        numbers = torch.randn(given.shape, generator=generator, dtype=torch.double)
        return numbers.to(given).requires_grad_()

    def gradients(function, args: tuple) -> list[Tensor | None]:
        outputs = [t for t in tensors_in(function(*args)) if t.requires_grad]
        weights = torch.Generator().manual_seed(1)
        with torch.no_grad():
            ones = [torch.randn(t.shape, generator=weights).to(t) for t in outputs]
        inputs = [t for t in args if isinstance(t, Tensor) and t.requires_grad]
        return [*torch.autograd.grad(outputs, inputs, ones, allow_unused=True)]

    args = tuple(map(drawn, args))
    try:
        with torch.enable_grad():
            theirs = gradients(cls.apply, args)
            ours = gradients(lambda *args: _forward(cls, args), args)
    except RuntimeError:
        return False
    return all(
        a is b or (a is not None and b is not None and torch.allclose(a, b, 1e-3, 1e-4))
        for a, b in zip(theirs, ours, strict=True)
    )
