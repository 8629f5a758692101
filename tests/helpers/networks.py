"""Networks to prune: the zoo's, torchvision's, and three with what real code has."""

import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from gnnrl_ray.zoo import build_network


class Pyramid(nn.Module):
    """An encoder and decoder: squeeze-and-excite, unequal branches, two heads.

    Transposed convolution, interpolation to a computed size, a head used twice.
    """

    def __init__(self):
        super().__init__()
        self.down1 = nn.Sequential(nn.Conv2d(3, 12, 3, 2, 1), nn.BatchNorm2d(12), nn.SiLU())
        self.down2 = nn.Sequential(nn.Conv2d(12, 20, 3, 2, 1), nn.InstanceNorm2d(20))
        self.squeeze, self.excite = nn.Conv2d(20, 5, 1), nn.Conv2d(5, 20, 1)
        self.up = nn.ConvTranspose2d(20, 8, 2, 2)
        self.side = nn.Conv2d(20, 6, 1)
        self.merge = nn.Conv2d(12 + 8 + 6, 16, 3, padding=1)
        self.lift = nn.Conv2d(20, 16, 1)
        self.head = nn.Sequential(nn.Conv2d(16, 9, 1), nn.ReLU(), nn.Conv2d(9, 4, 1))

    def forward(self, x):
        fine = self.down1(x)
        coarse = self.down2(fine)
        gate = F.adaptive_avg_pool2d(coarse, 1)
        coarse = coarse * self.excite(F.relu(self.squeeze(gate))).sigmoid()
        side = F.interpolate(self.side(coarse), size=fine.shape[-2:], mode="nearest")
        merged = F.relu(self.merge(torch.cat([fine, self.up(coarse), side], dim=1)))
        lifted = F.relu(self.lift(coarse))
        return {"fine": self.head(merged), "coarse": self.head(lifted).mean((2, 3))}


class Gated(nn.Module):
    """Chunks, unequal splits, groups with a shuffle, group norm, a module used twice."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.gate = nn.Conv2d(16, 24, 1)
        self.fork = nn.Conv2d(12, 20, 1)
        self.left, self.right = nn.Conv2d(8, 18, 3, padding=1), nn.Conv2d(12, 18, 1)
        self.norm, self.slope = nn.GroupNorm(6, 18), nn.PReLU(18)
        self.grouped = nn.Conv2d(18, 24, 1, groups=3, bias=False)
        self.wide = nn.Conv2d(24, 48, 3, padding=1, groups=24)  # two filters a channel
        self.back = nn.Conv2d(48, 12, 1, groups=3)
        self.twice = nn.Conv2d(12, 12, 3, padding=1)
        self.classifier = nn.Linear(12 * 2 * 2, 7)

    def forward(self, x):
        value, gate = self.gate(F.relu(self.stem(x))).chunk(2, dim=1)
        left, right = torch.split(self.fork(value * torch.sigmoid(gate)), [8, 12], 1)
        x = self.slope(self.norm(self.left(left) + self.right(right)))
        x = self.grouped(x)
        b, c, h, w = x.size()
        x = x.view(b, 3, c // 3, h, w).transpose(1, 2).contiguous().view(b, -1, h, w)
        x = self.back(F.relu(self.wide(x)))
        x = x + self.twice(F.relu(self.twice(x)))
        x = F.adaptive_avg_pool2d(x, 2)
        return self.classifier(x.view(-1, 48))  # 48 spelled out, as in many a tutorial


class Pixels(nn.Module):
    """Channels last, layer norm, layer scale, pixel shuffles, tied weights, buffers."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.rand(1, 3, 1, 1))
        self.register_buffer("blur", torch.rand(10, 1, 3, 3))
        self.scale = nn.Parameter(torch.rand(10, 1, 1))
        self.temperature = nn.Parameter(torch.rand(1))
        self.patch = nn.Conv2d(12, 10, 1)
        self.norm = nn.LayerNorm(10)
        self.expand, self.project = nn.Linear(10, 30), nn.Linear(30, 10)
        self.first, self.second = nn.Conv2d(10, 14, 3, padding=1), nn.Conv2d(10, 14, 1)
        self.third = nn.Conv2d(10, 14, 1)
        self.third.weight = self.second.weight
        self.attention = nn.Conv2d(14, 1, 1)
        self.shuffle = nn.Conv2d(14, 16, 1)
        self.last = nn.Conv2d(4, 9, 3, padding=1)
        self.classifier = nn.Linear(9, 5)

    def forward(self, x):
        x = self.patch(F.pixel_unshuffle(x - self.mean, 2))
        y = self.norm(x.permute(0, 2, 3, 1))
        y = self.project(F.gelu(self.expand(y))).permute(0, 3, 1, 2)
        x = x + self.scale * y
        blurred = F.conv2d(x, self.blur, padding=1, groups=10)
        y = self.first(blurred) + self.second(x) - self.third(F.relu(x)) / self.temperature
        y = F.relu(y) * torch.sigmoid(self.attention(y))  # one channel meets all
        y = F.relu(F.pixel_shuffle(self.shuffle(F.pad(y, (1, 1, 1, 1))), 2))
        return self.classifier(self.last(y).flatten(2).mean(-1))


