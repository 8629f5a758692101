"""Code that is written in many ways, and code that only looks harmless."""

import pickle
import re

import pytest
import torch
import torch.nn.functional as F
from helpers.networks import count_macs, shaken
from helpers.widths import random_widths
from test_properties import check_costs, check_removed_equals_masked
from torch import nn
from torch.utils.checkpoint import checkpoint
from torchvision import ops

from gnnrl_ray import Costs, prune, trace
from gnnrl_ray.tracing.network import TraceError

SHAPE = (3, 8, 8)


class Body(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 12, 3, padding=1)
        self.second = nn.Conv2d(12, 10, 1)
        self.classifier = nn.Linear(10, 4)

    def body(self, x):
        return x

    def forward(self, x):
        x = self.second(self.body(F.relu(self.first(x))))
        return self.classifier(x.mean((2, 3)))


class Excite(Body):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(12, 3), nn.Linear(3, 12)

    def body(self, x):
        b, c, _, _ = x.size()
        y = F.adaptive_avg_pool2d(x, 1).view(b, c)
        y = torch.sigmoid(self.fc2(F.relu(self.fc1(y)))).view(b, c, 1, 1)
        return x * y.expand_as(x)


class Unsqueezed(Body):
    def body(self, x):
        return x * x.amax((2, 3))[:, :, None, None].sigmoid()


class Attending(Body):
    """Heads stay whole; the number of channels is read from a stream that does not."""

    def __init__(self):
        super().__init__()
        self.qkv, self.project = nn.Linear(12, 36), nn.Linear(12, 12)

    def body(self, x):
        b, c, h, w = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        q, k, v = (
            self.qkv(tokens).reshape(b, h * w, 3, 2, 6).permute(2, 0, 3, 1, 4).unbind(0)
        )
        tokens = ((q @ k.transpose(-2, -1)).softmax(-1) @ v).transpose(1, 2)
        tokens = self.project(tokens.reshape(b, h * w, c))
        return x + tokens.transpose(-2, -1).reshape(b, c, h, w)


