"""CUDA graphs where there are GPUs, plain calls where there are none."""

import copy
import itertools
import warnings
from collections import deque

import numpy as np
import pytest
import torch
from helpers.widths import random_widths

from gnnrl_ray import Objective, train
from gnnrl_ray.scoring.capture import Captured
from gnnrl_ray.scoring.evaluation import EvaluationMode
from gnnrl_ray.scoring.training import Training, TrainingStep, in_turns
from gnnrl_ray.zoo.resnet import ResNet


def test_on_a_cpu_every_call_is_a_call():
    calls = []
    captured = Captured(lambda: calls.append(1), torch.device("cpu"))
    for _ in range(6):
        captured()
    assert len(calls) == 6


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_step_in_the_same_memory_is_the_same_step(digits, precision):
    """What a GPU captures, run eagerly, beside what a CPU does."""
    torch.manual_seed(0)
    networks = [ResNet(8).train()]
    networks.append(copy.deepcopy(networks[0]))
    steps = [
        TrainingStep(network, precision=precision, device=torch.device("cpu"),
                     static=static)
        for network, static in zip(networks, (False, True), strict=True)
    ]  # fmt: skip
    batches = list(digits.train.batches(100, torch.Generator().manual_seed(0)))
    assert len(batches[-1][1]) != 100  # the last of an epoch is a smaller one
    for (images, labels), rate in zip(batches, np.linspace(0.05, 0.01, 10), strict=True):
        losses = [
            steps[0](images, labels, float(rate)),
            steps[1](images, labels, torch.tensor(rate)),
        ]
        assert torch.allclose(*losses, rtol=1e-4)
    for first, second in zip(*(n.state_dict().values() for n in networks), strict=True):
        assert torch.allclose(first, second, rtol=1e-3, atol=1e-5)


def trained(steps, split, together, **how):
    """Networks after so many steps each, together or one after the other."""
    device, networks = split.labels.device, []
    for seed in range(len(steps)):
        torch.manual_seed(seed)
        networks.append(ResNet(8).to(device))
    each = [Training(network, split, steps=count, seed=count, **how)
            for network, count in zip(networks, steps, strict=True)]  # fmt: skip
    if together:
        in_turns(each, device)
    else:
        deque(itertools.chain(*each), 0)
    return networks


def test_networks_trained_in_turns_are_those_trained_alone(digits):
    both = (trained((3, 0, 11), digits.train, together) for together in (False, True))
    for alone, beside in zip(*both, strict=True):
        for name, value in alone.state_dict().items():
            assert torch.equal(value, beside.state_dict()[name]), name


@pytest.fixture
def cuda():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return torch.device("cuda")


@pytest.mark.gpu
def test_a_capture_replays(cuda):
    x = torch.zeros((), device=cuda)
    captured = Captured(lambda: x.add_(1), cuda)
    for count in range(1, 9):
        captured()
        assert x.item() == count
    assert captured._run.__name__ == "replay"


@pytest.mark.gpu
def test_what_waits_for_the_gpu_goes_on_uncaptured(cuda):
    x = torch.ones((), device=cuda)

    def waits():
        if x.item() > 0:
            x.add_(1)

    captured = Captured(waits, cuda)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(6):
            captured()
    assert x.item() == 7
    assert sum("CUDA graph" in str(w.message) for w in caught) == 1


@pytest.mark.gpu
def test_captured_training_is_eager_training(cuda, digits):
    data, networks = digits.to(cuda), []
    for static in (False, True):
        torch.manual_seed(0)
        networks.append(ResNet(8).to(cuda).train())
        step = TrainingStep(networks[-1], device=cuda, static=static)
        generator = torch.Generator(cuda).manual_seed(0)
        for images, labels in data.train.batches(100, generator):
            rate = 0.01 if not static else torch.tensor(0.01, device=cuda)
            step(images, labels, rate)
    for first, second in zip(*(n.state_dict().values() for n in networks), strict=True):
        assert torch.allclose(first, second, rtol=1e-2, atol=1e-3)


@pytest.mark.gpu
def test_side_by_side_is_one_after_the_other(cuda, digits):
    split = digits.to(cuda).train
    both = (trained((30,) * 4, split, together, lr=0.01) for together in (False, True))
    for alone, beside in zip(*both, strict=True):
        for name, value in alone.state_dict().items():
            off = (value - beside.state_dict()[name]).float().norm()
            # Sums on a GPU have no order, so that two runs of one training differ, too.
            assert off <= 0.02 * (1 + value.float().norm()), name


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_training_learns(cuda, digits, precision):
    from gnnrl_ray import accuracy

    torch.manual_seed(0)
    network, data = ResNet(8).to(cuda), digits.to(cuda)
    train(network, data.train, steps=120, seed=3, precision=precision)
    assert accuracy(network, data.test) > 0.8


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_replayed_candidates_are_those_of_removal(cuda, network, groups, digits, rng,
                                                  precision):  # fmt: skip
    masked = Objective(network, groups, digits, budget=0.5).to(cuda)
    masked.mode = EvaluationMode(precision, 1000, masked=True)
    removed = Objective(network, groups, digits, budget=0.5).to(cuda)
    removed.mode = EvaluationMode("plain")
    for _ in range(8):
        widths = random_widths(groups, rng)
        assert masked(widths).accuracy == pytest.approx(removed(widths).accuracy, abs=0.01)


@pytest.mark.gpu
def test_masks_are_chosen_where_they_are_faster(cuda, network, groups, digits):
    objective = Objective(network, groups, digits, budget=0.5).to(cuda)
    assert objective.choose().masked
