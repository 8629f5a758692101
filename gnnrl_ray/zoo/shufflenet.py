"""ShuffleNets: v1 here, v2 torchvision's.

Axis letters: B batch, C channels, H height, W width, K classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_GROUPS = 3
_STAGES = ((4, 240), (8, 480), (4, 960))  # units and channels
_BOTTLENECK = 4


class ShuffleUnit(nn.Module):
    """Figure 2 b, or c if it widens: group convolution, shuffle, depth-wise, group.

    Args:
        in_channels: of the input.
        channels: of the output; more than ``in_channels`` also halves the image.
        groups: of the first convolution.
    """

    def __init__(self, in_channels: int, channels: int, groups: int) -> None:
        super().__init__()
        self.widens = channels > in_channels
        stride, made = (2, channels - in_channels) if self.widens else (1, channels)
        inner = channels // _BOTTLENECK
        self.compress = nn.Conv2d(in_channels, inner, 1, groups=groups, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.depthwise = nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.expand = nn.Conv2d(inner, made, 1, groups=_GROUPS, bias=False)
        self.bn3 = nn.BatchNorm2d(made)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` [B, C, H, W] to the unit's output, half the size if it widens."""
        out = _shuffle(F.relu(self.bn1(self.compress(x))))
        out = self.bn3(self.expand(self.bn2(self.depthwise(out))))
        if self.widens:
            return F.relu(torch.cat([F.avg_pool2d(x, 3, 2, 1), out], 1))
        return F.relu(x + out)


def _shuffle(x: Tensor) -> Tensor:
    """Deal the channels of each group out to all groups."""
    batch, channels, height, width = x.shape
    x = x.view(batch, _GROUPS, channels // _GROUPS, height, width)
    return x.transpose(1, 2).reshape(batch, channels, height, width)


class ShuffleNet(nn.Module):
    """ShuffleNet-v1 1.0x with 3 groups (https://arxiv.org/abs/1707.01083, table 1).

    Args:
        num_classes: K.
        small: for images of about 32 x 32: the stem does not make them smaller.
    """

    def __init__(self, num_classes: int, small: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 24, 3, 1 if small else 2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(24)
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, 2, 1)
        before, stages = 24, []
        for units, channels in _STAGES:
            # So few channels are not divided (section 3.2).
            first = ShuffleUnit(before, channels, _GROUPS if stages else 1)
            rest = (ShuffleUnit(channels, channels, _GROUPS) for _ in range(units - 1))
            stages.append(nn.Sequential(first, *rest))
            before = channels
        self.stages = nn.Sequential(*stages)
        self.classifier = nn.Linear(before, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
            if isinstance(module, ShuffleUnit) and not module.widens:
                # Else sixteen units add up, and the first steps learn nothing
                # (https://arxiv.org/abs/1706.02677, section 5.1).
                nn.init.zeros_(module.bn3.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``x`` [B, 3, H, W] to logits [B, K]."""
        x = self.stages(self.maxpool(F.relu(self.bn1(self.conv1(x)))))
        return self.classifier(x.mean((2, 3)))


def build_shufflenet_v2(num_classes: int, small: bool) -> nn.Module:
    """Return ShuffleNet-v2 1.0x; for ``small`` images the stem keeps their size."""
    from torchvision.models import shufflenet_v2_x1_0

    network = shufflenet_v2_x1_0(num_classes=num_classes)
    if small:
        network.conv1[0].stride = (1, 1)
        network.maxpool = nn.Identity()
    return network
