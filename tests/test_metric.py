import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from gnnrl_ray import Data, Metric, accuracy, search, train
from gnnrl_ray.errors import InputError
from gnnrl_ray.run.directory import Run, RunError
from gnnrl_ray.scoring.metric import ScoreError
from gnnrl_ray.scoring.training import TrainingError

AGENT = {"warmup_episodes": 4, "updates_per_step": 2, "hidden": (16,), "graph_dim": 8}
SHORT = {"flops": 0.5, "episodes": 5, "device": "cpu", "progress": False}


class Twice(nn.Module):
    """Two images, and what they are told apart by, in a dictionary."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(1, 8, 3, 2, 1)
        self.norm, self.deep = nn.BatchNorm2d(8), nn.Conv2d(8, 12, 3, 2, 1)
        self.head, self.mask = nn.Linear(12, 1), nn.Conv2d(8, 1, 1)

    def forward(self, image, twice):
        both = F.relu(self.norm(self.left(image) + self.right(twice)))
        deep = F.relu(self.deep(both))
        return {"value": self.head(deep.mean((2, 3))), "mask": self.mask(both)}


@pytest.fixture(scope="module")
def loaders():
    """Brightness, plus a third of that of a second image."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(240, 1, 10, 10, generator=generator)
    images *= torch.rand(240, 1, 1, 1, generator=generator)
    second = F.interpolate(images.flip(0), scale_factor=2)
    wanted = images.mean((1, 2, 3)) + second.mean((1, 2, 3)) / 3
    whole = TensorDataset(images, second, wanted[:, None])

    def pair(batch):
        *given, target = zip(*batch, strict=True)
        return tuple(torch.stack(each) for each in given), torch.stack(target)

    def loader(rows, shuffle):
        part = torch.utils.data.Subset(whole, list(rows))
        return DataLoader(part, 40, shuffle=shuffle, collate_fn=pair)

    return loader(range(160), True), loader(range(160, 240), False)


def loss(outputs, wanted):
    return F.mse_loss(outputs["value"], wanted)


def explained(network, validation):
    found = torch.cat([network(*images)["value"] for images, _ in validation])
    wanted = torch.cat([target for _, target in validation])
    error = float(((found - wanted) ** 2).mean())
    return {"R2": max(-1.0, 1 - error / float(wanted.var())), "mse": error}


@pytest.fixture(scope="module")
def regressor(loaders):
    torch.manual_seed(0)
    network = Twice()
    train(network, Data.of(*loaders).train, steps=300, lr=0.02, loss=loss)
    assert explained(network, loaders[1])["R2"] > 0.8
    return network


METRIC = Metric(explained, "R2", low=-1)


@pytest.mark.parametrize("method", ["random", "gnn-rl"])
@pytest.mark.parametrize("finetune", ["recalibrate", 6])
def test_a_score_of_ones_own_decides(regressor, loaders, tmp_path, method, finetune):
    found = search(
        regressor, loaders, score=METRIC, loss=loss, finetune=finetune, method=method,
        out=tmp_path / "run", agent=AGENT if method == "gnn-rl" else {}, **SHORT,
    )  # fmt: skip
    measured = explained(found.network, loaders[1])
    assert found.best.measured == pytest.approx(measured, abs=1e-5)
    assert found.best.accuracy == pytest.approx((measured["R2"] + 1) / 2, abs=1e-5)
    assert found.best.accuracy == found.history["accuracy"].max()
    assert found.history["mse"].between(0, 1).all()
    assert (tmp_path / "run/search.png").exists()
    assert isinstance(found.network, Twice)  # fewer channels, the user's own class
    assert found.network.left.out_channels < 8
    again = search(
        regressor, loaders, score=METRIC, loss=loss, out=tmp_path / "run", resume=True,
        episodes=7, progress=False,
    )  # fmt: skip
    assert len(again.history) == 7
    assert again.history[:5].equals(found.history)


def test_what_a_score_does_to_the_network_is_not_kept(regressor, loaders, tmp_path):
    """Neither of the dense one, which is the caller's, nor of the one that is returned."""

    def careless(network, validation):
        network.train()  # statistics follow
        found = explained(network, validation)
        for parameter in network.parameters():
            parameter.zero_()
        return found

    before = copy.deepcopy(regressor.state_dict())
    found = search(
        regressor, loaders, score=Metric(careless, "R2", low=-1), loss=loss, finetune=3,
        method="random", out=tmp_path / "run", **SHORT,
    )  # fmt: skip
    after = regressor.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    with torch.no_grad():
        again = careless(copy.deepcopy(found.network), loaders[1])
    assert found.best.measured == pytest.approx(again, abs=1e-5)


