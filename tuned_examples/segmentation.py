"""Segmentation: torchvision's LR-ASPP on generated shapes, scored by mean IoU, on a CPU.

    python tuned_examples/segmentation.py --episodes 20 --out runs/shapes

Own loaders, an own score with a name, an own loss, and a network that returns a dictionary.
The dense network is trained first (a minute); a candidate trains for 16 steps before it is
scored.
"""

import argparse
import json

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.segmentation import lraspp_mobilenet_v3_large

from gnnrl_ray import Metric, search

SIDE, CLASSES, BATCH = 64, 3, 16  # background, discs, squares
Batches = list[tuple[Tensor, Tensor]]


def shapes(count: int, seed: int) -> Batches:
    """Return noise with a disc and a square in each image, and which pixels these are."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    images = rng.normal(0, 0.3, (count, 3, SIDE, SIDE)).astype(np.float32)
    masks = np.zeros((count, SIDE, SIDE), np.int64)
    for image, mask in zip(images, masks, strict=True):
        for kind in range(1, CLASSES):
            (y, x), radius = rng.uniform(12, SIDE - 12, 2), rng.uniform(6, 14)
            away = abs(rows - y), abs(columns - x)
            inside = (np.hypot(*away) if kind == 1 else np.maximum(*away)) < radius
            image[:, inside] += rng.uniform(-1, 1, (3, 1)).astype(np.float32)
            mask[inside] = kind
    tensors = torch.from_numpy(images), torch.from_numpy(masks)
    return list(zip(*(tensor.split(BATCH) for tensor in tensors), strict=True))


def loss(output: dict[str, Tensor], masks: Tensor) -> Tensor:
    """Return the cross-entropy of every pixel."""
    return F.cross_entropy(output["out"], masks)


@torch.no_grad()
def mean_iou(network: nn.Module, batches: Batches) -> float:
    """Return the mean over classes of intersection over union, in [0, 1]."""
    both, either = torch.zeros(CLASSES), torch.zeros(CLASSES)
    for images, masks in batches:
        found = network(images)["out"].argmax(1)
        for kind in range(CLASSES):
            both[kind] += ((found == kind) & (masks == kind)).sum()
            either[kind] += ((found == kind) | (masks == kind)).sum()
    return (both / either.clamp(min=1)).mean().item()


def trained(batches: Batches, epochs: int) -> nn.Module:
    """Return LR-ASPP, trained from the beginning."""
    torch.manual_seed(0)
    network = lraspp_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=CLASSES
    )
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1  # torchvision's is for a hundred times as many steps
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3)
    for _ in range(epochs):
        for images, masks in batches:
            optimizer.zero_grad()
            loss(network(images), masks).backward()
            optimizer.step()
    return network.eval()


def main(words: list[str] | None = None) -> None:
    """Train, search and say what became of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=10, help="of the dense network")
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--flops", type=float, default=0.6)
    parser.add_argument("--out", default="runs/shapes")
    given = parser.parse_args(words)
    training, validation = shapes(given.images, 0), shapes(given.images // 4, 1)
    network = trained(training, given.epochs)
    found = search(
        network, (training, validation), score=Metric(mean_iou, name="mean IoU"), loss=loss,
        flops=given.flops, finetune=16, episodes=given.episodes, out=given.out,
    )  # fmt: skip
    dense = mean_iou(network, validation)
    print(json.dumps({"dense": dense, "pruned": mean_iou(found.network, validation),
                      "said": found.best.accuracy}))  # fmt: skip


if __name__ == "__main__":
    main()
