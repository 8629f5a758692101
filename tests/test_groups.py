import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.networks import count_macs
from helpers.widths import cut, random_widths
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from gnnrl_ray import Costs, HierarchicalGraph, mask, prune
from gnnrl_ray.agent.mgnn import GraphEncoder
from gnnrl_ray.display.report import describe
from gnnrl_ray.errors import DataError, InputError
from gnnrl_ray.tracing.groups import trace
from gnnrl_ray.tracing.network import TraceError
from gnnrl_ray.tracing.operations import FIXED, ZERO, select_channels
from gnnrl_ray.zoo import build_network


def test_resnet20_has_one_group_per_stage_and_one_inside_each_block():
    groups = trace(build_network("resnet20"), (3, 32, 32))
    assert dict(zip(groups.names, groups.widths.tolist(), strict=True)) == {
        "conv1": 16,
        **{f"layer1.{i}.conv1": 16 for i in range(3)},
        **{f"layer2.{i}.conv1": 32 for i in range(3)}, "layer2.0.conv2": 32,
        **{f"layer3.{i}.conv1": 64 for i in range(3)}, "layer3.0.conv2": 64,
    }  # fmt: skip


GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.json"))


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_the_strategies_of_the_paper_follow_from_the_trace(path):
    """Groups, the layers that make, carry and read them, and what stays whole.

    ``gnnrl-ray inspect --json`` prints them; each file was read before it was kept.
    """
    name = path.stem.replace("torchvision-", "torchvision:")
    facts = describe(HierarchicalGraph(trace(build_network(name), (3, 32, 32))))
    assert {key: facts[key] for key in ("groups", "whole")} == json.loads(path.read_text())


def layers_of(name):
    """The layers that make each group, as sets."""
    facts = json.loads((Path(__file__).parent / f"golden/{name}.json").read_text())
    return facts["groups"], facts["whole"]


def test_residual_streams_share_one_index_set():
    groups, _ = layers_of("resnet20")
    for stage, first in (("layer1", "conv1"), ("layer2", "layer2.0.conv2")):
        ends = {f"{stage}.{i}.conv2" for i in range(3)}
        assert set(groups[first]["made"]) == ends | {first}


def test_mobilenet_v1_point_wise_takes_the_next_depth_wise_along():
    groups, whole = layers_of("mobilenet_v1")
    assert list(whole) == ["classifier"]
    for i in range(12):
        assert groups[f"blocks.{i}.3"]["made"] == [f"blocks.{i}.3"]
        assert groups[f"blocks.{i}.3"]["carry"] == [f"blocks.{i + 1}.0"]


def test_mobilenet_v2_shares_linear_layers_and_prunes_expansions_alone():
    groups, _ = layers_of("mobilenet_v2")
    shared = groups["features.7.conv.2"]["made"]
    assert shared == [f"features.{i}.conv.2" for i in (7, 8, 9, 10)]
    for i in range(2, 18):
        assert groups[f"features.{i}.conv.0.0"]["made"] == [f"features.{i}.conv.0.0"]
        assert groups[f"features.{i}.conv.0.0"]["carry"] == [f"features.{i}.conv.1.0"]


@pytest.mark.parametrize(
    ("name", "inner", "outer", "step"),
    [
        ("shufflenet_v1", r"stages\.\d\.\d\.compress", r".*expand|conv1|classifier", 3),
        (
            "shufflenet_v2",
            r"stage\d\.\d\.branch2\.0|conv1\.0|conv5\.0",
            r".*branch1\.2|.*branch2\.5|fc",
            1,
        ),
    ],
)
def test_shufflenets_are_pruned_inside_blocks_and_keep_their_outputs(
    name, inner, outer, step
):
    groups, whole = layers_of(name)
    assert all(re.fullmatch(inner, group) for group in groups)
    assert all(re.fullmatch(outer, layer) for layer in whole)
    assert {group["multiple_of"] for group in groups.values()} == {step}


def test_convolutions_in_groups_stay_balanced():
    groups, _ = layers_of("torchvision-resnext50_32x4d")
    for name, group in groups.items():
        inside = re.fullmatch(r"layer\d\.\d\.conv[12]", name)
        assert group["multiple_of"] == (32 if inside else 1)


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
    widths = np.maximum(random_widths(groups, rng), 2)
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


