"""Networks that ask for an order of memory, and those that do not."""

import copy
import pickle

import pytest
import torch
from torch import nn

from gnnrl_ray import accuracy, search, trace
from gnnrl_ray.jobs.exporting import export
from gnnrl_ray.scoring.layout import channels_last, laid_out, quick, runs
from gnnrl_ray.scoring.speed import measure_speed
from gnnrl_ray.scoring.training import recalibrate, train

LAST = torch.channels_last


class Viewing(nn.Module):
    """Flattens maps as much code does: in one order of memory alone."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 12, 3, 2), nn.BatchNorm2d(12)
        self.second, self.pool = nn.Conv2d(12, 16, 3, 2), nn.MaxPool2d(3)
        self.head = nn.Linear(16 * 4, 10)

    def forward(self, x):
        x = self.pool(self.second(self.norm(self.first(x)).relu()))
        return self.head(x.view(x.size(0), -1))


@pytest.fixture(scope="module")
def viewing(digits):
    torch.manual_seed(0)
    network = Viewing()
    train(network, digits.train, steps=60)
    return network


def test_images_are_in_the_usual_order_unless_another_is_asked_for(
    viewing, digits, network
):
    images = next(digits.validation.batches(8))[0]
    assert images.is_contiguous()
    assert viewing(images).shape == (8, 10)
    assert not runs(viewing, images)
    assert runs(network, images)
    assert not quick(digits.validation, viewing).channels_last
    assert not quick(digits.validation, network, viewing).channels_last
    split = pickle.loads(pickle.dumps(quick(digits.validation, network)))
    last = next(split.batches(8))[0]
    assert torch.equal(last, images)
    assert last.is_contiguous(memory_format=LAST)
    assert not last.is_contiguous()


def test_weights_of_images_are_laid_out_and_no_others():
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv3d(8, 4, 3), nn.Conv1d(4, 2, 3))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert channels_last(network) is network
    assert network[0].weight.is_contiguous(memory_format=LAST)
    assert network[1].weight.is_contiguous()
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())
    volume = torch.rand(1, 2, 3, 4, 5)
    assert laid_out(volume) is volume


@pytest.mark.parametrize(
    ("method", "finetune"),
    [("random", "none"), ("random", "recalibrate"), ("random", 2),
     pytest.param("gnn-rl", 2, marks=pytest.mark.slow)],
)  # fmt: skip
def test_they_are_searched(viewing, digits, tmp_path, method, finetune):
    agent = {"warmup_episodes": 1, "updates_per_step": 2} if method == "gnn-rl" else {}
    found = search(
        viewing, digits, method=method, finetune=finetune, flops=0.5, episodes=2,
        out=tmp_path / "run", agent=agent, progress=False,
    )  # fmt: skip
    assert isinstance(found.network, Viewing)
    assert found.best.accuracy == pytest.approx(
        accuracy(found.network, digits.validation), abs=0.003
    )
    recalibrate(found.network, digits.train)
    train(found.network, digits.train, steps=2)


def test_they_are_measured_and_exported(viewing, digits, network, tmp_path):
    speeds = measure_speed(
        {"viewing": viewing, "other": network}, digits.input_shape, batch=2, rounds=5
    )
    assert all(each["median_ms"] > 0 < each["memory"] for each in speeds.values())
    for kind in ("onnx", "pt2", "torch"):
        found = export(viewing, digits.validation, tmp_path / kind, kind=kind)
        assert found.agree == found.images


def test_a_graph_learns_from_one(viewing, digits):
    """What a removed network could be given, its teacher cannot."""
    graph = copy.deepcopy(trace(viewing, digits.input_shape).graph_of(viewing))
    train(graph, digits.train, steps=2, teacher=viewing, distill=0.5)


def test_their_graph_takes_either_order(viewing, digits):
    groups = trace(viewing, digits.input_shape)
    graph = groups.graph_of(viewing)
    images = next(digits.validation.batches(8))[0]
    assert torch.allclose(graph(laid_out(images)), viewing(images), atol=1e-5)
