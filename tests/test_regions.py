from itertools import pairwise

import pytest
from torch import nn

from gnnrl_ray import trace
from gnnrl_ray.graph.regions import by_signature, find_blocks, find_stages, stride
from gnnrl_ray.zoo import build_network


def blocks_of(network, shape=(3, 32, 32)):
    groups = trace(network, shape)
    return groups, find_blocks(groups)


@pytest.mark.parametrize("name", ["resnet20", "resnet56", "vgg16", "mobilenet_v2"])
def test_blocks_are_the_network_in_its_order(name):
    groups, blocks = blocks_of(build_network(name))
    inside = [i for block in blocks for i in block.inside]
    assert inside == list(range(len(groups.operations)))
    for before, after in pairwise(blocks):
        assert after.start == before.stop


@pytest.mark.parametrize(("name", "count"), [("resnet20", 9), ("resnet56", 27)])
def test_a_resnets_blocks_are_its_residual_blocks(name, count):
    _, blocks = blocks_of(build_network(name))
    branching = [block for block in blocks if block.branching]
    assert len(branching) == count
    _, motifs = by_signature(branching)
    assert sorted(map(len, motifs)) == [2, count - 2]  # two of them halve the image


def test_widths_make_no_difference_and_kernels_do():
    def chain(*layers):
        return nn.Sequential(
            *(nn.Sequential(nn.Conv2d(a, b, k, padding=k // 2), nn.ReLU())
              for a, b, k in layers)
        )  # fmt: skip

    _, same = blocks_of(chain((3, 8, 3), (8, 12, 3), (12, 5, 3)))
    assert len({block.signature for block in same}) == 1
    _, other = blocks_of(chain((3, 8, 3), (8, 12, 5), (12, 5, 3)))
    assert len({block.signature for block in other}) == 2


def test_instances_are_numbered_motif_by_motif():
    _, blocks = blocks_of(build_network("resnet20"))
    numbers, motifs = by_signature(blocks)
    assert [numbers[span] for same in motifs for span in same] == [*range(len(blocks))]


def test_stages_are_sequences_that_repeat():
    _, blocks = blocks_of(build_network("mobilenet_v2"))
    stages = find_stages(blocks)
    counts = {}
    for stage in stages:
        counts[stage.signature] = counts.get(stage.signature, 0) + 1
    assert max(counts.values()) > 1
    assert [i for s in stages for i in s.inside] == [i for b in blocks for i in b.inside]


def test_strides_are_of_one_side():
    groups = trace(nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU()), (3, 32, 32))
    assert [stride(groups, i) for i in range(2)] == [2.0, 1.0]
