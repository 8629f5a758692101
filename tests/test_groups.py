import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import random_widths
from torch import nn

from gnnrl_ray import prune
from gnnrl_ray.groups import trace
from gnnrl_ray.labels import FIXED, ZERO, TraceError, select_channels
from gnnrl_ray.zoo import build_network


def test_resnet20_has_one_group_per_stage_and_one_inside_each_block():
    groups = trace(build_network("resnet20"), (3, 32, 32))
    assert dict(zip(groups.names, groups.widths.tolist(), strict=True)) == {
        "conv1": 16,
        **{f"layer1.{i}.conv1": 16 for i in range(3)},
        **{f"layer2.{i}.conv1": 32 for i in range(3)}, "layer2.0.conv2": 32,
        **{f"layer3.{i}.conv1": 64 for i in range(3)}, "layer3.0.conv2": 64,
    }  # fmt: skip


def test_a_stage_shares_one_index_set(groups):
    by_module = {op.module: op for op in groups.operations if op.module}
    for layer in ("conv1", "layer1.0.conv2"):
        assert np.array_equal(by_module[layer].outputs, np.arange(16))
    assert (by_module["linear"].outputs == FIXED).all()
    assert (by_module["conv1"].inputs == FIXED).all()


def test_padded_shortcuts_are_selections(groups):
    selections = [op for op in groups.operations if op.kind == "select"]
    assert [len(op.taken) for op in selections] == [32, 64]
    expected = [ZERO] * 8 + list(range(16)) + [ZERO] * 8
    assert selections[0].taken.tolist() == expected


def test_groups_pickle_and_hold_no_tensors(groups):
    again = pickle.loads(pickle.dumps(groups))
    assert again.names == groups.names
    assert not any(
        isinstance(value, torch.Tensor)
        for op in groups.operations
        for value in vars(op).values()
    )


def test_tracing_leaves_the_network_alone(network):
    network.train()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    trace(network, (3, 32, 32))
    assert network.training
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


def test_a_pruned_network_traces_to_its_own_widths(network, groups, rng):
    widths = random_widths(groups, rng)
    again = trace(prune(network, groups, widths), (3, 32, 32))
    assert again.names == groups.names
    assert np.array_equal(again.widths, widths)


def test_select_channels_fills_with_zeros():
    x = torch.randn(2, 3, 4, 4)
    out = select_channels(x, torch.tensor([2, ZERO, 0]))
    assert torch.equal(out[:, 0], x[:, 2])
    assert not out[:, 1].any()
    assert torch.equal(out[:, 2], x[:, 0])


class Zoo(nn.Module):
    """What other networks have: concatenation, depth-wise filters, a gate, flattening."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 6, 1)
        self.depthwise = nn.Conv2d(10, 10, 3, padding=1, groups=10)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(10, 10, 1))
        self.classifier = nn.Linear(10 * 4, 5)

    def forward(self, x):
        x = self.depthwise(torch.cat([self.a(x), self.b(x)], 1)).relu()
        x = x * torch.sigmoid(self.gate(x))
        x = F.adaptive_avg_pool2d(x, 2)
        return self.classifier(x.view(x.size(0), -1))


def test_groups_follow_concatenation_and_gates():
    groups = trace(Zoo(), (3, 8, 8))
    assert groups.names == ("a", "b")  # the gate has a part in each
    assert groups.widths.tolist() == [4, 6]


def modules_that_fail():
    class Divides(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 1)

        def forward(self, x):
            return self.conv(x).chunk(2, 1)[0]

    class Branches(Divides):
        def forward(self, x):
            return self.conv(x) if x.sum() > 0 else x

    class Sorts(Divides):
        def forward(self, x):
            return torch.cumsum(self.conv(x), 1)

    class Grouped(Divides):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 9, 1, groups=3)

        def forward(self, x):
            return self.conv(x)

    class Mean(Divides):
        def forward(self, x):
            return self.conv(x).mean((1, 2))

    class Twice(Divides):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return self.conv(self.conv(x))

    class Tied(Twice):
        def __init__(self):
            super().__init__()
            self.other = nn.Conv2d(3, 3, 1)
            self.other.weight = self.conv.weight

        def forward(self, x):
            return self.other(self.conv(x))

    class Batches(Divides):
        def forward(self, x):
            return self.conv(x).reshape(-1, 8)

    yield Mean, "mean over channels"
    yield Twice, "conv in .*conv.*: weights that are used more than once"
    yield Tied, "other in .*other.*: weights that are used more than once"
    yield Batches, "first axis is not the batch"
    yield Divides, r"chunk in the network itself: .*effect on channels.*test_groups\.py"
    yield (
        Branches,
        r"cannot follow the network itself at .*test_groups\.py:\d+ \(return",
    )
    yield Sorts, "cumsum.*effect on channels is unknown"
    yield Grouped, "conv in conv: a convolution in 3 groups"


@pytest.mark.parametrize(("kind", "message"), list(modules_that_fail()))
def test_what_is_not_understood_is_named(kind, message):
    with pytest.raises(TraceError, match=message):
        trace(kind(), (3, 8, 8))


@pytest.mark.parametrize("bad", [0, 17, 1.5])
def test_widths_out_of_range_are_named(groups, bad):
    widths = groups.widths.astype(float)
    widths[1] = bad
    with pytest.raises(ValueError, match=r"'layer1.0.conv1' must be an integer in 1..16"):
        groups.check_widths(widths)


def test_widths_of_the_wrong_length(groups):
    with pytest.raises(ValueError, match="needs 6 entries"):
        groups.check_widths(groups.widths[:-1])
