"""Networks by name: an architecture, and trained weights where some are to be had."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from torch import nn

from gnnrl_ray.zoo.resnet import ResNet
from gnnrl_ray.zoo.weights import WeightsError, fetch_weights, home, load_weights

__all__ = ["NETWORKS", "WeightsError", "build_network", "home", "load_network"]

NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    f"resnet{depth}": partial(ResNet, depth) for depth in (20, 32, 44, 56, 110)
}


def build_network(name: str, num_classes: int = 10) -> nn.Module:
    """Return the untrained network ``name`` with ``num_classes`` outputs.

    Raises:
        ValueError: unknown name; lists the known ones.
    """
    if name not in NETWORKS:
        raise ValueError(f"unknown network {name!r}; known: {', '.join(NETWORKS)}.")
    return NETWORKS[name](num_classes)


def load_network(
    name: str,
    dataset: str = "cifar10",
    *,
    weights: Path | str | None = None,
    num_classes: int = 10,
) -> nn.Module:
    """Return the trained network ``name``, in evaluation mode.

    Args:
        name: one of ``NETWORKS``.
        dataset: the data set it was trained on; picks the weights.
        weights: a state dict to use in place of the cached or published one.
        num_classes: outputs of the classifier.

    Raises:
        ValueError: unknown name.
        WeightsError: no weights, or unusable ones; says which and why.
    """
    network = build_network(name, num_classes)
    path = Path(weights) if weights else fetch_weights(name, dataset)
    load_weights(network, path)
    return network.eval()
