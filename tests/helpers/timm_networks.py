"""Convolutional networks of timm, drawn by seed."""

import random

import timm
import torch

from helpers.networks import shaken

# Its files of convolutional networks; attention in some of them stays whole.
FAMILIES = """
    byobnet convmixer convnext cspnet cspnext densenet dla dpn edgenext efficientnet
    fasternet fastvit focalnet ghostnet hardcorenas hgnet hrnet inception_next
    inception_resnet_v2 inception_v3 inception_v4 lcnetv2 mambaout mobilenetv3 nasnet nfnet
    pnasnet rdnet regnet repghost repvit res2net resnest resnet resnetv2 rexnet selecsls
    senet sknet starnet tresnet vgg vovnet xception xception_aligned
"""


def drawn(seed, count=60):
    """Return the names of ``count`` of them."""
    known, names = FAMILIES.split(), timm.list_models()
    family = (timm.models.model_entrypoint(n).__module__.rpartition(".")[2] for n in names)
    fitting = [name for name, its in zip(names, family, strict=True) if its in known]
    return sorted(random.Random(seed).sample(fitting, count))


def build_of_timm(name, seed=0):
    """Return the network, with statistics and weights of its own, and an input shape."""
    torch.manual_seed(seed)
    network = shaken(timm.create_model(name, num_classes=10))
    about = network.default_cfg
    size = max(96, *about.get("min_input_size", (0,))[-1:])
    size = about["input_size"][-1] if about.get("fixed_input_size") else size
    return network, (3, size, size)