@pytest.mark.parametrize("method", ["random", "gnn-rl"])
@pytest.mark.parametrize("kind", ["score", "finetune"])
def test_what_fails_late_is_named_and_costs_nothing_else(
    regressor, loaders, tmp_path, method, kind
):
    left = [3]

    def fails(network, _=None):
        left[0] -= 1
        if not left[0]:
            raise OSError("the disk is gone")

    def score(network, validation):
        if kind == "score":
            fails(network)
        return explained(network, validation)

    given = {
        "score": Metric(score, "R2", low=-1), "loss": loss, "method": method,
        "out": tmp_path / "run", "finetune": fails if kind == "finetune" else "none",
        "agent": AGENT if method == "gnn-rl" else {},
    }  # fmt: skip
    with pytest.raises(ScoreError, match="raised OSError: the disk is gone"):
        search(regressor, loaders, **given, **SHORT)
    kept = (tmp_path / "run/journal.jsonl").read_text()
    assert kept
    found = search(regressor, loaders, **given, **SHORT, resume=True)
    assert len(found.history) == SHORT["episodes"]
    assert (tmp_path / "run/journal.jsonl").read_text().startswith(kept)


def test_what_ones_own_training_made_of_the_winner_is_kept(regressor, loaders, tmp_path):
    trained = []

    def retrain(network, loader):
        assert loader is loaders[0]
        assert network.training
        trained.append(network)
        optimizer = torch.optim.Adam(network.parameters(), 1e-3)
        for images, wanted in loader:
            optimizer.zero_grad()
            loss(network(*images), wanted).backward()
            optimizer.step()

    found = search(
        regressor, loaders, score=METRIC, loss=loss, finetune=retrain, method="random",
        out=tmp_path / "run", **SHORT,
    )  # fmt: skip
    assert len(trained) == 5  # and not once more, which might come to something else
    assert explained(found.network, loaders[1])["R2"] == pytest.approx(
        found.best.measured["R2"], abs=1e-5
    )
    with pytest.raises(ValueError, match="finetune=FUNCTION"):
        search(regressor, loaders, score=METRIC, out=tmp_path / "run", resume=True)


def test_a_search_goes_on_with_the_score_that_it_began_with(regressor, loaders, tmp_path):
    out = tmp_path / "run"
    search(regressor, loaders, score=METRIC, loss=loss, method="uniform", out=out, **SHORT)
    other = Metric(explained, "mse")
    with pytest.raises(RunError, match=r"started with score R2 -1..1, not mse 0..1"):
        search(regressor, loaders, score=other, loss=loss, out=out, resume=True,
               progress=False)  # fmt: skip
    with pytest.raises(RunError, match=r"started with loss loss, not None"):
        search(regressor, loaders, score=METRIC, out=out, resume=True, progress=False)
    assert len(Run.open(out).journal) == 1


def test_without_a_loss_the_agent_says_what_it_does_not_know(regressor, loaders, tmp_path):
    with pytest.warns(UserWarning, match="give the search a `loss`"):
        found = search(
            regressor, loaders, score=METRIC, out=tmp_path / "run", agent=AGENT, **SHORT
        )
    assert len(found.history) == 5


@pytest.mark.parametrize(
    ("score", "said"),
    [
        (lambda *_: float("nan"), r"returned score = nan, which is not in \[0, 1\]"),
        (lambda *_: 1.5, "is not in"),
        (lambda *_: "good", "returned 'good', not a number"),
        (lambda *_: None, "returned None, not a number"),
        (lambda *_: {"other": 1}, "returned other; one of them has to be 'score'"),
        (lambda *_: 1 / 0, "raised ZeroDivisionError"),
        (Metric(lambda *_: 2, "dB", 5, 60), r"dB = 2.0, which is not in \[5, 60\]"),
    ],
)
def test_what_is_no_score_is_named_before_anything_is_written(
    regressor, loaders, tmp_path, score, said
):
    with pytest.raises(ScoreError, match=said):
        search(regressor, loaders, score=score, out=tmp_path / "run", **SHORT)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("low", "high"), [(1, 0), (0, 0), (0, float("inf"))])
def test_bounds_that_cannot_be(low, high):
    with pytest.raises(ValueError, match="bounds of dB"):
        Metric(explained, "dB", low, high)


