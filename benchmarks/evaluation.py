"""Evaluation of candidates, on all validation images."""

import copy
import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import nn
from torch.nn.utils import prune as torch_prune
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.measuring import Row, halved, load, macs_per_second, mean, row, seconds
from gnnrl_ray import Objective, Outcome, accuracy, load_data
from gnnrl_ray.data import Data, Split
from gnnrl_ray.pruning.importance import rank
from gnnrl_ray.pruning.removal import keep, prune, remove
from gnnrl_ray.scoring.evaluation import TOLERANCE, Evaluator, choose
from gnnrl_ray.scoring.fusion import fuse
from gnnrl_ray.scoring.training import recalibrate
from gnnrl_ray.tracing.symbolic import symbolic

REPEATS = 5
CANDIDATES = 40  # for the early stop


class Images(Dataset):
    """A split as torchvision has it: an image, transformed, at a time."""

    def __init__(self, split: Split, augment: bool = False) -> None:
        self._images, self._labels = split.images.numpy(), split.labels.tolist()
        crop = [transforms.RandomCrop(32, 4), transforms.RandomHorizontalFlip()]
        self._transform = transforms.Compose(
            [
                transforms.ToPILImage(),
                *(crop if augment else []),
                transforms.ToTensor(),
                transforms.Normalize(split.mean.tolist(), split.std.tolist()),
            ]
        )

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple:
        return self._transform(self._images[index]), self._labels[index]


def masked(network: nn.Module) -> nn.Module:
    """Return the dense network with half of every convolution's filters set to zero."""
    network = copy.deepcopy(network)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            torch_prune.ln_structured(module, "weight", amount=0.5, n=2, dim=0)
    return network


def plain(network: nn.Module, split: Split) -> float:
    """Return the accuracy, the way the authors' code finds it."""
    right = 0
    with torch.no_grad():
        for images, labels in DataLoader(Images(split), batch_size=128):
            right += (network(images).argmax(1) == labels).sum().item()
    return right / len(split)


def rows(networks: Sequence[str], dataset: str) -> Iterator[Row]:
    """Measure each network, dense and at half its MACs."""
    data = load_data(dataset)
    for name in networks:
        own = load_data("cifar100") if name.startswith("mobile") else data
        yield from _network(name, own)


def _network(name: str, data: Data) -> Iterator[Row]:
    network, split, images = load(name, data), data.validation, len(data.validation)
    groups, costs, half = halved(network, data)
    loader = masked(network)
    removed = prune(network, groups, half)
    recalibrate(removed, data.train)
    mode = choose(removed.eval(), split)
    evaluator = Evaluator(split, mode)
    dtype = getattr(torch, mode.precision, torch.float32)
    rate = macs_per_second(dtype)
    whole = prune(network, groups, groups.widths)
    reference, full, short = seconds(
        lambda: plain(loader, split),
        lambda: evaluator(whole),
        lambda: evaluator(removed),
        n=REPEATS,
    )
    yield row("plain evaluation, masked", name, [images / s for s in reference], "images/s")
    for share, network_, times, widths in (
        ("1.0", whole, full, groups.widths), ("0.5", removed, short, half),
    ):  # fmt: skip
        error = abs(evaluator(network_).accuracy - accuracy(network_, split))
        assert error <= TOLERANCE, f"{name} is off by {error:.2%}"
        limit = images * int(costs.macs(widths)) / rate
        yield row(
            f"evaluation, keep {share}, {mode.precision}", name,
            [images / s for s in times], "images/s",
            plain=mean(reference) / mean(times), limit=limit / mean(times),
        )  # fmt: skip
    graph, kept = symbolic(network, groups.input_shapes), keep(rank(network, groups), half)
    masks, build = seconds(
        lambda: masked(network),
        lambda: fuse(remove(graph, groups, kept), data.input_shape, dtype),
        n=10,
    )
    yield row("prune and build", name, [1e3 * s for s in build], "ms",
              masking=mean(build) / mean(masks))  # fmt: skip
    candidates = [1 / (b + e) for b, e in zip(build, short, strict=False)]
    yield row("candidates, keep 0.5", name, candidates, "per s",
              plain=mean(candidates) * (mean(masks) + mean(reference)))  # fmt: skip
    if name == "resnet56":
        yield from _early_stop(name, network, data, mean(reference))


def _early_stop(
    name: str, network: nn.Module, data: Data, reference: float
) -> Iterator[Row]:
    """Random candidates one after the other, as a search would score them."""
    groups, _, _ = halved(network, data)
    objective = Objective(network, groups, data, budget=0.5, early_stop=True)
    evaluator, times = Evaluator(data.validation, objective.choose()), []
    for seed in range(CANDIDATES):
        ratios = np.random.default_rng(seed).random(len(groups.widths))
        widths = objective.budget.reach(ratios)
        candidate, worth = objective.build(widths), objective._worth()
        start = time.perf_counter()
        score = evaluator(candidate, worth)
        times.append(time.perf_counter() - start)
        complete = score.images == len(data.validation)
        assert not complete or score == evaluator(candidate), "scored to the end as ever"
        found, images = score.accuracy, None if complete else score.images
        objective.remember(
            [Outcome(tuple(widths.tolist()), 0, 0, found, found - 1, times[-1], images)]
        )
    each = [len(data.validation) / s for s in times]
    yield row(f"evaluation, keep 0.5, early stop, {CANDIDATES} random candidates", name,
              each, "images/s", plain=reference / mean(times))  # fmt: skip
