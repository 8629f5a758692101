"""CIFAR ResNets of depth 6n + 2 with parameter-free shortcuts.

Deep Residual Learning for Image Recognition, section 4.2
(https://arxiv.org/abs/1512.03385). Attribute names follow the published CIFAR-10 weights,
so that their state dicts load as they are.

Axis letters: B batch, C channels, H height, W width, K classes.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Shortcut(nn.Module):
    """Option A of section 3.3: every second pixel, missing channels filled with zeros."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.padding = (out_channels - in_channels) // 2

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` [B, C, H, W] to [B, C + 2 * padding, H / 2, W / 2]."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.padding, self.padding))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut around them."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        stride = 1 if in_channels == channels else 2
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Identity() if stride == 1 else Shortcut(in_channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` [B, C, H, W] to the block's output, half the size if it widens."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class ResNet(nn.Module):
    """A CIFAR ResNet: three stages of 16, 32 and 64 channels.

    Args:
        depth: 6n + 2, counting convolutions and the classifier.
        num_classes: K.
    """

    def __init__(self, depth: int, num_classes: int = 10) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        if rest or blocks < 1:
            raise ValueError(f"`depth` must be 6n + 2 (8, 14, 20, ...), got {depth}.")
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, blocks)
        self.layer2 = self._stage(16, 32, blocks)
        self.layer3 = self._stage(32, 64, blocks)
        self.linear = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    @staticmethod
    def _stage(in_channels: int, channels: int, blocks: int) -> nn.Sequential:
        first = BasicBlock(in_channels, channels)
        return nn.Sequential(
            first, *(BasicBlock(channels, channels) for _ in range(blocks - 1))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``x`` [B, 3, 32, 32] to logits [B, K]."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = F.adaptive_avg_pool2d(x, 1)
        return self.linear(torch.flatten(x, 1))


def _network(depth: int) -> Callable[[int, bool], ResNet]:
    return lambda num_classes, small: ResNet(depth, num_classes)


resnet20, resnet32, resnet44, resnet56, resnet110 = map(_network, (20, 32, 44, 56, 110))
