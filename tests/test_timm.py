"""Networks as others write them: timm's, drawn by seed."""

import random

import numpy as np
import pytest
import torch
from helpers.networks import shaken
from helpers.widths import random_widths

from gnnrl_ray import Costs, prune, trace

timm = pytest.importorskip("timm")

# Its files of convolutional networks; attention in some of them stays whole.
FAMILIES = """
    byobnet convmixer convnext cspnet cspnext densenet dla dpn edgenext efficientnet
    fasternet fastvit focalnet ghostnet hardcorenas hgnet hrnet inception_next
    inception_resnet_v2 inception_v3 inception_v4 lcnetv2 mambaout mobilenetv3 nasnet nfnet
    pnasnet rdnet regnet repghost repvit res2net resnest resnet resnetv2 rexnet selecsls
    senet sknet starnet tresnet vgg vovnet xception xception_aligned
"""
FEW = (
    "resnet10t", "tf_mobilenetv3_small_minimal_100", "ghostnet_050", "repghostnet_050",
    "lcnet_035", "starnet_s050",
)  # fmt: skip


def convolutional():
    known = FAMILIES.split()
    family = (timm.models.model_entrypoint(n).__module__ for n in timm.list_models())
    names = zip(timm.list_models(), family, strict=True)
    return [name for name, module in names if module.rpartition(".")[2] in known]


def drawn(seed, count=60):
    return sorted(random.Random(seed).sample(convolutional(), count))


def check(name, seed=0):
    """Return the share of its multiply-accumulates that a tenth of all channels leaves."""
    torch.manual_seed(seed)
    network = shaken(timm.create_model(name, num_classes=10))
    about = network.default_cfg
    size = max(96, *about.get("min_input_size", (0,))[-1:])
    size = about["input_size"][-1] if about.get("fixed_input_size") else size
    groups = trace(network, (3, size, size))  # and what that checks
    costs, rng = Costs(groups), np.random.default_rng(seed)
    if not len(groups.widths):
        return 1.0
    widths = random_widths(groups, rng)
    removed = prune(network, groups, widths)
    assert sum(p.numel() for p in removed.parameters()) == costs.params(widths)
    tenth = np.maximum(-(-groups.widths // (10 * groups.multiple_of)), 1)
    return costs.macs(tenth * groups.multiple_of) / costs.dense


@pytest.mark.parametrize("name", FEW)
def test_a_few(name):
    assert check(name) < 0.2


def test_attention_stays_whole():
    assert 0.2 < check("edgenext_xx_small") < 0.4


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_sixty(seed):
    """Prints what became of each; at least 95 % are traced, and pruned exactly."""
    failed, left = {}, {}
    for name in drawn(seed):
        try:
            left[name] = check(name, seed)
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {error}"
    print(failed, {name: share for name, share in left.items() if share >= 0.2})
    assert len(failed) <= 3
    assert sum(share < 0.2 for share in left.values()) >= 0.8 * 60
