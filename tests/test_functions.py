"""Functions with a backward of their own: followed where nothing is lost by that."""

import numpy as np
import pytest
import torch
from helpers.networks import shaken
from torch import nn
from torch.autograd import Function

from gnnrl_ray import mask, prune, trace
from gnnrl_ray.tracing.network import TraceError

SHAPE = (3, 8, 8)


class Swish(Function):
    """As networks have it that save memory."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        gate = torch.sigmoid(x)
        return gradient * gate * (1 + x * (1 - gate))


class Scaled(Function):
    """In the newer way to write it, with something that is no tensor."""

    @staticmethod
    def forward(x, by):
        return x * by

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.by = inputs[1]

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.by, None


class Rounded(Function):
    """Its gradient is a straight-through estimate."""

    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def gated(x):
    return x * torch.sigmoid(x)


swish = Swish.apply
scripted, compiled = torch.jit.script(gated), torch.compile(gated, backend="eager")


class Net(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 5, 1)
        self.classifier = nn.Linear(5, 4)
        self.function = function

    def forward(self, x):
        x = self.second(self.function(self.first(x)))
        return self.classifier(x.mean((2, 3)))


class ByName(nn.Module):
    def forward(self, x):
        return swish(x)


class ByClass(nn.Module):
    function = staticmethod(Swish.apply)

    def forward(self, x):
        return self.function(x)


class Estimated(nn.Module):
    def forward(self, x):
        return Rounded.apply(x)


@pytest.mark.parametrize(
    "function",
    [
        Swish.apply, ByName(), ByClass(), lambda x: swish(x),
        lambda x: Scaled.apply(x, 0.5), lambda x: scripted(x), lambda x: compiled(x),
    ],
)  # fmt: skip
def test_they_are_followed_and_learn_as_they_did(function):
    torch.manual_seed(0)
    network = shaken(Net(function)).double()
    before = vars(Function)["apply"], swish, scripted, compiled
    groups = trace(network, SHAPE)
    assert (vars(Function)["apply"], swish, scripted, compiled) == before
    assert groups.names == ("first", "second")
    x = torch.randn(2, *SHAPE, dtype=torch.double)
    smaller = prune(network, groups, np.array([4, 2]))
    assert torch.allclose(smaller(x), mask(network, groups, np.array([4, 2]))(x))
    graph = groups.graph_of(network)
    (ours,), (theirs,) = (
        torch.autograd.grad(net(x).square().sum(), [net.first.weight])
        for net in (graph, network)
    )
    assert torch.allclose(ours, theirs)


def test_one_whose_gradient_would_be_lost_is_not_followed():
    network = shaken(Net(Estimated()))
    with pytest.raises(TraceError, match="gradient of Rounded is not that of its forward"):
        trace(network, SHAPE)
    groups = trace(network, SHAPE, skip_untraceable=True)
    assert groups.names == ("second",)
    smaller = prune(network, groups, np.array([2]))
    assert smaller(torch.randn(2, *SHAPE)).shape == (2, 4)
    (found,) = torch.autograd.grad(
        smaller(torch.randn(2, *SHAPE)).sum(), smaller.first.bias
    )
    assert found.abs().sum() > 0
