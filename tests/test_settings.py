import dataclasses
import inspect
import json
import math
from pathlib import Path

import numpy as np
import pytest

from gnnrl_ray import GnnrlError, SearchSettings, Source, load_data, load_network
from gnnrl_ray.agent.method import AGENT_SETTINGS
from gnnrl_ray.agent.settings import AgentSettings
from gnnrl_ray.errors import InputError
from gnnrl_ray.jobs.sweep import _SEARCH
from gnnrl_ray.jobs.trackers import Trackers
from gnnrl_ray.settings import choices_of, flag, kind_of

EVERY = [SearchSettings, Source, AgentSettings, Trackers]
FIELDS = [
    pytest.param(owner, field, id=f"{owner.__name__}-{field.name}")
    for owner in EVERY
    for field in dataclasses.fields(owner)
]


def wrong_values(owner, field):
    """Yield values just outside what a field says it may have, and of other kinds."""
    facts, kind = field.metadata, kind_of(owner, field.name)
    if "parse" in facts:
        return
    if kind in (int, float):
        yield from ("many", [1], math.nan, math.inf, True)
        step = 1 if kind is int else 1e-9
        yield from (facts[end] - step for end in ("least",) if end in facts)
        yield from (facts[end] + step for end in ("most",) if end in facts)
        yield from (facts[end] for end in ("above", "below") if end in facts)
    if kind is int:
        yield 1.5
    if kind is bool:
        yield from (1, "yes")
    if kind is str:
        yield from (1, ["a"])
        if choices_of(field):
            yield "no such thing"
    if kind is dict:
        yield from ("a=1", [1], {"a": {1, 2}})


@pytest.mark.parametrize(("owner", "field"), FIELDS)
def test_every_setting_is_documented_checked_and_named(owner, field):
    assert field.metadata["text"].strip()
    for value in wrong_values(owner, field):
        with pytest.raises(InputError) as error:
            owner(**{field.name: value})
        said = str(error.value)
        assert said.startswith(f"{owner.flag(field.name)} ")
        assert repr(value) in said
        assert "\n" not in said


@pytest.mark.parametrize(("owner", "field"), FIELDS)
def test_every_bound_and_choice_can_be_had(owner, field):
    facts = field.metadata
    allowed = [facts[end] for end in ("least", "most") if end in facts]
    for value in [*allowed, *choices_of(field)]:
        assert getattr(owner(**{field.name: value}), field.name) == value


@pytest.mark.parametrize("owner", [SearchSettings, Source])
def test_json_gives_the_same_settings_again(owner):
    first = owner()
    kept = json.loads(json.dumps(first.to_dict()))
    assert owner.from_dict(kept) == first
    # A run.json of a version that knew more, or less, is still one.
    assert owner.from_dict(kept | {"unheard_of": 1}) == first
    assert owner.from_dict({}) == first


def test_kinds_are_plain():
    settings = SearchSettings(
        flops=np.float32(0.25), episodes=np.int64(7), min_keep=0, keep="a|b",
        agent={"hidden": (1, np.int64(2)), "noise": np.float64(0.5)},
    )  # fmt: skip
    assert type(settings.flops) is float
    assert type(settings.episodes) is int
    assert type(settings.min_keep) is float
    assert json.loads(json.dumps(settings.to_dict()))["flops"] == 0.25
    assert settings.agent == {"hidden": [1, 2], "noise": 0.5}
    assert type(settings.agent["hidden"][1]) is int
    assert Source(weights=Path("a/b.th")).weights == "a/b.th"


def test_half_the_macs_is_the_budget_where_there_is_no_other():
    assert SearchSettings().budgets == {"flops": 0.5}
    assert SearchSettings(params=0.3).budgets == {"params": 0.3}
    both = SearchSettings(params=0.3, flops=0.9)
    assert both.budgets == {"flops": 0.9, "params": 0.3}


def test_only_what_is_free_may_change():
    free = {f.name for f in dataclasses.fields(SearchSettings) if f.metadata.get("free")}
    assert {"episodes", "env_runners", "device"} <= free
    assert not {"flops", "seed", "method", "agent", "precision"} & free
    before = SearchSettings()
    assert before.continued({"episodes": 3, "seed": 0}, "run").episodes == 3
    with pytest.raises(InputError, match=r"run was started with --flops 0\.5, not 0\.4;"):
        before.continued({"flops": 0.4}, "run")


def test_what_is_not_a_setting_is_named():
    from gnnrl_ray import search

    with pytest.raises(
        InputError, match=r"'flop' is no setting of a search; did you mean flops\? known: "
    ):
        search(None, None, flop=0.5)
    with pytest.raises(InputError, match="a NoneType cannot be pruned"):
        search(None, None, flops=0.5)


def test_there_is_one_default_data_set():
    """The command's, a sweep's, and those of the two functions."""
    defaults = {
        Source().dataset,
        inspect.signature(load_data).parameters["name"].default,
        inspect.signature(load_network).parameters["dataset"].default,
    }
    assert defaults == {"digits"}


def test_sweeps_may_try_whatever_is_a_setting():
    transient = {f.name for f in dataclasses.fields(SearchSettings)
                 if not f.metadata.get("kept", True)}  # fmt: skip
    assert SearchSettings.names() - {"agent"} - transient == _SEARCH
    assert AgentSettings.names() - AGENT_SETTINGS == {"episode_timeout", "max_retries"}


def test_flags_are_the_names():
    assert flag("round_to") == "--round-to"
    assert AgentSettings.flag("tau") == "--agent tau"
    assert issubclass(InputError, GnnrlError)
