"""Options of commands that follow from settings: their names, kinds, defaults and help."""

import dataclasses
import inspect
import json
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any

import typer

from gnnrl_ray.settings import Checked, choices_of, flag, kind_of

_METAVARS = {int: "INTEGER", float: "NUMBER", str: "TEXT"}


def settings_as_options(**owners: type[Checked]) -> Callable[[Callable], Callable]:
    """Give a command an option for each field of ``owners``.

    Args:
        **owners: by the name of the parameter that takes the options that were given, as a
            dictionary of values by name. What was not given is not in it.

    Returns:
        A decorator.
    """

    def decorate(function: Callable) -> Callable:
        @wraps(function)
        def command(*args: Any, **given: Any) -> Any:
            for parameter, owner in owners.items():
                words = {name: given.pop(name) for name in _names(owner)}
                words = {name: word for name, word in words.items() if word is not None}
                tables = {n: words.pop(n) for n in list(words) if kind_of(owner, n) is dict}
                values = owner.read(words)
                values |= {n: _table(owner, n, given) for n, given in tables.items()}
                owner(**values)  # wrong ones are told of before anything is loaded
                given[parameter] = values
            return function(*args, **given)

        own = inspect.signature(function, eval_str=True).parameters.values()
        options = [_option(o, f) for o in owners.values() for f in dataclasses.fields(o)]
        parameters = [*options, *(p for p in own if p.name not in owners)]
        keyword = inspect.Parameter.KEYWORD_ONLY
        command.__signature__ = inspect.Signature(
            [p.replace(kind=keyword) for p in parameters]
        )
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        return command

    return decorate


def _names(owner: type[Checked]) -> list[str]:
    return [field.name for field in dataclasses.fields(owner)]


def _option(owner: type[Checked], field: dataclasses.Field) -> inspect.Parameter:
    """Return the option of one setting; nothing given is None, whatever its default."""
    kind, facts = kind_of(owner, field.name), field.metadata
    text, choices = facts["text"], choices_of(field)
    panel = _panel(owner, field.name)
    default = facts.get("shown", field.default)
    if default not in (None, dataclasses.MISSING) and kind is not bool:
        text = f"{text.rstrip('.')}. Default: {default}."
    if kind is bool:
        shown = flag(field.name if field.default else f"no-{field.name}")
        names = [f"{flag(field.name)}/--no-{field.name.replace('_', '-')}"]
        option = typer.Option(
            *names, help=f"{text} Default: {shown}.", rich_help_panel=panel
        )
        annotation = Annotated[bool | None, option]
    else:
        metavar = facts.get("metavar") or "|".join(choices) or _METAVARS[kind]
        option = typer.Option(
            flag(field.name), help=text, metavar=metavar, rich_help_panel=panel,
        )  # fmt: skip
        annotation = Annotated[(list[str] if kind is dict else str) | None, option]
    keyword = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(field.name, keyword, default=None, annotation=annotation)


def _panel(owner: type[Checked], name: str) -> str | None:
    """Return under which heading ``--help`` has a setting; its last is for all others."""
    for panel, names in owner.panels.items():
        if name in names:
            return panel
    return next(reversed(owner.panels), None)


def _table(owner: type[Checked], name: str, given: list[str]) -> dict[str, Any]:
    """Read NAME=VALUE, where values are JSON, or words; or the name of a preset."""
    (field,) = (f for f in dataclasses.fields(owner) if f.name == name)
    presets, table = field.metadata.get("presets", {}), {}
    for text in given:
        if text in presets:
            table |= presets[text]
            continue
        key, sign, value = text.partition("=")
        if not (key and sign and value):
            raise typer.BadParameter(f"{flag(name)} {text!r} is not NAME=VALUE.")
        try:
            table[key] = json.loads(value)
        except ValueError:
            table[key] = value
    return table
