import json

import numpy as np
import pytest
import torch

from gnnrl_ray import SearchSettings, search
from gnnrl_ray.errors import InputError
from gnnrl_ray.scoring import rounding
from gnnrl_ray.scoring.rounding import quick_multiple


@pytest.mark.parametrize("unit", [1, 2, 4, 8, 16])
def test_units_of_vectors_are_found(unit, monkeypatch):
    """A machine that works on so many channels at a time, a little unevenly."""
    rng = np.random.default_rng(unit)

    def takes(device, batch):
        whole = -(-rounding._WIDTHS // unit) * unit
        return whole**2.0 * rng.uniform(1, 1.01, len(whole))

    monkeypatch.setattr(rounding, "_seconds", takes)
    assert quick_multiple(torch.device("cpu")) == unit


def test_this_machine_is_measured():
    seconds = rounding._seconds(torch.device("cpu"), 1)
    assert seconds.shape == rounding._WIDTHS.shape
    assert (seconds > 0).all()
    # Whatever else it does: five times the channels, 25 times the work.
    assert seconds[-8:].mean() > seconds[:8].mean()


def test_a_search_keeps_what_was_measured(network, digits, tmp_path, monkeypatch):
    asked = []

    def quick(device, batch):
        asked.append((device.type, batch))
        return 4

    monkeypatch.setattr("gnnrl_ray.jobs.searching.quick_multiple", quick)
    about = {"method": "random", "finetune": "none", "out": tmp_path / "run"}
    with pytest.warns(UserWarning, match="multiples of 4 take no longer"):
        found = search(network, digits, episodes=2, round_to="auto", latency_batch=3,
                       device="cpu", **about)  # fmt: skip
    dense = found.best.widths
    assert asked == [("cpu", 3)]
    kept = json.loads((tmp_path / "run/best.json").read_text())["groups"]
    whole = {16, 32, 64}
    assert all(width % 4 == 0 or width in whole for width in kept.values())
    assert dense
    settings = json.loads((tmp_path / "run/run.json").read_text())["settings"]
    assert settings["round_to"] == 4
    search(network, digits, episodes=3, resume=True, device="cpu", **about)
    assert len(asked) == 1


@pytest.mark.parametrize("given", [0, -1, 1.5, "eight", True, None, "Auto", 10**30])
def test_what_is_no_number_of_channels_is_refused(given):
    with pytest.raises(InputError, match="--round-to"):
        SearchSettings(round_to=given)