class SizesOfAnother(Body):
    """As many channels as another tensor has, which keeps others."""

    def __init__(self):
        super().__init__()
        self.other = nn.Conv2d(3, 12, 1)
        self.last = nn.Linear(12, 12)

    def forward(self, x):
        one, two = F.relu(self.first(x)), F.relu(self.other(x))
        pooled = two.mean((2, 3)).view(x.shape[0], one.shape[1])
        half = two.sum((2, 3)).reshape(-1, 2, one.size(1) // 2).softmax(-1)
        head = self.last(pooled + half.flatten(1))
        return self.classifier(self.second(one).mean((2, 3))) + head.sum(1, keepdim=True)


class Tokens(Body):
    def __init__(self):
        super().__init__()
        self.project = nn.Linear(12, 12)

    def body(self, x):
        b, c, h, w = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        return self.project(tokens).transpose(1, 2).reshape(b, c, h, w)


class OneChannelGroups(Body):
    def body(self, x):  # a shuffle of as many groups as channels
        b, c, h, w = x.shape
        return x.view(b, 12, c // 12, h, w).transpose(1, 2).reshape(b, c, h, w)


class Moves(Body):
    def body(self, x):
        x = torch.roll(x, 5, 1).flip(1)
        return torch.cat([x[:, 4:], x[:, :4]], 1)[:, :, ::2, 1:]


class Halves(Body):
    def body(self, x):
        left, right = x.tensor_split(2, dim=1)
        return torch.maximum(left, right).repeat(1, 2, 1, 1)


@pytest.mark.parametrize(
    "kind",
    [Excite, Unsqueezed, Tokens, OneChannelGroups, Moves, Halves, Attending,
     SizesOfAnother],
)  # fmt: skip
def test_ways_to_write_it(kind):
    torch.manual_seed(0)
    network = shaken(kind()).double()
    groups = trace(network, SHAPE)
    assert {"first", "second"} <= set(groups.names)
    widths = groups.widths // 2
    x = torch.randn(2, *SHAPE, dtype=torch.double)
    removed = check_removed_equals_masked(network, SHAPE, groups, widths, x)
    check_costs(removed, SHAPE, groups, widths)
    # Batches and images of other sizes are taken as before.
    x = torch.randn(3, 3, 12, 12, dtype=torch.double)
    assert removed(x).shape == (3, 4)


def tokens(m, x):
    return m.project(x.flatten(2).transpose(1, 2)).transpose(1, 2)


def longer(m, x, after, *before):
    return (m.wider(x) + torch.cat([*before, x, after], 1))[:, 6:18]


def stacked(*tensors):
    return torch.cat([each.unsqueeze_(1) for each in tensors], 1)


def replaced(x, where):
    x[where] = 0.5
    return x


def put(x, part):
    x[:, 3:8, 2] = part[:, :, 1]
    return x


def put_everywhere(x, more):
    x[:] = more
    x += 1  # and ``more`` is what it was
    return x + more


def added(x, more):
    x[:, :, 2:] += more[:, :, 2:]
    x[:, 4:] += more[:, :8]
    return x


def gate(m, x):
    return m.wide(x.mean((2, 3), keepdim=True)).sigmoid()


COUNTED = {
    "in arithmetic": lambda m, x: x / x.shape[1] ** 0.5 + m.same(x) * (1 / x.size(1)),
    "of another, in arithmetic": lambda m, x: m.same(x) * x.size(1) / x[0].numel(),
    "shape of another": lambda m, x: tokens(m, x).reshape(x.shape),
    "size of another": lambda m, x: tokens(m, x).view(x.size()),
    "by its name": lambda m, x: torch.reshape(input=tokens(m, x), shape=x.shape),
    "part of a shape": lambda m, x: tokens(m, x).reshape(x.shape[:2] + x.shape[2:]),
    "parts of it": lambda m, x: tokens(m, x).reshape([*x.shape[:2], 8, 8]),
    "times another size": lambda m, x: (
        tokens(m, x).reshape(x.size(0), x.size(1) * 8, -1).reshape(x.shape)
    ),
    "calculated back": lambda m, x: tokens(m, x).reshape(
        x.size(0), x.numel() // (x.size(0) * 64), 8, 8
    ),
    "of one image": lambda m, x: tokens(m, x).reshape(-1, x[0].numel() // 64, 8, 8),
    "a part as wide as another": lambda m, x: m.wider(x).narrow(1, 2, x.size(1)),
    "a slice as wide as another": lambda m, x: m.wider(x)[:, : x.shape[1]],
    "padded to another": lambda m, x: F.pad(
        x, (0, 0, 0, 0, 0, m.wider(x).size(1) - x.size(1))
    )[:, 5:17],
    "repeated": lambda m, x: x.repeat(1, m.wider(x).size(1) // x.size(1), 1, 1)[:, :12],
    "pixels": lambda m, x: F.adaptive_avg_pool2d(m.same(x), x.size(1)),
    "more pixels": lambda m, x: F.interpolate(m.same(x), size=(x.size(1), 8)),
    "expanded to a shape": lambda m, x: x * gate(m, x).expand(x.shape),
    "expanded to sizes": lambda m, x: x + gate(m, x).expand(*x.shape),
    "weights expanded": lambda m, x: x * m.scales.expand_as(x) + m.shift.expand_as(x),
    "weights in its format": lambda m, x: x * m.scales.to(x) + m.shift.type_as(x),
    "a pixel for all": lambda m, x: x[:, :1].expand_as(x) + x[:, :1].expand_as(x),
    "tiled": lambda m, x: x * gate(m, x).tile(1, 1, 8, 8)[..., None].squeeze(-1),
    "more axes": lambda m, x: x * m.project(x.mean((2, 3)))[..., None, None],
    "axes in place": lambda m, x: stacked(m.same(x), m.wide(x)).sum(1),
    "layers made": lambda m, x: nn.Softmax(dim=2)(nn.ReLU()(nn.MaxPool2d(3, 1, 1)(x))),
    "conditions": lambda m, x: x * ((x > 0) & ~(m.same(x) > 1)),
    "turned": lambda m, x: torch.fliplr(x.swapdims(2, 3).moveaxis(1, -1)).moveaxis(-1, 1),
    "expanded and joined": lambda m, x: torch.cat(
        [x, gate(m, x).expand(-1, x.size(1), 8, 8)], 1
    )[:, 6:18],
    "as many as images": lambda m, x: x.view(len(x), 12, -1).view(len(x), *x.shape[1:]),
    "zeros for each image": lambda m, x: longer(m, x, torch.zeros(len(x), 12, 8, 8).to(x)),
    "named arguments": lambda m, x: torch.stack(
        tensors=torch.cat(tensors=[x, m.same(x)], dim=1).cpu().chunk(chunks=2, dim=1), dim=2
    ).sum(2),
    "zeros behind": lambda m, x: longer(m, x, x.new_zeros(x.size(0), 12, *x.shape[2:])),
    "zeros of its size": lambda m, x: longer(
        m, x, torch.zeros(x.size(0), 12, x.size(2), x.size(3)).to(x)
    ),
    "zeros around": lambda m, x: longer(
        m, x, *[x.new_zeros(x.size(0), 6, x.size(2), x.size(3))] * 2
    ),
    "ones behind": lambda m, x: longer(m, x, x.new_ones(x.size(0), 12, 8, 8)),
    "places behind": lambda m, x: longer(
        m, x, torch.arange(x.size(3)).to(x).expand(x.size(0), 12, 8, 8)
    ),
    "a number made": lambda m, x: x * torch.full((x.size(0), 1, x.size(2), 1), 0.5).to(x),
    "set where negative": lambda m, x: replaced(m.same(x), m.same(x) < 0),
    "set some pixels": lambda m, x: replaced(m.same(x), (..., 0, slice(2, None))),
    "set every other pixel": lambda m, x: replaced(m.same(x), (..., slice(None, None, 2))),
    "put": lambda m, x: put(m.same(x), m.wide(x)[:, :5]),
    "put everywhere": lambda m, x: put_everywhere(m.same(x), m.wide(x)),
    "added to a part": lambda m, x: added(m.same(x), m.wide(x)),
    "set some channels": lambda m, x: replaced(m.same(x), (slice(None), slice(4))),
    "as many axes": lambda m, x: (
        x
        * m.project(x.mean((2, 3)))
        .view([*x.shape[:2]] + [1] * (x.ndim - 2))
        .expand(*[-1] * x.dim())
    ),
    "numbers in a row": lambda m, x: m.same(x) + torch.arange(x.size(1))[:, None, None],
}


class Counting(Body):
    def __init__(self, body):
        super().__init__()
        self.same, self.wide = nn.Conv2d(12, 12, 3, padding=1), nn.Conv2d(12, 12, 1)
        self.wider, self.project = nn.Conv2d(12, 24, 1), nn.Linear(12, 12)
        self.scales, self.shift = (
            nn.Parameter(torch.rand(12, 1, 1)),
            nn.Parameter(torch.rand(1)),
        )
        self.of = body

    def body(self, x):
        return self.of(self, x)


@pytest.mark.parametrize("written", COUNTED)
def test_numbers_of_channels_are_those_of_the_dense_network(written, rng):
    """Wherever they are read, and whatever is left of what they were read from."""
    torch.manual_seed(0)
    network = shaken(Counting(COUNTED[written])).double()
    groups = trace(network, SHAPE)
    assert len(groups.names)
    x = torch.randn(3, *SHAPE, dtype=torch.double)
    again = pickle.loads(pickle.dumps(groups.graph_of(network)))  # as actors get it
    assert torch.allclose(again(x.clone()), network(x.clone()))
    for _ in range(8):
        widths = random_widths(groups, rng)
        removed = check_removed_equals_masked(network, SHAPE, groups, widths, x)
        assert count_macs(removed, SHAPE) == Costs(groups).macs(widths)


def test_zeros_that_are_joined_are_padding():
    """What a CIFAR ResNet's shortcuts do, in whatever way it is written."""
    ways = [
        COUNTED["zeros behind"],
        COUNTED["zeros of its size"],
        lambda m, x: (m.wider(x) + F.pad(x, (0, 0, 0, 0, 0, 12)))[:, 6:18],
    ]
    names = {trace(Counting(way), SHAPE).names for way in ways}
    assert len(names) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x[:, [2, 1, 0]],
        lambda x: x.flip(1),
        lambda x: torch.cat(x.chunk(3, 1)[::-1], 1),
        lambda x: x[:, :1].expand(-1, 3, -1, -1),
        lambda x: F.pad(x, (0, 0, 0, 0, 0, 1))[:, 1:],
    ],
)
def test_channels_of_the_image_may_be_in_another_order(change, rng):
    class Ordered(Body):
        def forward(self, x):
            return super().forward(change(x))

    torch.manual_seed(0)
    network, x = shaken(Ordered()).double(), torch.randn(2, *SHAPE, dtype=torch.double)
    groups = trace(network, SHAPE)
    assert groups.names == ("first", "second")
    check_removed_equals_masked(network, SHAPE, groups, random_widths(groups, rng), x)


def doubled(module, inputs, output):
    return output * 2


def shifted(module, inputs):
    return (inputs[0] + 1,)


def turned(module, inputs, output):
    return output.flip(1)


def test_the_number_of_images_is_none_of_channels():
    """Whatever it is read from, here from channels and pixels in turns."""

    def body(m, x):
        images = x.permute(0, 2, 3, 1).flatten(1).shape[0]
        return m.same(x).view(images, -1, 8, 8) * x.reshape(images, -1, 8, 8).size(0)

    groups = trace(shaken(Counting(body)).double(), SHAPE)
    assert {"first", "same", "second"} <= set(groups.names)


def test_hooks_that_change_something_leave_it_whole(rng):
    x = torch.randn(2, *SHAPE, dtype=torch.double)
    seen = []
    for hook in (doubled, shifted, turned, lambda m, i, o: seen.append(o)):
        network = shaken(Body()).double()
        if hook is shifted:
            network.second.register_forward_pre_hook(hook)
        else:
            network.first.register_forward_hook(hook)
        groups = trace(network, SHAPE)
        changes = hook in (doubled, shifted, turned)
        assert ("first" in groups.whole) == changes
        assert not changes or "a hook changes what" in groups.whole["first"]
        widths = random_widths(groups, rng)
        check_removed_equals_masked(network, SHAPE, groups, widths, x)
    assert seen


class Keeping(Body):
    """Keeps something when it is run, as whoever looks at features wants it."""

    def __init__(self, keep):
        super().__init__()
        self.keep, self.last, self.features, self.cache = keep, None, [], {"calls": 0}
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("average", torch.rand(12))

    def body(self, x):
        return self.keep(self, x)


def averages(m, x):
    m.average = 0.9 * m.average + 0.1 * x.detach().mean((0, 2, 3))
    return x


KEEPING = {
    "attribute": lambda m, x: setattr(m, "last", x) or x,
    "new attribute": lambda m, x: setattr(m, "newest", x.tanh()) or m.newest,
    "attribute of a layer": lambda m, x: setattr(m.first, "output", x) or x,
    "number": lambda m, x: setattr(m, "last", (m.last or 0) + 1) or x,
    "list": lambda m, x: m.features.append(x) or m.features[-1],
    "dictionary": lambda m, x: m.cache.update(x=x) or m.cache["x"],
    "buffer, anew": lambda m, x: setattr(m, "seen", m.seen + 1) or x,
    "buffer, in place": lambda m, x: m.seen.add_(1) is None or x,
    "average": averages,
    "asks what there is": lambda m, x: x.tensors if hasattr(x, "tensors") else x,
    "has a default": lambda m, x: x * getattr(x, "scale", 2),
}


@pytest.mark.parametrize("kind", KEEPING)
def test_what_code_keeps_is_taken_back(kind, rng):
    network, x = shaken(Keeping(KEEPING[kind])).double(), torch.randn(2, *SHAPE).double()

    def state():
        own = [vars(m) for m in network.modules()] + [network.cache]
        own = [{name: id(value) for name, value in each.items()} for each in own]
        buffers = [(id(b), b.tolist()) for b in network.buffers()]
        return own, list(map(id, network.features)), buffers

    network(x)  # with gradients, which what is kept of it has, too
    before = state()
    groups = trace(network, SHAPE)
    assert {"first", "second"} <= set(groups.names)
    widths = random_widths(groups, rng)
    removed = prune(network, groups, widths)
    assert state() == before
    check_removed_equals_masked(network, SHAPE, groups, widths, x)
    assert type(removed) is Keeping


IDIOMS = {
    "checkpoint": lambda m, x: checkpoint(
        lambda y: m.same(y).relu(), x, use_reentrant=True
    ),
    "new checkpoint": lambda m, x: checkpoint(m.same, x, use_reentrant=False),
    "data": lambda m, x: m.same(x.data) + x.detach(),
    "matrices turned": lambda m, x: m.same(x.mT).mT,
    "vectors turned": lambda m, x: x + m.project(x.mean((2, 3))).T.t()[:, :, None, None],
    "filled later": lambda m, x: torch.empty_like(x).copy_(m.same(x)),
}


@pytest.mark.parametrize("kind", IDIOMS)
def test_what_old_code_does_is_followed(kind, rng):
    network = shaken(Counting(IDIOMS[kind])).double()
    groups = trace(network, SHAPE)
    assert {"first", "second"} <= set(groups.names)
    x, widths = torch.randn(2, *SHAPE, dtype=torch.double), random_widths(groups, rng)
    removed = check_removed_equals_masked(network, SHAPE, groups, widths, x)
    assert count_macs(removed, SHAPE) == Costs(groups).macs(widths)


class Indices(Body):
    def body(self, x):
        return F.max_pool2d(x, 2, return_indices=True)[0]


class Standardised(Body):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(12, 12, 1, 1))

    def body(self, x):
        return F.conv2d(x, self.weight - self.weight.mean())


class LowRank(Body):
    """Its weight is made once for all images, and so are the products that takes."""

    def __init__(self):
        super().__init__()
        self.tall, self.wide = (
            nn.Parameter(torch.rand(shape)) for shape in ((12, 2), (2, 12))
        )

    def body(self, x):
        return F.conv2d(x, (self.tall @ self.wide)[:, :, None, None])


class ByAll(Body):
    def body(self, x):
        return x / (x.abs().mean() + 1)


class Responding(Body):
    """Normalised by how the channels respond beside each other, as ConvNeXt-V2's."""

    def body(self, x):
        response = torch.linalg.vector_norm(x, ord=2, dim=(2, 3), keepdim=True)
        return x * response / (response.mean(1, keepdim=True) + 1e-6)


class Maxout(Body):
    def body(self, x):
        return F.max_pool3d(x, (3, 1, 1), 1, (1, 0, 0))


class Softmax(Body):
    def body(self, x):
        return x.softmax(1)


class Sliced(Body):
    def body(self, x):
        return x[:, 0:12, ::2]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Standardised, "conv2d in .*: weights that are computed"),
        (LowRank, "conv2d in .*: weights that are computed"),
        (ByAll, "mean in .*: a mean or a sum over channels"),
        (Responding, "mean in .*: a mean or a sum over channels"),
        (Maxout, "max_pool3d in .*: channels are pooled as positions are"),
        (Softmax, "softmax in .*: normalised over all channels together"),
        (Sliced, "getitem in .*: channels and pixels are sliced at once"),
    ],
)
def test_what_would_be_wrong_is_left_whole_and_says_why(kind, reason):
    network = shaken(kind()).double()
    groups = trace(network, SHAPE)
    assert re.search(reason, groups.whole["first"])
    assert "first" not in groups.names
    assert not groups.left
    if len(groups.names):
        x, widths = torch.randn(2, *SHAPE, dtype=torch.double), groups.widths // 2
        removed = check_removed_equals_masked(network, SHAPE, groups, widths, x)
        assert count_macs(removed, SHAPE) == Costs(groups).macs(widths)