def modules_that_mix():
    class Layers(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 1)
            self.second = nn.Conv2d(8, 8, 1)

    class Sums(Layers):
        def forward(self, x):
            return self.second(torch.cumsum(self.conv(x), 1))

    class Mean(Layers):
        def forward(self, x):
            return self.second(self.conv(x)).mean((1, 2))

    class Batches(Layers):
        def forward(self, x):
            return F.linear(self.conv(x).reshape(-1, 8), self.second.weight[:, :, 0, 0])

    class Folds(Layers):
        def forward(self, x):
            return F.relu(self.conv(x).view(-1, 2, 4, 8, 8)).sum()

    class Ones(Layers):
        def forward(self, x):
            return self.second(F.pad(self.conv(x), (0, 0, 0, 0, 0, 8), value=1.0)[:, 8:])

    class Recurrent(Layers):
        def __init__(self):
            super().__init__()
            self.memory = nn.LSTM(8, 8)

        def forward(self, x):
            return self.memory(self.conv(x).mean((2, 3)))[0]

    yield Mean, "mean in the network itself: a mean or a sum over channels"
    yield Batches, "linear in .*: channels are divided or reordered by position"
    yield Folds, "relu in .*: channels are divided or reordered by position"
    yield Ones, "pad in .*: channels padded other than with zeros"
    yield Recurrent, "memory in memory: an operation that mixes channels"
    yield Sums, r"cumsum in the network itself: .*mixes channels at .*test_groups\.py"


@pytest.mark.parametrize(("kind", "reason"), list(modules_that_mix()))
def test_what_mixes_channels_is_left_whole_and_says_why(kind, reason):
    network = kind().double().eval()
    groups = trace(network, (3, 8, 8))
    assert any(re.search(reason, said) for said in groups.whole.values())
    assert not groups.left
    check_left_whole(network, groups)


def check_left_whole(network, groups):
    assert {"conv", "second"} & set(groups.whole)
    costs = Costs(groups)
    assert costs.macs(groups.widths) == count_macs(network, (3, 8, 8))
    same = cut(network, groups, groups.widths)
    assert costs.params(groups.widths) == sum(p.numel() for p in same.parameters())


class Spectral(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)

    def forward(self, x):
        return self.second(torch.fft.fft2(self.conv(x)).real)


def test_what_is_not_understood_is_named_or_left_whole_if_asked_for():
    network = Spectral().double().eval()
    with pytest.raises(TraceError, match=r"fft2 in .*: .*unknown at .*test_groups\.py"):
        trace(network, (3, 8, 8))
    groups = trace(network, (3, 8, 8), skip_untraceable=True)
    assert len(groups.left) == 1
    check_left_whole(network, groups)


def test_a_branch_that_depends_on_the_image_is_named():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 1)

        def forward(self, x):
            return self.conv(x) if x.sum() > 0 else x

    for skip in (False, True):  # there is nothing around it that could be pruned
        with pytest.raises(
            TraceError, match=r"the network itself at .*test_groups\.py:\d+"
        ):
            trace(Branches(), (3, 8, 8), skip_untraceable=skip)


def test_modules_that_cannot_be_traced_are_left_closed():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 1)

        def forward(self, x):
            return self.conv(x) if x.sum() > 0 else x

    network = nn.Sequential(
        nn.Conv2d(3, 6, 1), nn.Conv2d(6, 8, 1), nn.Sequential(Branches()),
        nn.Conv2d(8, 9, 1), nn.Conv2d(9, 2, 1),
    ).double()  # fmt: skip
    with pytest.raises(TraceError, match=r"cannot follow 2\.0 at .*return self\.conv"):
        trace(network, (3, 8, 8))
    groups = trace(network, (3, 8, 8), skip_untraceable=True)
    assert groups.closed == ("2.0",)
    assert groups.names == ("0", "3")
    assert set(groups.whole) == {"1", "2.0", "4"}
    x = torch.randn(2, 3, 8, 8, dtype=torch.double)
    smaller = prune(network, groups, [3, 5])
    assert torch.allclose(smaller(x), mask(network, groups, [3, 5])(x), rtol=1e-8)
    assert Costs(groups).macs(groups.widths) <= count_macs(network, (3, 8, 8))
    assert Costs(groups).params([3, 5]) == sum(p.numel() for p in smaller.parameters())


def test_groups_that_are_to_be_kept(network, groups):
    kept = trace(network, (3, 32, 32), keep=r"layer2\..*conv1|^conv1$")
    gone = {"conv1", "layer2.0.conv1"}
    assert kept.names == tuple(name for name in groups.names if name not in gone)
    assert kept.whole["layer1.0.conv2"].startswith("--keep")  # it shares conv1's channels
    for pattern, message in (
        ("nothing", "matches no layer"),
        ("(", "no regular expression"),
    ):
        with pytest.raises(ValueError, match=message):
            trace(network, (3, 32, 32), keep=pattern)


def test_a_wrong_input_shape_is_named(network):
    with pytest.raises(TraceError, match=r"on an image of shape \(1, 32, 32\)"):
        trace(network, (1, 32, 32))


