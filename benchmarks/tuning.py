"""One epoch of fine-tuning, from a few of its steps."""

from collections.abc import Iterator, Sequence
from itertools import cycle, islice

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from benchmarks.evaluation import Images, masked
from benchmarks.measuring import Row, halved, load, macs_per_second, mean, row, seconds
from gnnrl_ray import load_data
from gnnrl_ray.data import Data
from gnnrl_ray.pruning.removal import prune
from gnnrl_ray.scoring.training import steps_per_epoch, train

REPEATS, STEPS, BATCH = 3, 4, 128


def plain(network: nn.Module, data: Data) -> None:
    """Take a few steps the way the authors' code does."""
    optimizer = torch.optim.SGD(network.parameters(), 0.01, 0.9, weight_decay=5e-4)
    batches = DataLoader(Images(data.train, augment=True), BATCH, shuffle=True)
    network.train()
    for images, labels in islice(cycle(batches), STEPS):
        loss = F.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def rows(networks: Sequence[str], dataset: str) -> Iterator[Row]:
    """Measure the ResNets at half their MACs."""
    data = load_data(dataset)
    steps = steps_per_epoch(data.train, BATCH)
    for name in (n for n in networks if n.startswith("resnet")):
        network = load(name, data)
        groups, costs, half = halved(network, data)
        dense, removed = masked(network), prune(network, groups, half)
        reference, wide, narrow = seconds(
            lambda d=dense: plain(d, data),
            lambda r=removed: train(r, data.train, steps=STEPS),
            lambda r=removed: train(r, data.train, steps=STEPS, precision="bfloat16"),
            n=REPEATS,
        )
        # A backward pass is two forward passes of multiply-accumulates.
        work = 3 * steps * BATCH * int(costs.macs(half))
        for times, precision in ((wide, "float32"), (narrow, "bfloat16")):
            epoch = [s * steps / STEPS for s in times]
            limit = work / macs_per_second(getattr(torch, precision))
            yield row(f"fine-tuning epoch, keep 0.5, {precision}", name, epoch, "s",
                      plain=mean(reference) / mean(times),
                      limit=limit / mean(epoch))  # fmt: skip
