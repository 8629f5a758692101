import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from gnnrl_ray.scoring.training import (
    Training,
    TrainingError,
    TrainingStep,
    accuracy,
    recalibrate,
    steps_per_epoch,
    train,
)
from gnnrl_ray.zoo.resnet import ResNet


def test_accuracy_counts_what_is_right(network, digits):
    with torch.no_grad():
        right = sum(
            int((network(images).argmax(1) == labels).sum())
            for images, labels in digits.test.batches(7)
        )
    assert accuracy(network, digits.test) == right / len(digits.test)


def test_recalibration_is_the_mean_over_training_images(network, digits):
    before = copy.deepcopy(network.state_dict())
    recalibrate(network, digits.train, seed=1)
    # The first normalisation can be recomputed by hand.
    order = torch.randperm(len(digits.train), generator=torch.Generator().manual_seed(1))
    batches = list(digits.train.take(order[:250]).batches(125))
    outputs = [network.conv1(images) for images, _ in batches]
    mean = torch.stack([o.mean((0, 2, 3)) for o in outputs]).mean(0)
    var = torch.stack([o.transpose(0, 1).flatten(1).var(1) for o in outputs]).mean(0)
    assert torch.allclose(network.bn1.running_mean, mean, atol=1e-3)
    assert torch.allclose(network.bn1.running_var, var, rtol=1e-3)
    assert network.bn1.momentum == 0.1
    assert not network.training
    for key, value in network.named_parameters():
        assert torch.equal(value, before[key])


def trained(digits, steps, **settings):
    torch.manual_seed(0)
    network = ResNet(8)
    train(network, digits.train, steps=steps, seed=3, **settings)
    return network


def test_training_is_repeatable(digits):
    first, second = trained(digits, 10), trained(digits, 10)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_no_steps_change_nothing(network, digits):
    before = copy.deepcopy(network.state_dict())
    train(network, digits.train, steps=0)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


def test_diverging_training_says_so(network, digits):
    with pytest.raises(TrainingError, match=r"try a --lr below 1e\+12"):
        train(network, digits.train, steps=20, lr=1e12)


def test_an_epoch_has_its_last_small_batch(digits):
    split = replace(
        digits.train, images=digits.train.images[:129], labels=digits.train.labels[:129]
    )
    assert steps_per_epoch(split, 128) == 2


def test_training_learns_digits_in_either_format(digits):
    scores = {}
    for precision in ("float32", "bfloat16"):
        network = trained(digits, 50, batch_size=64, precision=precision)
        scores[precision] = accuracy(network, digits.test)
        assert {p.dtype for p in network.parameters()} == {torch.float32}
    assert scores["float32"] != scores["bfloat16"]
    assert abs(scores["float32"] - scores["bfloat16"]) < 0.05
    assert min(scores.values()) > 0.6  # of ten classes


def test_every_step_is_reported_on_a_cpu(network, digits):
    steps = []
    train(network, digits.train, steps=5, on_step=lambda step, loss: steps.append(step))
    assert steps == [1, 2, 3, 4, 5]


def test_distillation_is_by_hand(network, digits):
    """One step without momentum or decay, beside torch's own softmax and logarithm."""
    torch.manual_seed(1)
    student, teacher = ResNet(8), network
    by_hand = copy.deepcopy(student).train()
    images, labels = next(digits.train.batches(32))
    step = TrainingStep(student.train(), weight_decay=0.0, device=labels.device,
                        teacher=teacher, distill=0.25)  # fmt: skip
    found = step(images, labels, 0.1)
    with torch.no_grad():
        wanted = (teacher(images) / 4).softmax(1)
    logits = by_hand(images)
    soft = (logits / 4).softmax(1)
    distance = (wanted * (wanted.log() - soft.log())).sum(1).mean() * 16
    loss = 0.75 * torch.nn.functional.cross_entropy(logits, labels) + 0.25 * distance
    loss.backward()
    assert found.item() == pytest.approx(loss.item(), rel=1e-5)
    for parameter, ours in zip(by_hand.parameters(), student.parameters(), strict=True):
        # Nesterov's first step: the gradient, and nine tenths of it again.
        expected = parameter - 0.1 * 1.9 * parameter.grad
        assert torch.allclose(ours, expected, atol=1e-5)


def test_with_distillation_alone_labels_do_not_matter(network, digits):
    shuffled = replace(digits.train, labels=digits.train.labels.flip(0))
    found = []
    for split in (digits.train, shuffled):
        torch.manual_seed(0)
        student = ResNet(8)
        train(student, split, steps=3, seed=1, teacher=network, distill=1.0)
        found.append(student.linear.weight.detach())
    assert torch.equal(*found)


class Dropping(nn.Sequential):
    """What it does in training is drawn."""

    def __init__(self, share=0.3):
        super().__init__(
            nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Dropout(share), nn.Conv2d(8, 8, 3, 2),
            nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10),
        )  # fmt: skip


def test_what_is_drawn_in_training_follows_from_the_seed(digits):
    """Whatever was drawn before, and where it is gone on with, too."""
    torch.manual_seed(0)
    networks = [Dropping() for _ in range(4)]
    for network in networks[1:]:
        network.load_state_dict(networks[0].state_dict())

    def training(network, seed=1):
        return Training(network, digits.train, steps=6, batch_size=128, seed=seed)

    whole, again, left, other = networks
    for network, seed in ((whole, 1), (again, 1), (other, 2)):
        for _ in training(network, seed):
            torch.rand(1)  # of somebody else
    begun = training(left)
    for _ in begun:
        if begun.done == 4:
            break
    state = begun.state()
    resumed = training(left)
    resumed.go_on_from(state)
    for _ in resumed:
        pass
    weights = [network[3].weight for network in networks]
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[0], weights[3])


def test_statistics_are_of_what_is_not_dropped(digits):
    dropping, whole = Dropping(), Dropping(0.0)
    whole.load_state_dict(dropping.state_dict())
    for network in (dropping, whole):
        recalibrate(network.eval(), digits.train)
        assert not any(module.training for module in network.modules())
    assert torch.equal(dropping[4].running_var, whole[4].running_var)
    assert not torch.equal(whole[4].running_var, torch.ones(8))


@pytest.mark.parametrize("steps", [-1, 1.5, "x"])
def test_steps_that_are_none_are_named(network, digits, steps):
    with pytest.raises(ValueError, match="`steps` is a whole number from 0 on"):
        train(network, digits.train, steps=steps)
