"""The order of numbers in memory in which convolutions are fastest: channels last.

Not every network can be run so: ``x.view(len(x), -1)`` asks for the other order.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from gnnrl_ray.data.loader import Images, Loader, each_of, forward
from gnnrl_ray.data.split import Split
from gnnrl_ray.tracing.network import evaluating

_TRIED = 2  # images


def channels_last(network: nn.Module) -> nn.Module:
    """Lay out all weights [C, K, H, W] with channels last, in place; returns ``network``.

    Weights of other dimensions stay as they are.
    """
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.dim() == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
    return network


def laid_out(images: Tensor) -> Tensor:
    """Return images [B, C, H, W] with channels last; signals and volumes as they are."""
    return (
        images.contiguous(memory_format=torch.channels_last)
        if images.dim() == 4
        else images
    )


def runs(network: nn.Module, images: Images) -> bool:
    """Say whether ``network`` can be run on some images with channels last."""
    images = tuple(laid_out(each[:_TRIED]) for each in each_of(images))
    try:
        with evaluating(network), torch.no_grad():
            forward(network, images)
    except RuntimeError:
        return False
    return True


def quick(split: Split | Loader, *networks: nn.Module) -> Split | Loader:
    """Return ``split`` with images in the order in which ``networks`` are fastest.

    What a loader of the user's own yields stays as it is.
    """
    if not isinstance(split, Split):
        return split
    images = torch.zeros(_TRIED, *split.input_shape, device=split.device)
    last = all(runs(network, images) for network in networks)
    return replace(split, channels_last=last)
