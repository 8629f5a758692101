"""Every operation that is known by name does to channels what is said of it."""

import operator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_properties import check_costs, check_removed_equals_masked
from torch import nn

from gnnrl_ray import trace
from gnnrl_ray.tracing.names import COMBINING, REDUCING, SCALING, UNARY

SHAPE = (3, 6, 6)
# Of UNARY, what asks for more, or for whole numbers; and what is other numbers each time.
MORE = {"threshold", "clamp", "clamp_min", "clamp_max", "clip", "masked_fill", "fill",
        "full_like", "bitwise_not", "invert"}  # fmt: skip
RANDOM = {"empty_like", "rand_like", "randn_like"}


def functions_of(names, arguments, shape):
    """Return what goes by ``names`` and makes numbers of ``shape`` of ``arguments``."""
    found = {}
    for name in names:
        for method in (name, f"{name}_"):
            if hasattr(torch.Tensor, method):
                found[f"Tensor.{method}"] = method_of(method)
        for module in (torch, F, torch.special, torch.linalg, operator):
            if hasattr(module, name):
                found[f"{module.__name__}.{name}"] = getattr(module, name)
    return {name: f for name, f in found.items() if works(f, arguments, shape)}


def method_of(name):
    return lambda tensor, *given: getattr(tensor, name)(*given)


def works(function, arguments, shape):
    try:
        made = function(*(a.clone() if torch.is_tensor(a) else a for a in arguments))
    except (TypeError, RuntimeError, ValueError):
        return False
    return torch.is_tensor(made) and made.shape == shape and not made.is_complex()


class Branches(nn.Module):
    """Each function on channels of its own."""

    def __init__(self, functions, tensors):
        super().__init__()
        self.functions = list(functions)
        self.made = nn.ModuleList(
            nn.ModuleList(nn.Conv2d(3, 3, 3) for _ in range(tensors)) for _ in functions
        )
        self.read = nn.ModuleList(nn.Conv2d(3, 2, 1) for _ in functions)

    def forward(self, x):
        total = 0
        for function, made, read in zip(self.functions, self.made, self.read, strict=True):
            given = [0.1 + 0.8 * torch.sigmoid(conv(x)) for conv in made]
            found = function(*given).to(x.dtype).nan_to_num()
            if found.dim() == 2:
                found = given[0] * found[:, :, None, None]
            total = total + read(found).mean((2, 3))
        return total


def check(functions, tensors):
    torch.manual_seed(0)
    network = Branches(functions, tensors).double().eval()
    groups = trace(network, SHAPE)
    assert len(groups.names) >= len(functions)
    widths = np.random.default_rng(0).integers(1, 3, len(groups.names))
    x = torch.rand(2, *SHAPE, dtype=torch.double)
    removed = check_removed_equals_masked(network, SHAPE, groups, widths, x)
    check_costs(removed, SHAPE, groups, widths)


def test_one_number_of_one_number():
    x = torch.rand(2, 3, 4, 4, dtype=torch.double)
    names = [name for name in UNARY if name not in RANDOM]
    functions = functions_of(names, [x], x.shape)
    assert len(functions) > 200
    missing = set(UNARY) - {name.split(".")[-1].rstrip("_") for name in functions}
    assert missing == MORE | RANDOM
    check(functions.values(), 1)


@pytest.mark.parametrize("names", [COMBINING, SCALING])
def test_one_number_of_two(names):
    x = torch.rand(2, 3, 4, 4, dtype=torch.double)
    functions = functions_of(names, [x, x.flip(0)], x.shape)
    check(functions.values(), 2)


def test_one_number_of_all_positions():
    x = torch.rand(2, 3, 4, 4, dtype=torch.double)
    functions = functions_of(REDUCING, [x, (2, 3)], x.shape[:2])
    check([lambda y, f=f: f(y, (2, 3)) for f in functions.values()], 1)
