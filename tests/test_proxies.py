"""Code that changes tensors in place, and asks them what only a value can answer."""

import pytest
import torch
import torch.nn.functional as F
from helpers.networks import outputs, shaken
from test_properties import check_costs, check_removed_equals_masked
from torch import nn
from torch.autograd import Variable

from gnnrl_ray import prune, trace
from gnnrl_ray.tracing.network import TraceError
from gnnrl_ray.tracing.symbolic import symbolic

SHAPE = (3, 8, 8)


class Body(nn.Module):
    """Two convolutions ``a`` and ``b`` of equal widths, and what a test does to them."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 12, 3, padding=1)
        self.b = nn.Conv2d(12, 12, 3, padding=1)
        self.h = nn.Linear(12, 4)

    def forward(self, x):
        return self.h(self.body(self.a(x)).mean((2, 3)))


class AddsUnread(Body):
    def body(self, x):
        y = self.b(x)
        y.add_(x)
        return y


class RelusUnread(Body):
    def body(self, x):
        y = self.b(x)
        F.relu(y, inplace=True)
        return y


class AddsToAnAlias(Body):
    def body(self, x):
        y = self.b(x)
        z = y
        z += x
        return y * z


class AddsToADetachedAlias(Body):
    def body(self, x):
        y = self.b(x)
        y.detach().mul_(0.5)
        return y


class RelusBeforeTheShortcut(Body):
    """What is added is the activation, too: the module has overwritten it."""

    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU(inplace=True)

    def body(self, x):
        return self.b(self.relu(x)) + x


class AddsToAHalf(Body):
    """The halves are other memory, so that neither is in the other's way."""

    def body(self, x):
        first, second = self.b(x).chunk(2, 1)
        first.add_(second)
        return torch.cat([first, second], 1)


class WritesAPart(Body):
    def body(self, x):
        y = self.b(x)
        y[:, :, 0] = 0.0
        return y


class ReadsABase(Body):
    def body(self, x):
        y = self.b(x)
        F.relu_(y[:, ::2])
        return y


class ReadsAView(Body):
    def body(self, x):
        y = self.b(x)
        flat = y.flatten(2)
        y.add_(1)
        return flat.unsqueeze(3)


@pytest.mark.parametrize(
    "kind",
    [AddsUnread, RelusUnread, AddsToAnAlias, AddsToADetachedAlias, RelusBeforeTheShortcut,
     AddsToAHalf, WritesAPart],
)  # fmt: skip
def test_what_is_done_in_place_is_in_the_graph(kind):
    torch.manual_seed(0)
    network, x = shaken(kind()).double(), torch.randn(2, *SHAPE, dtype=torch.double)
    assert torch.equal(outputs(symbolic(network, SHAPE), x), outputs(network, x))
    groups = trace(network, SHAPE)
    widths = groups.widths // 2
    removed = check_removed_equals_masked(network, SHAPE, groups, widths, x)
    assert type(removed) is kind
    check_costs(removed, SHAPE, groups, widths)


@pytest.mark.parametrize(
    ("kind", "message"),
    [(ReadsABase, "relu_ has changed it in place through another view"),
     (ReadsAView, "add_ has changed it in place through another view")],
)  # fmt: skip
def test_what_cannot_be_told_apart_is_refused(kind, message):
    with pytest.raises(TraceError, match=message):
        trace(kind(), SHAPE)


class Asks(Body):
    """Every question that ordinary code asks of shapes."""

    def body(self, x):
        assert isinstance(x, torch.Tensor)
        assert x.shape[1] == 12
        b, c, *size = x.shape
        if size[-1] > 4 and x.dim() == 4 and len(x.shape) == 4:
            x = self.b(x)
        for part in list(x.chunk(2, 1)):
            x = x + part.mean()
        for _ in range(int(x.size(2)) // 4):
            x = F.relu(x)
        assert float(x.shape[3]) == 8.0
        torch._assert(x.shape[1] == c, "as it was")
        return x.view(b, c, *size)


def test_shapes_are_known():
    torch.manual_seed(0)
    network, x = shaken(Asks()).double(), torch.randn(5, *SHAPE, dtype=torch.double)
    assert torch.equal(outputs(symbolic(network, SHAPE), x), outputs(network, x))


OLD = {
    "variable": lambda m, x: Variable(m.b(x), requires_grad=False),
    "as_tensor": lambda m, x: torch.as_tensor(m.b(x)),
    "tensor": lambda m, x: torch.tensor(x.size(2)) * x,
    "new": lambda m, x: x * x.new(1).fill_(2),
}


class Old(Body):
    def __init__(self, written):
        super().__init__()
        self.written = written

    def body(self, x):
        return self.written(self, x)


@pytest.mark.filterwarnings("ignore:To copy construct")
@pytest.mark.parametrize("way", OLD)
def test_old_ways_to_make_tensors_are_followed(way):
    """C takes what is said to be a tensor for the memory of one."""
    torch.manual_seed(0)
    network, x = shaken(Old(OLD[way])).double(), torch.randn(3, *SHAPE, dtype=torch.double)
    builtin = len, isinstance, vars(type(Variable)).get("__call__")
    groups = trace(network, SHAPE)
    assert (len, isinstance, vars(type(Variable)).get("__call__")) == builtin
    check_removed_equals_masked(network, SHAPE, groups, groups.widths // 2, x)


@pytest.mark.parametrize(
    "unknown",
    [
        lambda m, x: torch.zeros(1).new_tensor(m.b.weight).sum() * x,
        lambda m, x: torch.from_numpy(x.detach().numpy()),
        lambda m, x: torch.vmap(torch.relu)(x),
        lambda m, x: torch.Tensor(x),
    ],
)
def test_what_torch_cannot_be_asked_is_an_error(unknown):
    with pytest.raises(TraceError):
        trace(Old(unknown), SHAPE)


class Looks(Body):
    def body(self, x):
        return x if float(x.mean()) > 0 else self.b(x)


class LooksAtAnItem(Body):
    def body(self, x):
        return x * 2 if x.amax().item() > 0 else self.b(x)


class Iterates(Body):
    """For as many images as there are: the graph would be of so many alone."""

    def body(self, x):
        return torch.stack([self.b(image[None])[0] for image in x])


@pytest.mark.parametrize("kind", [Looks, LooksAtAnItem])
def test_what_depends_on_the_image_is_refused(kind):
    with pytest.raises(TraceError, match="depends on what is in the image"):
        trace(kind(), SHAPE)


def test_a_graph_of_one_number_of_images_is_refused():
    with pytest.raises(TraceError, match="the traced graph"):
        trace(Iterates(), SHAPE, skip_untraceable=True)


def test_a_network_is_left_as_it_was():
    class Constant(Body):
        def body(self, x):
            return x * torch.full((1,), 2.0)

    network = Constant().train()
    before, seed = set(vars(network)), torch.random.get_rng_state()
    removed = prune(network, trace(network, SHAPE), [5])
    assert set(vars(network)) == before
    assert network.training
    assert torch.equal(torch.random.get_rng_state(), seed)
    assert removed.a.out_channels == 5
