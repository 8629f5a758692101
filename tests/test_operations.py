import copy
import pickle

import pytest
import torch

from gnnrl_ray import trace
from gnnrl_ray.tracing.operations import FIXED, KINDS, ZERO, select_channels


def test_channels_are_selected_and_padded_with_zeros():
    x = torch.randn(2, 3, 4, 4)
    y = select_channels(x, torch.tensor([ZERO, 2, 0, ZERO, 2]))
    assert torch.equal(y[:, [1, 2, 4]], x[:, [2, 0, 2]])
    assert not y[:, [0, 3]].any()
    assert torch.equal(select_channels(x[:, :, 0, 0], torch.tensor([1])), x[:, 1:2, 0, 0])


def test_operations_are_what_the_network_does(network):
    groups = trace(network, (3, 32, 32))
    assert {op.kind for op in groups.operations} <= {*KINDS, "other"}
    for i, op in enumerate(groups.operations):
        assert all(-1 <= parent < i for parent in op.parents)  # in execution order
        assert (op.weight is not None) == (op.kind in ("conv", "linear"))
        for channels in (op.inputs, op.outputs):
            assert ((channels >= 0) | (channels == FIXED)).all()
            assert channels.max(initial=-1) < groups.offsets[-1]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda g: pickle.loads(pickle.dumps(g))])
def test_groups_go_elsewhere_without_the_network(network, copied):
    groups = trace(network, (3, 32, 32))
    again = copied(groups)
    assert again.names == groups.names
    assert again._graph is None
    assert len(pickle.dumps(groups)) < 100_000
    # There, the network is traced anew, and is the same.
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(again.graph_of(network)(x), network(x))
