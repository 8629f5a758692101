"""Small random CNNs: recipes of what real code has, in any order."""

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import nn

OPERATIONS = (
    "conv", "grouped", "depthwise", "transposed", "again", "tied", "norm", "group_norm",
    "relu", "prelu", "add", "gate", "scale", "concat", "glu", "split", "shuffle", "pool",
    "resize", "pixels", "pad", "last", "attend", "counted",
)  # fmt: skip
recipes = st.lists(
    st.tuples(st.sampled_from(OPERATIONS), *[st.integers(0, 11)] * 3),
    min_size=2,
    max_size=14,
)


def divisor(number, choice):
    """A divisor of ``number`` greater than one, or one."""
    found = [d for d in range(2, number + 1) if number % d == 0]
    return found[choice % len(found)] if found else 1


class RandomCNN(nn.Module):
    """Follows a recipe; an operation that does not fit where it stands is left out.

    Each step reads one of the last three tensors, so that branches form and rejoin.
    """

    def __init__(self, recipe, classes=4):
        super().__init__()
        self.parts = nn.ModuleDict()
        self.scales = nn.ParameterDict()
        self.steps = []  # (function, indices of tensors)
        self.shapes = [(8, 6)]  # channels and side of each tensor
        self.made = []  # (name, convolution, channels it reads)
        self.parts["stem"] = nn.Conv2d(3, 8, 3, padding=1)
        for step, (operation, which, a, b) in enumerate(recipe):
            source = len(self.shapes) - 1 - which % min(3, len(self.shapes))
            getattr(self, f"_{operation}")(f"{operation}{step}", source, a, b)
        read = {i for _, sources in self.steps for i in sources}
        self.ends = [i for i in range(len(self.shapes)) if i not in read]
        self.heads = nn.ModuleList(
            nn.Linear(self.shapes[i][0] * (4 if i % 2 else 1), classes) for i in self.ends
        )

    def forward(self, x):
        tensors = [self.parts["stem"](x)]
        for function, sources in self.steps:
            result = function(*(tensors[i] for i in sources))
            tensors += result if isinstance(result, tuple) else [result]
        total = 0
        for i, head in zip(self.ends, self.heads, strict=True):
            if i % 2:
                total = total + head(F.adaptive_avg_pool2d(tensors[i], 2).flatten(1))
            else:
                total = total + head(tensors[i].mean((2, 3)))
        return total

    def _step(self, function, sources, *shapes):
        self.steps.append((function, sources))
        self.shapes += shapes

    def _layer(self, name, layer, source, channels, side):
        self.parts[name] = layer
        self._step(lambda x: self.parts[name](x), (source,), (channels, side))
        if isinstance(layer, nn.Conv2d) and layer.groups == 1:
            self.made.append((name, layer, self.shapes[source][0]))

    def _conv(self, name, source, a, b):
        (before, side), channels, kernel = self.shapes[source], 2 + a % 8, (1, 3)[b % 2]
        layer = nn.Conv2d(before, channels, kernel, padding=kernel // 2, bias=b % 3 > 0)
        self._layer(name, layer, source, channels, side)

    def _grouped(self, name, source, a, b):
        before, side = self.shapes[source]
        groups = divisor(before, a)
        channels = groups * (1 + b % 3)
        layer = nn.Conv2d(before, channels, 1, groups=groups)
        self._layer(name, layer, source, channels, side)

    def _depthwise(self, name, source, a, b):
        before, side = self.shapes[source]
        channels = before * (1 + a % 2)
        layer = nn.Conv2d(before, channels, 3, padding=1, groups=before, bias=b % 2 > 0)
        self._layer(name, layer, source, channels, side)

    def _transposed(self, name, source, a, b):
        before, side = self.shapes[source]
        groups = divisor(before, b) if b % 3 == 0 else 1
        if side > 8:
            return
        channels = groups * (1 + a % 3)
        layer = nn.ConvTranspose2d(before, channels, 2, 2, groups=groups)
        self._layer(name, layer, source, channels, 2 * side)

    def _again(self, name, source, a, b):
        fitting = [m for m in self.made if m[2] == self.shapes[source][0]]
        if fitting:
            used, layer, _ = fitting[a % len(fitting)]
            shape = (layer.out_channels, self.shapes[source][1])
            self._step(lambda x: self.parts[used](x), (source,), shape)

    def _tied(self, name, source, a, b):
        fitting = [m for m in self.made if m[2] == self.shapes[source][0]]
        if fitting:
            _, layer, before = fitting[a % len(fitting)]
            other = nn.Conv2d(
                before, layer.out_channels, layer.kernel_size, padding=layer.padding
            )
            other.weight = layer.weight
            side = self.shapes[source][1]
            self._layer(name, other, source, layer.out_channels, side)

    def _norm(self, name, source, a, b):
        channels, side = self.shapes[source]
        kind = nn.InstanceNorm2d if a % 4 == 0 and side > 1 else nn.BatchNorm2d
        self._layer(name, kind(channels, affine=True), source, channels, side)

    def _group_norm(self, name, source, a, b):
        channels, side = self.shapes[source]
        self._layer(
            name, nn.GroupNorm(divisor(channels, a), channels), source, channels, side
        )

    def _relu(self, name, source, a, b):
        self._step(F.relu, (source,), self.shapes[source])

    def _prelu(self, name, source, a, b):
        channels, side = self.shapes[source]
        self._layer(name, nn.PReLU(channels if a % 2 else 1), source, channels, side)

    def _same(self, source, a):
        alike = [i for i, shape in enumerate(self.shapes) if shape == self.shapes[source]]
        return alike[a % len(alike)]

    def _add(self, name, source, a, b):
        self._step(torch.add, (source, self._same(source, a)), self.shapes[source])

    def _gate(self, name, source, a, b):
        channels, _ = self.shapes[source]
        self.parts[name] = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, 1 + a % 4, 1), nn.ReLU(),
            nn.Conv2d(1 + a % 4, channels, 1), nn.Sigmoid(),
        )  # fmt: skip
        self._step(lambda x: x * self.parts[name](x), (source,), self.shapes[source])

    def _attend(self, name, source, a, b):
        self.parts[name] = nn.Conv2d(self.shapes[source][0], 1, 1)
        self._step(
            lambda x: x * torch.sigmoid(self.parts[name](x)), (source,), self.shapes[source]
        )

    def _scale(self, name, source, a, b):
        self.scales[name] = nn.Parameter(torch.rand(self.shapes[source][0], 1, 1) + 0.5)
        self._step(lambda x: x * self.scales[name], (source,), self.shapes[source])

    def _concat(self, name, source, a, b):
        side = self.shapes[source][1]
        alike = [i for i, shape in enumerate(self.shapes) if shape[1] == side]
        other = alike[a % len(alike)]
        channels = self.shapes[source][0] + self.shapes[other][0]
        if channels <= 32:
            self._step(lambda x, y: torch.cat([x, y], 1), (source, other), (channels, side))

    def _glu(self, name, source, a, b):
        channels, side = self.shapes[source]
        if channels % 2:
            return

        def glu(x):
            value, gate = x.chunk(2, dim=1)
            return value * gate.sigmoid()

        self._step(glu, (source,), (channels // 2, side))

    def _split(self, name, source, a, b):
        channels, side = self.shapes[source]
        first = 1 + a % channels
        if first == channels:
            return
        sizes = [first, channels - first]
        shapes = [(size, side) for size in sizes]

        def split(x):
            parts = torch.split(x, sizes, 1)
            return parts[0], parts[1]

        self._step(split, (source,), *shapes)

    def _shuffle(self, name, source, a, b):
        groups = divisor(self.shapes[source][0], a)

        def shuffle(x):
            batch, channels, height, width = x.shape
            x = x.view(batch, groups, channels // groups, height, width).transpose(1, 2)
            return x.reshape(batch, channels, height, width)

        self._step(shuffle, (source,), self.shapes[source])

    def _pool(self, name, source, a, b):
        channels, side = self.shapes[source]
        if side > 1:
            self._step(lambda x: F.max_pool2d(x, 2), (source,), (channels, side // 2))

    def _resize(self, name, source, a, b):
        channels, _ = self.shapes[source]
        self._step(lambda x: F.interpolate(x, size=6), (source,), (channels, 6))

    def _pixels(self, name, source, a, b):
        channels, side = self.shapes[source]
        if channels % 4 == 0 and side < 8:
            shape = (channels // 4, 2 * side)
            self._step(lambda x: F.pixel_shuffle(x, 2), (source,), shape)
        elif side % 2 == 0 and channels <= 8:
            shape = (4 * channels, side // 2)
            self._step(lambda x: F.pixel_unshuffle(x, 2), (source,), shape)

    def _pad(self, name, source, a, b):
        channels, side = self.shapes[source]
        pad = (0, 0, 0, 0, a % 3, b % 3)
        if sum(pad):
            shape = (channels + sum(pad), side)
            self._step(lambda x: F.pad(x, pad), (source,), shape)

    def _last(self, name, source, a, b):
        channels, side = self.shapes[source]
        self.parts[name] = nn.Sequential(
            nn.LayerNorm(channels) if a % 3 == 0 else nn.Identity(),
            nn.Linear(channels, 3 + b), nn.GELU(), nn.Linear(3 + b, channels),
        )  # fmt: skip
        self._step(
            lambda x: x + self.parts[name](x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
            (source,),
            (channels, side),
        )

    def _counted(self, name, source, a, b):
        """With numbers of channels that are those of another tensor."""
        channels, side = self.shapes[source]
        other = a % len(self.shapes)
        count, other_side = self.shapes[other]
        shape = (count, side)
        if b % 4 == 0:
            shape = (channels, side)

            def function(x, y):
                return x / y.size(1) + y[0].numel() / x.shape[1]

        elif b % 4 == 1 and count <= channels:

            def function(x, y):
                return x.narrow(1, channels - count, y.size(1))

        elif b % 4 == 1:

            def function(x, y):
                return F.pad(x, (0, 0, 0, 0, 0, y.size(1) - x.size(1)))

        elif b % 4 == 2:
            self.parts[name] = nn.Linear(channels, count)

            def function(x, y):
                rows = self.parts[name](x.flatten(2).transpose(1, 2)).transpose(1, 2)
                return rows.reshape(y.shape[:2] + x.shape[2:])

        else:
            self.parts[name] = nn.Conv2d(channels, count, 1)
            shape = (count, other_side)

            def function(x, y):
                gate = self.parts[name](x.mean((2, 3), keepdim=True)).sigmoid()
                return y * gate.expand(y.shape)

        self._step(function, (source, other), shape)