class Dropping(Body):
    """What torchvision drops in training alone, without a fixed size."""

    def __init__(self):
        super().__init__()
        self.block, self.depth = ops.DropBlock2d(0.2, 3), ops.StochasticDepth(0.2, "row")

    def body(self, x):
        return self.depth(self.block(x))


def test_what_is_dropped_in_training_stays_as_it_is():
    groups = trace(shaken(Dropping()), SHAPE)
    assert groups.names == ("first", "second")
    assert not groups.left


@torch.fx.wrap
def shifted_by(x, shifts):
    shifts[0] = 0  # of a list of its own
    return torch.roll(x, shifts, (2, 3))


class Shifting(Body):
    def body(self, x):
        return shifted_by(x, [1, 2])


def test_functions_may_change_the_lists_they_get():
    groups = trace(shaken(Shifting()), SHAPE, skip_untraceable=True)
    assert "shifted_by in" in groups.left[0]
    assert "first" in groups.whole


def test_what_is_not_known_is_refused():
    with pytest.raises(TraceError, match=r"max_pool2d_with_indices in .*unknown"):
        trace(Indices(), SHAPE)


def test_images_one_by_one_are_refused():
    def body(m, x):
        return torch.stack([each * 2 for each in x])

    with pytest.raises(TraceError, match="goes through images one by one"):
        trace(Counting(body), SHAPE)


