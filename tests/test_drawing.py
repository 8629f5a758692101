import numpy as np
import pytest
from matplotlib import pyplot as plt

from gnnrl_ray import HierarchicalGraph, trace
from gnnrl_ray.display.drawing import draw_graph, motif_names
from gnnrl_ray.zoo import build_network


@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_pictures(tmp_path, groups, levels, suffix):
    path = tmp_path / f"graph.{suffix}"
    graph = HierarchicalGraph(groups, levels)
    draw_graph(graph, "resnet8", path)
    if suffix == "png":
        picture = plt.imread(path)
        assert len(np.unique(picture.reshape(-1, picture.shape[2]), axis=0)) > 10
    else:
        assert path.read_text().count("<path") > graph.shape[0]


def test_names_are_letters_for_stages_and_numbers_for_motifs():
    groups = trace(build_network("resnet20"), (3, 32, 32))
    names = motif_names(HierarchicalGraph(groups, 3))
    assert names == [["M1", "M2", "M3", "M4", "M5"], ["A", "B", "C"], ["network"]]
