import dataclasses
from dataclasses import dataclass

import pytest
import typer
from typer.testing import CliRunner

from gnnrl_ray import SearchSettings, Source
from gnnrl_ray.errors import InputError
from gnnrl_ray.options import settings_as_options
from gnnrl_ray.settings import Checked, flag, kind_of, setting


@dataclass(frozen=True, kw_only=True)
class Few(Checked):
    count: int = setting(3, "How many.", least=1)
    share: float | None = setting(None, "How much of it.")
    loud: bool = setting(True, "Whether to shout.")
    table: dict = setting({}, "Pairs.", metavar="NAME=VALUE")


@pytest.fixture
def call():
    """Run a command with such options; return what it was given."""
    app, seen = typer.Typer(), {}

    @app.command()
    @settings_as_options(few=Few)
    def command(few: dict, word: str = "w") -> None:
        seen.update(few=few, word=word)

    def call(*words):
        seen.clear()
        result = CliRunner().invoke(app, words)
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return seen if result.exit_code == 0 else result.output

    return call


def test_only_what_was_given_is_handed_on(call):
    assert call() == {"few": {}, "word": "w"}
    given = call("--count", "3", "--no-loud", "--word", "x")
    assert given == {"few": {"count": 3, "loud": False}, "word": "x"}
    assert call("--share", "1e-3")["few"] == {"share": 0.001}
    given = call("--table", "a=1", "--table", "b=[1, 2]", "--table", "c=null")
    assert given["few"] == {"table": {"a": 1, "b": [1, 2], "c": None}}


@pytest.mark.parametrize(
    ("words", "message"),
    [(("--count", "many"), "--count 'many' is not a whole number"),
     (("--count", "1.5"), "--count '1.5' is not a whole number"),
     (("--share", "half"), "--share 'half' is not a number")],
)  # fmt: skip
def test_texts_of_another_kind_are_named(call, words, message):
    with pytest.raises(InputError, match=message):
        call(*words)


def test_help_teaches_everything():
    result = CliRunner().invoke(_app(), ["--help"], env={"COLUMNS": "200"})
    said = " ".join(result.output.replace("│", " ").split())
    for owner in (SearchSettings, Source):
        for field in dataclasses.fields(owner):
            assert flag(field.name) in said, field.name
            if kind_of(owner, field.name) in (int, float) and field.default is not None:
                assert f"Default: {field.default}." in said, field.name


def _app():
    app = typer.Typer()

    @app.command()
    @settings_as_options(settings=SearchSettings, source=Source)
    def command(settings: dict, source: dict) -> None:
        """Nothing."""

    return app