class Regularised(Body):
    def forward(self, x):
        return super().forward(x) + self.second.weight.abs().sum()


def test_layers_whose_weights_are_read_elsewhere_stay_whole():
    groups = trace(Regularised(), SHAPE)
    assert groups.names == ()
    assert "read outside of layers" in groups.whole["first"]
    assert "read outside of layers" in groups.whole["second"]


class Closed(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = weight

    def forward(self, x):
        return F.conv2d(x, self.weight) if x.sum() != 0 else x


class Sharing(Body):
    def __init__(self):
        super().__init__()
        self.second = nn.Conv2d(12, 12, 1)
        self.closed = Closed(self.second.weight)
        self.classifier = nn.Linear(12, 4)

    def forward(self, x):
        x = self.second(F.relu(self.first(x)))
        return self.classifier(self.closed(x).mean((2, 3)))


def test_weights_of_closed_modules_stay_whole():
    groups = trace(Sharing(), SHAPE, skip_untraceable=True)
    assert groups.closed == ("closed",)
    assert groups.names == ()


class Shaped(Body):
    def forward(self, x):
        return (
            self.second(F.relu(self.first(x))).view(-1, 2, 5, 8, 8).permute(0, 1, 3, 4, 2)
        )


def test_an_output_may_divide_channels():
    groups = trace(Shaped(), SHAPE)
    assert groups.names == ("first",)
    assert groups.whole == {"second": "the network's output"}


class Nothing(Body):
    def forward(self, x):
        return super().forward(x) / 0 * 0


def test_a_network_that_returns_no_numbers_is_traced():
    """As one with random weights may; that it returns none is all that can be checked."""
    network = shaken(Nothing())
    assert not network(torch.randn(1, *SHAPE)).isfinite().any()
    groups = trace(network, SHAPE)
    smaller = prune(network, groups, groups.widths // 2)
    assert smaller.first.out_channels == 6