def test_outputs_that_are_no_classes_ask_for_a_score(regressor, loaders, tmp_path):
    with pytest.raises(ValueError, match=r"returns a dict .* give the search a `score`"):
        search(regressor, loaders, out=tmp_path / "run", **SHORT)
    assert not (tmp_path / "run").exists()


def test_classes_that_the_network_does_not_know(digits, network, tmp_path):
    images, labels = next(digits.validation.batches(16))
    wrong = [(images, labels + 5)]
    with pytest.raises(ValueError, match=r"are in .*, but the network tells 10 classes"):
        search(network, (wrong, wrong), out=tmp_path / "run", **SHORT)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: torch.nn.DataParallel(Twice()), r"a DataParallel .* give its \.module"),
        (lambda: torch.jit.script(nn.Conv2d(1, 8, 3)), "the module that it was made from"),
        (lambda: "resnet20", "a str cannot be pruned"),
        (lambda: Twice().double(), r"weights are torch.float64.* yields, a tuple of 2"),
    ],
)
@pytest.mark.parametrize("classes", [None, 3])
def test_networks_that_cannot_be_searched(loaders, tmp_path, made, said, classes):
    data = Data.of(*loaders, classes=classes)
    with pytest.raises(InputError, match=said):
        search(made(), data, loss=loss, out=tmp_path / "run", **SHORT)
    assert not (tmp_path / "run").exists()


def of_dimensions(count):
    """A network for signals or volumes, and batches of such."""
    convolution, norm, pool = {
        1: (nn.Conv1d, nn.BatchNorm1d, nn.AdaptiveAvgPool1d),
        3: (nn.Conv3d, nn.BatchNorm3d, nn.AdaptiveAvgPool3d),
    }[count]
    network = nn.Sequential(
        convolution(2, 8, 3), norm(8), nn.ReLU(), convolution(8, 12, 3), nn.ReLU(), pool(1),
        nn.Flatten(), nn.Linear(12, 3),
    )  # fmt: skip
    inputs, labels = torch.rand(20, 2, *[7] * count), torch.arange(20) % 3
    return network, [(inputs, labels), (inputs, labels)]


@pytest.mark.parametrize(
    ("dimensions", "method", "finetune"),
    [
        (1, "random", 2),
        (3, "random", "none"),
        (1, "gnn-rl", "recalibrate"),
        pytest.param(3, "random", 2, marks=pytest.mark.slow),
        pytest.param(3, "gnn-rl", "recalibrate", marks=pytest.mark.slow),
    ],
)
def test_signals_and_volumes(tmp_path, dimensions, method, finetune):
    torch.manual_seed(0)
    network, batches = of_dimensions(dimensions)
    found = search(
        network, (batches, batches), method=method, finetune=finetune, out=tmp_path / "run",
        agent=AGENT if method == "gnn-rl" else {}, **SHORT,
    )  # fmt: skip
    scored = accuracy(found.network, Data.of(batches, batches).validation)
    assert found.best.accuracy == pytest.approx(scored)
    assert found.network[0].out_channels == found.best.widths[0] < 8


@pytest.mark.parametrize("dimensions", [1, 3])
def test_latency_of_signals_and_volumes(tmp_path, dimensions):
    network, batches = of_dimensions(dimensions)
    given = SHORT | {"flops": None, "memory": 0.9, "latency": 0.98, "episodes": 2}
    found = search(
        network, (batches, batches), method="random", out=tmp_path / "run", **given
    )
    assert len(found.history) == 2


def test_frozen_networks_are_searched_but_not_trained(regressor, loaders, tmp_path):
    network = copy.deepcopy(regressor).requires_grad_(False)
    given = {"score": METRIC, "loss": loss, "out": tmp_path / "run", "overwrite": True}
    for method in ("random", "gnn-rl"):
        found = search(network, loaders, method=method, **given, **SHORT)
        assert not any(p.requires_grad for p in found.network.parameters())
    with pytest.raises(
        TrainingError, match="no parameter of the network has requires_grad"
    ):
        search(network, loaders, method="random", finetune=2, **given, **SHORT)


def test_classes_from_loaders(digits, network, tmp_path):
    """Loaders of what a split holds lead to what the split does, to rounding."""
    pair = list(digits.train.batches(125)), list(digits.validation.batches(125))
    settings = SHORT | {"finetune": "none", "method": "random"}
    ours = search(network, digits, out=tmp_path / "a", precision="plain", **settings)
    theirs = search(network, pair, out=tmp_path / "b", **settings)
    ours, theirs = (one.history.drop(columns="seconds") for one in (ours, theirs))
    assert ours.equals(theirs)
