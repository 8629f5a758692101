"""MobileNets: v1 here, v2 torchvision's.

Axis letters: B batch, H height, W width, K classes.
"""

import torch
from torch import Tensor, nn

# Output channels and stride of each depth-wise separable convolution.
_BLOCKS = (
    (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5,
    (1024, 2), (1024, 1),
)  # fmt: skip
# Expansion, channels, repeats, stride: MobileNetV2, table 2, one halving fewer.
_SMALL_V2 = (
    (1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1),
    (6, 160, 3, 2), (6, 320, 1, 1),
)  # fmt: skip


class SeparableConv(nn.Sequential):
    """A 3x3 depth-wise and a 1x1 point-wise convolution, both normalised."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__(
            nn.Conv2d(
                in_channels, in_channels, 3, stride, 1, groups=in_channels, bias=False
            ),
            nn.BatchNorm2d(in_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(in_channels, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        )


class MobileNet(nn.Module):
    """MobileNet-v1, width 1.0 (https://arxiv.org/abs/1704.04861, table 1).

    Args:
        num_classes: K.
        small: for images of about 32 x 32: the stem does not halve them.
    """

    def __init__(self, num_classes: int, small: bool) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 32, 3, 1 if small else 2, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(inplace=True),
        )
        channels = [32, *(channels for channels, _ in _BLOCKS)]
        self.blocks = nn.Sequential(
            *(
                SeparableConv(before, after, stride)
                for before, (after, stride) in zip(channels, _BLOCKS, strict=False)
            )
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(1024, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``x`` [B, 3, H, W] to logits [B, K]."""
        x = self.pool(self.blocks(self.stem(x)))
        return self.classifier(torch.flatten(x, 1))


def build_mobilenet_v2(num_classes: int, small: bool) -> nn.Module:
    """Return MobileNet-v2; for ``small`` images two halvings fewer."""
    from torchvision.models import MobileNetV2

    if not small:
        return MobileNetV2(num_classes)
    network = MobileNetV2(num_classes, inverted_residual_setting=list(map(list, _SMALL_V2)))
    network.features.get_submodule("0.0").stride = (1, 1)
    return network
