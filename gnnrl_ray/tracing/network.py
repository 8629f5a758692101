"""A network as it is given: run, copied and left as it was."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from gnnrl_ray.data.loader import InputShape, shapes_of
from gnnrl_ray.data.records import all_in
from gnnrl_ray.errors import InputError

_Networks = TypeVar("_Networks", bound=nn.Module | tuple[nn.Module, ...])

IMAGES = 2  # to trace with: of one alone, ``squeeze`` would take the batch's axis, too

# What every module has of torch's; the others it has are as its code leaves them.
_HOOKS = vars(nn.Module()).keys() - {"_parameters", "_buffers", "_modules"}
_LEAVES = _HOOKS | {"_parameters", "_modules"}  # no tensor of these is calculated


class TraceError(InputError):
    """A network that cannot be traced, or an operation that is not understood."""


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
            for kept in all_in(own):
                if isinstance(kept, Tensor) and kept.grad_fn is not None:
                    memo[id(kept)] = kept.detach()
    try:
        return copy.deepcopy(networks, memo)
    except Exception as error:  # whatever that of the user's own says, who is asked
        raise InputError(
            f"the network cannot be copied ({type(error).__name__}: {error}); leave out "
            "what is open or under way, such as files, locks and generators."
        ) from error


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


def get_tensor(network: nn.Module, name: str) -> Tensor:
    """Return the parameter or buffer of ``network`` with the qualified ``name``."""
    owner, _, attribute = name.rpartition(".")
    return getattr(network.get_submodule(owner), attribute)