class Fused(nn.Module):
    """Two images of different sizes, and facts about them that may be there."""

    def __init__(self):
        super().__init__()
        self.colour = nn.Conv2d(3, 12, 3, padding=1)
        self.depth = nn.Conv2d(1, 12, 3, stride=2, padding=1)
        self.both, self.facts = nn.Conv2d(12, 10, 3, padding=1), nn.Linear(5, 10)
        self.head = nn.Linear(10, 4)

    def forward(self, colour, depth, facts=None):
        x = F.relu(self.colour(colour))
        x = x + F.interpolate(F.relu(self.depth(depth)), size=x.shape[-2:])
        x = F.relu(self.both(x)).mean((2, 3))
        return self.head(x if facts is None else x + self.facts(facts))


class Stacked(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(4, 8, 3), nn.Conv2d(8, 3, 1)

    def forward(self, *images):
        return self.head(F.relu(self.stem(torch.cat(images, 1)))).mean((2, 3))


class Siamese(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3))
        self.head = nn.Linear(16, 2)

    def forward(self, left, right):
        return self.head((self.features(left) - self.features(right)).abs().mean((2, 3)))


@pytest.mark.parametrize(
    ("network", "shapes", "names"),
    [
        (Fused, ((3, 16, 16), (1, 32, 32)), ("colour", "both")),
        (Fused, ((3, 16, 16), (1, 32, 32), (5,)), ("colour", "both")),
        (Stacked, [[3, 8, 8], [1, 8, 8]], ("stem",)),
        (Siamese, ((3, 9, 9), (3, 9, 9)), ("features.0", "features.2")),
    ],
)
def test_a_network_may_take_several_images(network, shapes, names):
    network = network().double().eval()
    groups = trace(network, shapes)
    assert groups.names == names
    images = [torch.randn(2, *shape, dtype=torch.double) for shape in shapes]
    widths = np.maximum(1, groups.widths // 2)
    smaller = prune(network, groups, widths)
    assert type(smaller) is type(network)
    expected = mask(network, groups, widths)(*images)
    assert torch.allclose(smaller(*images), expected, rtol=1e-8, atol=1e-12)
    with FlopCounterMode(display=False) as counter:
        smaller(*images)
    assert 2 * Costs(groups).macs(widths) == counter.get_total_flops() // 2
    for levels in (1, 2, 3):
        graph = HierarchicalGraph(groups, levels)
        encoder = GraphEncoder(graph.levels, graph.shape[1])
        features = torch.from_numpy(graph.features(np.stack([widths, groups.widths])))
        pruned, dense = encoder(encoder.plan(features))
        assert not torch.allclose(pruned, dense)


def test_too_few_and_too_many_images_are_named():
    for shapes in (((3, 16, 16),), ((3, 16, 16), (1, 32, 32), (5,), (5,))):
        with pytest.raises(TraceError, match=r"cannot be run on .*forward"):
            trace(Fused(), shapes)


@pytest.mark.parametrize("bad", [0, 17, 1.5])
def test_widths_out_of_range_are_named(groups, bad):
    widths = groups.widths.astype(float)
    widths[1] = bad
    with pytest.raises(ValueError, match=r"'layer1.0.conv1' must be an integer in 1..16"):
        groups.check_widths(widths)


def test_widths_of_the_wrong_length(groups):
    for wrong in (groups.widths[:-1], [[1, 2], [3]], {"conv1": 8}, ["8"] * 6, 8, None):
        with pytest.raises(ValueError, match="are 6 numbers of channels"):
            groups.check_widths(wrong)


@pytest.mark.parametrize(
    "shape", [8, "3,8,8", (3, 0, 8), (3, -8, 8), (3, 8.0, 8), torch.zeros(3, 8, 8), ()]
)
def test_shapes_that_are_none_are_named(network, shape):
    with pytest.raises(DataError, match="whole numbers from 1 on"):
        trace(network, shape)


def test_shapes_are_of_any_whole_numbers(network, groups):
    for shape in (torch.Size([3, 8, 8]), np.array([3, 8, 8]), [3, 8, 8]):
        assert np.array_equal(trace(network, shape).widths, groups.widths)


def test_layers_to_keep_are_one_expression(network):
    assert trace(network, (3, 8, 8), keep=re.compile("conv1")).whole
    with pytest.raises(InputError, match=r"join names by \|"):
        trace(network, (3, 8, 8), keep=["conv1", "fc"])


def test_a_network_without_weights_is_named():
    with pytest.raises(TraceError, match="meta device"):
        trace(nn.Conv2d(3, 4, 1, device="meta"), (3, 8, 8))
