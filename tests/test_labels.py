import pytest
import torch
from torch import nn

from gnnrl_ray.tracing.labels import Labels, Transit
from gnnrl_ray.tracing.network import TraceError
from gnnrl_ray.tracing.operations import FIXED
from gnnrl_ray.tracing.symbolic import symbolic


@pytest.fixture
def labels():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    flow = Labels(symbolic(network, (3, 8, 8)), (3, 8, 8))
    flow.node = next(n for n in flow.graph.graph.nodes if n.op == "call_module")
    return flow


def test_labels_are_fresh(labels):
    first, second = labels.mint(3), labels.mint(2)
    assert torch.cat([first, second]).tolist() == [0, 1, 2, 3, 4]
    assert labels.minted == 5


def test_ties_join_channels_and_what_is_fixed_freezes(labels):
    made = labels.mint(3)
    labels.unite(made, torch.tensor([7, FIXED, 9]))
    assert labels.ties[0].tolist() == [[0, 7], [2, 9]]
    assert labels.frozen == {1: "tied to channels that are whole"}


def test_unequal_counts_do_not_meet(labels):
    with pytest.raises(TraceError, match=r"3 channels meet 2"):
        labels.unite(labels.mint(3), labels.mint(2))


def test_a_reason_to_stay_is_kept(labels):
    made = labels.mint(2)
    labels.freeze(made, "first")
    labels.freeze(made[:1], "second")
    labels.freeze(torch.tensor([FIXED]), "third")
    assert labels.frozen == {0: "first", 1: "first"}


def test_a_record_has_parents_size_and_channels(labels):
    image = next(n for n in labels.graph.graph.nodes if n.op == "placeholder")
    three = torch.full((3,), FIXED)
    labels.streams[image] = type("S", (), {"labels": three, "axis": 1, "operation": -1})()
    made = labels.mint(4)
    labels.record("conv", three, made, weight="0.weight")
    (labelled,) = labels.operations
    operation = labelled.operation
    assert operation.parents == (-1,)
    assert operation.module == "0"
    assert operation.size == 64
    assert labelled.made.tolist() == [0, 1, 2, 3]
    assert not len(operation.outputs)
    numbers = torch.tensor([5, 6, 7, 8, FIXED]).numpy()
    assert labelled.numbered(numbers).outputs.tolist() == [5, 6, 7, 8]
    assert labelled.numbered(numbers).inputs.tolist() == [FIXED] * 3
    assert labels.stream(labels.node, 1).labels is made
    with pytest.raises(TraceError, match="channels are at axis 1, not 3"):
        labels.stream(labels.node, 3)


def test_the_same_tensor_is_laid_out_once(labels):
    labels.lay("0.weight", labels.mint(4), torch.full((3,), FIXED))
    again = labels.mint(4)
    labels.lay("0.weight", again, torch.full((3,), FIXED))
    assert labels.layouts["0.weight"].rows.tolist() == [0, 1, 2, 3]
    assert labels.ties[0].tolist() == [[0, 4], [1, 5], [2, 6], [3, 7]]
    with pytest.raises(TraceError, match="used in two different ways"):
        labels.lay("0.weight", again, axis=1)


def test_channels_on_their_way_cannot_be_computed_with(labels):
    labels.streams[labels.node] = Transit(labels.node, None)
    with pytest.raises(TraceError, match="divided or reordered by position"):
        labels.stream(labels.node)
