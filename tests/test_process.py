"""A search in a process that has set other things is as in any other, and leaves them."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import gnnrl_ray as gnnrl
from gnnrl_ray import process
from gnnrl_ray.errors import Notice
from gnnrl_ray.process import generators_kept, torch_as_it_starts
from gnnrl_ray.zoo import build_network


def draw():
    return random.random(), np.random.random(), torch.get_rng_state().tolist()  # noqa: NPY002


def everything(where):
    """Go through what the package is for; return all that it said, as numbers."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 12, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(12, 4),
    )  # fmt: skip
    images, labels = torch.randn(128, 1, 8, 8), torch.randint(4, (128,))
    train, validation = (
        DataLoader(TensorDataset(images, labels), 32, shuffle=shuffle)
        for shuffle in (True, False)
    )
    search = gnnrl.search  # what is imported then draws, too
    with ExitStack() as stack:
        yield stack  # in which somebody may set what they like
        random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002
        expected = draw()
        random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002
        found = search(
            network, (train, validation), flops=0.5, episodes=3, finetune=2, out=where,
            agent={"warmup_episodes": 2}, progress=False,
        )  # fmt: skip
        assert draw() == expected
        groups = gnnrl.trace(network, (1, 8, 8))
        smaller = gnnrl.prune(network, groups, groups.widths // 2)
        gnnrl.train(smaller, train, steps=3)
        again = gnnrl.load_pruned(where, network)
        scores = [gnnrl.accuracy(each, validation) for each in (network, smaller, again)]
        data = gnnrl.Source(network="resnet20", dataset="digits").load_data()
        set_now = (
            torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"),
        )  # fmt: skip
    journal = [(outcome.accuracy, outcome.widths) for _, outcome in found.run.journal]
    weights = [weight.tolist() for each in (smaller, again) for weight in each.parameters()]
    yield set_now, (journal, scores, weights, len(data.validation))


def test_what_a_process_has_set_changes_nothing_and_stays(tmp_path):
    usual = everything(tmp_path / "usual")
    next(usual)
    usually, expected = next(usual)
    assert usually == (torch.float32, torch.device("cpu"), True, False, False)

    other = everything(tmp_path / "other")
    stack = next(other)
    stack.callback(torch.set_default_dtype, torch.float32)
    torch.set_default_dtype(torch.float64)
    for mode in (
        torch.device("meta"), torch.inference_mode(),
        torch.autocast("cpu", dtype=torch.bfloat16),
    ):  # fmt: skip
        stack.enter_context(mode)
    set_now, found = next(other)
    assert set_now == (torch.float64, torch.device("meta"), False, True, True)
    assert found == expected


def test_what_was_set_is_back_after_an_error():
    @torch_as_it_starts()
    @generators_kept()
    def fails():
        torch.set_default_dtype(torch.float64)
        torch.manual_seed(5)
        raise ZeroDivisionError

    before = draw()[2]
    with pytest.raises(ZeroDivisionError):
        fails()
    assert torch.get_default_dtype() == torch.float32
    assert draw()[2] == before


def in_threads(function, count):
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(function, range(count)))


def test_threads_trace_beside_each_other_and_beside_one_that_runs_the_network():
    network = build_network("resnet20", 10, 32).eval()
    images = torch.randn(2, 3, 32, 32)
    expected, groups = network(images), gnnrl.trace(network, (3, 32, 32))
    over = threading.Event()

    def run():
        while True:
            same = torch.equal(network(images), expected)
            if over.is_set() or not same:
                return same

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run)
        found = in_threads(lambda _: gnnrl.trace(network, (3, 32, 32)), 4)
        over.set()
        assert running.result()
    for each in found:
        assert each.names == groups.names
        assert each.layouts.keys() == groups.layouts.keys()
        assert [op.name for op in each.operations] == [op.name for op in groups.operations]


def test_searches_of_threads_take_turns(tmp_path, network, digits, monkeypatch):
    monkeypatch.setattr(process, "_PATIENCE", 0.01)

    def search(number):
        return gnnrl.search(
            network, digits, flops=0.5, method="random", episodes=3, progress=False,
            out=tmp_path / str(number),
        ).best  # fmt: skip

    with pytest.warns(Notice, match="search of another thread"):
        found = [*in_threads(search, 3), search(3)]  # the last one alone
    assert len({(best.widths, best.accuracy) for best in found}) == 1
