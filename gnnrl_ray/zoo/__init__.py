"""Networks by name: an architecture, and trained weights where some are to be had.

Imported when they are built: torch takes a second to import, and torchvision longer.
"""

import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gnnrl_ray.errors import InputError

if TYPE_CHECKING:
    from torch import nn

_SMALL = 64  # pixels; below it, networks made for ImageNet keep their first images large

# Each takes the number of classes, and whether images are small.
NETWORKS = {
    **{f"resnet{depth}": f"resnet:resnet{depth}" for depth in (20, 32, 44, 56, 110)},
    "vgg16": "vgg:build_vgg16",
    "mobilenet_v1": "mobilenet:MobileNet",
    "mobilenet_v2": "mobilenet:build_mobilenet_v2",
    "shufflenet_v1": "shufflenet:ShuffleNet",
    "shufflenet_v2": "shufflenet:build_shufflenet_v2",
}


def is_ours(name: str) -> bool:
    """Say whether ``name`` runs no code but that of this package, torchvision and timm."""
    return name in NETWORKS or name.startswith(("torchvision:", "timm:"))


def check_network(name: str) -> None:
    """Raise an ``InputError`` if there can be no network ``name``; lists the known ones."""
    if ":" not in name and name not in NETWORKS:
        raise InputError(
            f"unknown network {name!r}; known: {', '.join(NETWORKS)}; or torchvision:NAME, "
            "timm:NAME, or package.module:callable."
        )


def build_network(name: str, num_classes: int = 10, image_size: int = 32) -> "nn.Module":
    """Return the untrained network ``name`` with ``num_classes`` outputs.

    Args:
        name: one of ``NETWORKS``; ``torchvision:NAME``; ``timm:NAME``; or
            ``package.module:callable``, which is called with ``num_classes`` if it takes
            that, and without arguments if not.
        num_classes: outputs of the classifier.
        image_size: side of the images; up to 64 pixels, ``NETWORKS`` that were made for
            ImageNet halve them less often.

    Raises:
        InputError: unknown name; lists the known ones.
    """
    if name in NETWORKS:
        module, _, builder = NETWORKS[name].partition(":")
        build = getattr(importlib.import_module(f"gnnrl_ray.zoo.{module}"), builder)
        return build(num_classes, image_size <= _SMALL)
    check_network(name)
    source, _, attribute = name.partition(":")
    if source == "torchvision":
        from torchvision import models

        try:
            build = models.get_model_builder(attribute)
        except ValueError as error:
            raise InputError(
                f"torchvision has no network {attribute!r}; it lists its own with "
                "torchvision.models.list_models()."
            ) from error
        # Or what segments would fetch the weights of what it stands on.
        takes = inspect.signature(build).parameters
        untrained = {
            name: None for name in ("weights", "weights_backbone") if name in takes
        }
        try:
            return build(**untrained, num_classes=num_classes)
        except TypeError as error:
            raise InputError(
                f"{name} cannot be built with num_classes={num_classes}: {error}."
            ) from error
    if source == "timm":
        return _build_of_timm(attribute, num_classes)
    build = import_callable(source, attribute)
    try:
        takes = inspect.signature(build).parameters
    except ValueError:  # of some that are written in C
        takes = {}
    kinds = {parameter.kind for parameter in takes.values()}
    classes = "num_classes" in takes or inspect.Parameter.VAR_KEYWORD in kinds
    try:
        network = build(**({"num_classes": num_classes} if classes else {}))
    except Exception as error:
        raise InputError(
            f"{name} cannot be called {'with' if classes else 'without'} num_classes: "
            f"{type(error).__name__}: {error}."
        ) from error
    from torch import nn

    if not isinstance(network, nn.Module):
        raise InputError(f"{name} returned a {type(network).__name__}, not an nn.Module.")
    return network


def _build_of_timm(name: str, num_classes: int) -> "nn.Module":
    try:
        import timm
    except ImportError as error:
        raise InputError(
            f"timm:{name} needs timm: pip install 'gnnrl-ray[timm]'."
        ) from error
    # Of its own alone: other names are addresses that it would fetch from.
    if name not in timm.list_models():
        raise InputError(
            f"timm has no network {name!r}; it lists its own with timm.list_models()."
        )
    return timm.create_model(name, num_classes=num_classes)


def import_callable(module: str, attribute: str) -> Callable[..., Any]:
    """Return ``attribute`` of ``module``, which may be in the current folder."""
    sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except Exception as error:  # whatever that module does
        raise InputError(
            f"cannot import {module!r}: {type(error).__name__}: {error}."
        ) from error
    finally:
        sys.path.pop(0)
    if not callable(found):
        raise InputError(f"{module} has no callable {attribute!r}.")
    return found


def load_network(
    name: str,
    dataset: str = "digits",
    *,
    weights: Path | str | None = None,
    num_classes: int = 10,
    image_size: int = 32,
) -> "nn.Module":
    """Return the trained network ``name``, in evaluation mode.

    Args:
        name: see :func:`build_network`.
        dataset: the data set it was trained on; picks the weights.
        weights: a state dict, file or URI, to use in place of the cached or published one.
        num_classes: outputs of the classifier.
        image_size: side of the images.

    Raises:
        InputError: unknown name.
        WeightsError: no weights, or unusable ones; says which and why.
    """
    from gnnrl_ray.zoo.weights import fetch_weights, load_weights

    network = build_network(name, num_classes, image_size)
    path = weights or fetch_weights(name, dataset)
    load_weights(network, path)
    return network.eval()
