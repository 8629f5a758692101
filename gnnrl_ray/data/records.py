"""What tensors come in: tuples, dictionaries, dataclasses and others that hold them."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

from torch import Tensor
from torch.fx.immutable_collections import immutable_dict

_PLAIN = (dict, immutable_dict, defaultdict)


class Parts(NamedTuple):
    """What a record is made of anew: ``kind(*given, **named)``."""

    kind: type
    given: tuple
    named: dict[str, Any]


def parts_of(value: object) -> Parts | None:
    """Take a record apart: whatever holds values in a class of its own.

    None for plain tuples, lists and dictionaries, and for what holds nothing.
    """
    kind = type(value)
    if isinstance(value, tuple) and hasattr(kind, "_fields"):
        return Parts(kind, tuple(value), {})
    if is_dataclass(kind):  # as outputs of Hugging Face are, which are dictionaries, too
        names = [field.name for field in fields(kind) if field.init]
        return Parts(kind, (), {name: getattr(value, name, None) for name in names})
    if kind is SimpleNamespace:
        return Parts(kind, (), dict(vars(value)))
    if isinstance(value, dict) and kind not in _PLAIN:
        return Parts(kind, (dict(value),), {})
    return None


def held_by(value: object) -> Iterable[object]:
    """Return what a tuple, list, dictionary or record holds; nothing of all else."""
    if (parts := parts_of(value)) is not None:
        return (*parts.given, *parts.named.values())
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, tuple | list) else ()


def all_in(value: object) -> Iterator[object]:
    """Go through ``value`` and all that it holds, and what that holds: each once."""
    left, seen = [value], {}
    while left:
        each = left.pop()
        if id(each) not in seen:
            seen[id(each)] = each  # which keeps its id its own
            yield each
            left.extend(held_by(each))


def has_records(value: object) -> bool:
    """Say whether ``value`` is a record, or holds one."""
    return any(parts_of(each) is not None for each in all_in(value))


def mapped(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Return ``value`` with ``function`` of all tensors in it."""
    if isinstance(value, Tensor):
        return function(value)
    if (parts := parts_of(value)) is not None:
        return parts.kind(*mapped(function, parts.given), **mapped(function, parts.named))
    if isinstance(value, Mapping):
        return {name: mapped(function, each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(mapped(function, each) for each in value)
    return value
