import pickle
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from gnnrl_ray import Data
from gnnrl_ray.data import DataError, Loader, load_data
from gnnrl_ray.scoring.training import accuracy, calibration_batches, steps_per_epoch, train


def pairs(count, batch=8, shape=(3, 6, 6)):
    images, labels = torch.rand(count, *shape), torch.arange(count) % 4
    return DataLoader(TensorDataset(images, labels), batch, shuffle=True)


def seeded(number):
    return torch.Generator().manual_seed(number)


def labels_of(loader, generator=None):
    return torch.cat([labels for _, labels in loader.batches(1, generator)]).tolist()


def test_order_follows_the_seed_whatever_else_is_drawn():
    loader = Loader(pairs(40))
    first = labels_of(loader, seeded(1))
    torch.rand(7)
    drawn = []
    for _, labels in loader.batches(1, seeded(1)):
        torch.rand(3)  # as dropout does between two batches
        drawn += labels.tolist()
    assert drawn == first != labels_of(loader, seeded(2))
    assert sorted(drawn) == sorted(torch.arange(40).remainder(4).tolist())


def test_what_is_drawn_elsewhere_does_not_follow_the_loader():
    loader = Loader(pairs(40))
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)
    labels_of(loader, seeded(0))
    assert torch.equal(torch.rand(4), expected)


def test_two_passes_differ_and_both_follow_one_generator():
    loader, generator, again = Loader(pairs(64)), seeded(3), seeded(3)
    first, second = labels_of(loader, generator), labels_of(loader, generator)
    assert first != second
    assert [labels_of(loader, again), labels_of(loader, again)] == [first, second]


class Unsized:
    """Can be gone through again, and does not know how long it is."""

    def __iter__(self):
        yield from ((torch.rand(n, 3, 4, 5), torch.zeros(n).long()) for n in (3, 3, 2))


class Once:
    """Says that it can be gone through, and has been."""

    def __iter__(self):
        return iter([])


def test_one_that_runs_dry_is_named():
    """It is no iterator itself, so that nothing can be known before its second pass."""
    batches = iter(Unsized())
    loader = Loader(type("Dry", (), {"__iter__": lambda self: batches})())
    assert len(list(loader.batches())) == 3
    with pytest.raises(DataError, match="the loader loader yields nothing, or"):
        loader.first()


def test_sizes_are_known_or_counted():
    assert (len(Loader(pairs(20))), Loader(pairs(20)).batch_count(99)) == (20, 3)
    assert (len(Loader(Unsized())), Loader(Unsized()).batch_count(99)) == (8, 3)
    dropping = DataLoader(TensorDataset(torch.rand(20, 3, 4, 4), torch.zeros(20)), 8,
                          drop_last=True)  # fmt: skip
    assert (len(Loader(dropping)), Loader(dropping).batch_count(99)) == (16, 2)
    assert Loader(Unsized()).input_shape == (3, 4, 5)
    assert steps_per_epoch(Loader(Unsized())) == 3


def test_several_images_and_targets_of_any_structure():
    batch = [[torch.rand(2, 3, 8, 8), torch.rand(2, 5)], {"box": [torch.rand(2, 4), "a"]}]
    loader = Loader([batch])
    assert loader.input_shape == ((3, 8, 8), (5,))
    (images, targets) = loader.first()
    assert isinstance(images, tuple)
    assert torch.equal(targets["box"][0], batch[1]["box"][0])
    assert targets["box"][1] == "a"


def test_calibration_takes_as_many_images_as_of_a_split():
    images = calibration_batches(Loader(pairs(400, batch=100)), seed=0)
    assert [len(batch) for batch in images] == [100, 100, 100]
    assert len(calibration_batches(Loader(pairs(30)), seed=0)) == 4


def test_a_loader_scores_as_a_split_does(network, digits):
    batches = list(digits.validation.batches(37))
    expected = accuracy(network, digits.validation)
    assert accuracy(network, Loader(batches)) == accuracy(network, batches) == expected


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "yields nothing"),
        (iter([(torch.rand(2, 3, 4, 4), torch.zeros(2))]), "only once, as a generator can"),
        (Once(), "only once"),
        ([torch.rand(2, 3, 4, 4)], r"pairs of images and targets, but yields float32 \[2"),
        ([(torch.rand(2, 3, 4, 4),)], "but yields a tuple of 1"),
        ([("ab", torch.zeros(2))], "images as floating-point"),
        ([(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(2))], "uint8"),
        (7, "cannot be iterated"),
    ],
)
def test_what_is_no_loader_is_named(given, said):
    good = pairs(8)
    with pytest.raises(DataError, match=said):
        Data.of(good, given)
    with pytest.raises(DataError, match=said):
        Data.of(given, good)


@pytest.mark.parametrize("given", [[], [torch.rand(2, 3, 4, 4)], 7])
@pytest.mark.parametrize("use", [accuracy, partial(train, steps=1)])
def test_functions_name_it_too(given, use):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(DataError, match="loader"):
        use(network, given)


def test_data_of_ones_own_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_data_of_test.py").write_text(
        "import torch\n"
        "batch = [(torch.rand(4, 3, 8, 8), torch.arange(4))]\n"
        "def pair(): return batch, batch\n"
        "def three(): return batch, batch, batch\n"
        "def wrong(): return batch[0]\n"
        "def broken(): raise OSError('no such disk')\n"
    )
    data = load_data("own_data_of_test:pair")
    assert (data.name, data.protocol, data.classes) == ("pair", "given", None)
    assert data.holdout is None
    assert load_data("own_data_of_test:three").holdout is not None
    for name, said in (
        ("wrong", "yield"), ("broken", "raised OSError: no such disk"),
        ("missing", "has no callable 'missing'"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            load_data(f"own_data_of_test:{name}")


def test_splits_and_loaders_have_the_same_samples(digits):
    drawn = [labels for _, labels in digits.train.sample(50, 20, seed=3)]
    assert [len(labels) for labels in drawn] == [20, 20, 10]
    order = torch.randperm(len(digits.train), generator=seeded(3))[:50]
    assert np.array_equal(torch.cat(drawn), digits.train.labels[order])


def test_one_that_is_under_way_can_be_sent_elsewhere():
    images = torch.arange(24.0).view(6, 1, 2, 2)
    given = DataLoader(
        TensorDataset(images, torch.arange(6)), 2, num_workers=1, persistent_workers=True
    )
    loader = Loader(given)
    list(loader.batches())
    with pytest.raises(NotImplementedError):
        pickle.dumps(given)
    there = pickle.loads(pickle.dumps(loader))
    assert [y.tolist() for _, y in there.batches()] == [[0, 1], [2, 3], [4, 5]]
    assert loader.given is given
    assert given._iterator is not None  # its workers go on
    assert len(list(loader.batches())) == 3
