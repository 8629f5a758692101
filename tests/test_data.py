import numpy as np
import pytest
import torch

from gnnrl_ray.data import LOADERS, DataError, load_data
from gnnrl_ray.settings import DATASETS


@pytest.fixture
def cifar_folder(tmp_path):
    """A file of the real format: 6,000 training and 10,000 test images of noise."""
    rng = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 6000), ("test", 10000)):
        arrays[f"x_{part}"] = rng.integers(0, 256, (count, 32, 32, 3), np.uint8)
        arrays[f"y_{part}"] = rng.integers(0, 10, count)
    np.savez(tmp_path / "cifar10.npz", **arrays)
    return tmp_path


def test_cifar100_has_100_classes(cifar_folder):
    (cifar_folder / "cifar10.npz").rename(cifar_folder / "cifar100.npz")
    data = load_data("cifar100", cifar_folder)
    assert data.classes == 100
    assert data.input_shape == (3, 32, 32)


def fingerprints(split):
    return {image.numpy().tobytes() for image in split.images}


def test_test_5k_divides_the_test_set(cifar_folder):
    data = load_data("cifar10", cifar_folder, "test-5k")
    assert [len(s) for s in (data.train, data.validation, data.holdout, data.test)] == [
        6000, 5000, 5000, 10000,
    ]  # fmt: skip
    assert not fingerprints(data.validation) & fingerprints(data.holdout)
    union = fingerprints(data.validation) | fingerprints(data.holdout)
    assert union == fingerprints(data.test)


def test_train_5k_leaves_the_test_set_alone(cifar_folder):
    data = load_data("cifar10", cifar_folder, "train-5k")
    assert len(data.validation) == 600  # a tenth of this small training set
    assert not fingerprints(data.validation) & fingerprints(data.train)
    assert fingerprints(data.holdout) == fingerprints(data.test)


def test_the_split_is_always_the_same():
    first, second = load_data("digits"), load_data("digits")
    assert torch.equal(first.validation.images, second.validation.images)


def test_batches_are_normalised_in_order(digits):
    images, labels = next(digits.test.batches(16))
    assert images.shape == (16, 3, 32, 32)
    assert images.is_contiguous()
    expected = (digits.test.images[:16].float() / 255 - 0.5) / 0.5
    assert torch.allclose(images.permute(0, 2, 3, 1), expected)
    assert torch.equal(labels, digits.test.labels[:16])


def test_augmentation_crops_each_image_by_itself(digits):
    from dataclasses import replace

    ramp = torch.arange(1, 33, dtype=torch.uint8)
    rows = ramp[:, None].expand(32, 32)[..., None].expand(-1, -1, 3)
    split = replace(
        digits.train,
        images=rows.repeat(200, 1, 1, 1),
        labels=torch.zeros(200, dtype=torch.long),
    )
    images, _ = next(split.batches(200, torch.Generator().manual_seed(0)))
    pixels = ((images * 0.5 + 0.5) * 255).round()
    shifts = {int(image[0, 16, 16]) for image in pixels}
    assert shifts == set(range(13, 22))  # 17 - 4 .. 17 + 4


def test_only_sets_that_allow_it_are_mirrored(cifar_folder, digits):
    assert not digits.train.flip
    split = load_data("cifar10", cifar_folder).train
    ramp = torch.arange(32, dtype=torch.uint8)[None, None, :, None]
    split = split.take(torch.arange(100))
    split = type(split)(
        ramp.expand(100, 32, 32, 3).contiguous(),
        split.labels,
        split.mean,
        split.std,
        True,
    )
    images, _ = next(split.batches(100, torch.Generator().manual_seed(0)))
    rising = sum(bool(image[0, 16, 20] > image[0, 16, 12]) for image in images)
    assert 30 < rising < 70


def test_every_name_has_its_loader():
    assert tuple(LOADERS) == DATASETS


def test_unknown_names_list_the_known():
    with pytest.raises(DataError, match="known: digits, cifar10"):
        load_data("mnist")
    with pytest.raises(DataError, match="known: test-5k, train-5k"):
        load_data("digits", validation="test")


def test_missing_cifar10_says_where_and_how(tmp_path, monkeypatch):
    import torchvision

    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(torchvision.datasets.CIFAR10, "download", offline)
    with pytest.raises(DataError, match=r"cifar10\.npz.*x_train \[50000"):
        load_data("cifar10", tmp_path)


def test_what_is_downloaded_is_one_file(tmp_path, monkeypatch):
    import torchvision

    class Few:
        def __init__(self, root, train, download):
            with open(f"{root}/archive.tar.gz", "xb" if train else "ab"):
                self.data = np.full((10 if train else 8, 32, 32, 3), 7, np.uint8)
            self.targets = [n % 10 for n in range(len(self.data))]

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", Few)
    data = load_data("cifar10", tmp_path / "new")
    assert (len(data.train), len(data.test)) == (10, 8)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["cifar10.npz"]


def test_damaged_cifar10(cifar_folder):
    path = cifar_folder / "cifar10.npz"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match="is damaged"):
        load_data("cifar10", cifar_folder)
