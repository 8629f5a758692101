"""VGG-16 (https://arxiv.org/abs/1409.1556), torchvision's."""

from torch import nn


def build_vgg16(num_classes: int, small: bool) -> nn.Module:
    """Return VGG-16; for ``small`` images with normalisation and one linear classifier."""
    from torchvision.models import vgg16, vgg16_bn

    if not small:
        return vgg16(num_classes=num_classes)
    network = vgg16_bn(num_classes=num_classes)
    network.avgpool = nn.AdaptiveAvgPool2d(1)
    network.classifier = nn.Linear(512, num_classes)
    return network