ZOO = (
    "resnet20", "resnet56", "vgg16", "mobilenet_v1", "mobilenet_v2", "shufflenet_v1",
    "shufflenet_v2",
)  # fmt: skip
TORCHVISION = (
    "resnet18", "resnet50", "wide_resnet50_2", "resnext50_32x4d", "vgg11_bn",
    "squeezenet1_1", "googlenet", "densenet121", "mobilenet_v3_small", "efficientnet_b0",
    "regnet_x_400mf", "convnext_tiny",
)  # fmt: skip
# As for ImageNet, on images that are small enough for tests.
LARGE = tuple(
    f"{name}@224"
    for name in ("mobilenet_v1", "mobilenet_v2", "shufflenet_v1", "shufflenet_v2", "vgg16")
)
OWN = {"pyramid": Pyramid, "gated": Gated, "pixels": Pixels}
# So wide that they take seconds each.
WIDE = (
    "torchvision:vgg11_bn", "torchvision:wide_resnet50_2", "torchvision:resnext50_32x4d",
)  # fmt: skip
# Those that take seconds in each of several tests that are alike.
HEAVY = (
    *WIDE, "vgg16", "torchvision:resnet50", "torchvision:googlenet",
    "torchvision:convnext_tiny", "torchvision:densenet121", "torchvision:regnet_x_400mf",
    "torchvision:efficientnet_b0",
)  # fmt: skip
EVERY = (*ZOO, *(f"torchvision:{name}" for name in TORCHVISION), *OWN)


def build(name):
    """Return the network with weights that hide no mistake, and its input shape."""
    torch.manual_seed(0)
    source, _, plain = name.partition(":")
    if name in OWN:
        network, size = OWN[name](), 16
    elif source == "torchvision":
        # The default initialisation of some takes seconds, and is thrown away.
        with _no_initialisation():
            network, size = torchvision.models.get_model(plain, weights=None), 64
    elif name in LARGE:
        network, size = build_network(name.removesuffix("@224"), 1000, 224), 64
    else:
        network, size = build_network(name), 32
    return shaken(network), (3, size, size)


class _no_initialisation:
    def __enter__(self):
        self._normal = nn.init.trunc_normal_
        nn.init.trunc_normal_ = lambda tensor, *args, **kwargs: tensor

    def __exit__(self, *_):
        nn.init.trunc_normal_ = self._normal


def shaken(network):
    """Give statistics and scales values that differ from channel to channel."""
    for parameter in network.parameters():
        if parameter.numel() == max(parameter.shape, default=1):
            nn.init.uniform_(parameter, 0.5, 1.5)
        elif parameter.dim() > 1:
            nn.init.kaiming_normal_(parameter)
    for name, buffer in network.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
    return network.eval()


def outputs(network, x):
    """All outputs as one vector."""
    with torch.no_grad():
        result = network(x)
    parts = result.values() if isinstance(result, dict) else [result]
    return torch.cat([part.flatten() for part in parts])


def count_macs(network, shape=(3, 32, 32)):
    """Multiply-accumulates of one image, counted by torch while the network runs."""
    x = torch.zeros(1, *shape, dtype=next(network.parameters()).dtype)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(x)
    return counter.get_total_flops() // 2
