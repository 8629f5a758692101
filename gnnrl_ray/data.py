"""Data sets as uint8 tensors that live on one device, with batches made there.

No worker processes and no per-image work: a split is two tensors, and cropping, flipping
and normalisation happen on whole batches.

Axis letters: N images, H height, W width, C channels, B batch.
"""

import hashlib
import math
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gnnrl_ray.errors import InputError
from gnnrl_ray.home import home

VALIDATIONS = ("test-5k", "train-5k")
_VALIDATION_SIZE = 5000
_CROP_PADDING = 4
# The split is part of the protocol, so it does not follow the seed of a search.
_SPLIT_SEED = 0
_LARGEST = 2**30  # bytes of one array; CIFAR's largest has 1.5e8


class DataError(InputError):
    """A data set that is unknown, missing or damaged."""


@dataclass(frozen=True)
class Split:
    """Images with labels, normalised only when a batch is taken.

    Attributes:
        images: uint8 [N, H, W, C].
        labels: int64 [N].
        mean: float32 [C], of pixels in [0, 1].
        std: float32 [C].
        flip: whether a mirrored image keeps its label.
    """

    images: Tensor
    labels: Tensor
    mean: Tensor
    std: Tensor
    flip: bool

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.dtype != torch.uint8 or images.dim() != 4:
            raise DataError(f"images must be uint8 [N, H, W, C], not {_kind(images)}.")
        if labels.dtype != torch.int64 or labels.dim() != 1:
            raise DataError(f"labels must be int64 [N], not {_kind(labels)}.")
        if len(images) != len(labels):
            raise DataError(f"{len(images)} images have {len(labels)} labels.")

    def __len__(self) -> int:
        return len(self.labels)

    def __getstate__(self) -> dict:
        # Arrays are read from Ray's object store in place; tensors would be copied out.
        state = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            k: v.cpu().numpy() if isinstance(v, Tensor) else v for k, v in state.items()
        }

    def __setstate__(self, state: dict) -> None:
        for name, value in state.items():
            if isinstance(value, np.ndarray):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # read-only, as it stays
                    value = torch.from_numpy(value)
            object.__setattr__(self, name, value)

    def take(self, index: Tensor) -> "Split":
        """Return the split of the images at ``index`` (int64 [M])."""
        index = index.to(self.labels.device)
        return replace(self, images=self.images[index], labels=self.labels[index])

    def to(self, device: torch.device | str) -> "Split":
        """Return the same split on ``device``."""
        moved = {
            field.name: value.to(device)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return replace(self, **moved)

    def batches(
        self, size: int, generator: torch.Generator | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield normalised images float32 [B, C, H, W] (channels last) and labels [B].

        Args:
            size: B; the last batch may be smaller.
            generator: when given, images come in a random order, cropped and flipped
                at random; when not, in order and as they are. One of the split's own
                device spares a GPU from waiting for numbers of the CPU.
        """
        if generator is None:
            order = torch.arange(len(self), device=self.labels.device)
        else:
            where = generator.device
            order = torch.randperm(len(self), generator=generator, device=where)
        for index in order.split(size):
            index = index.to(self.labels.device)
            images = self.images[index]
            if generator is not None:
                images = self._augment(images, generator)
            yield self._normalise(images), self.labels[index]

    def _normalise(self, images: Tensor) -> Tensor:
        scaled = (images / 255 - self.mean) / self.std
        return scaled.permute(0, 3, 1, 2)  # NHWC storage is channels-last already

    def _augment(self, images: Tensor, generator: torch.Generator) -> Tensor:
        (batch, height, width, _), pad = images.shape, _CROP_PADDING
        padded = F.pad(images, (0, 0, pad, pad, pad, pad))
        drawn = {"generator": generator, "device": generator.device}
        top, left = torch.randint(2 * pad + 1, (2, batch, 1), **drawn)
        rows = top + torch.arange(height, device=generator.device)
        columns = left + torch.arange(width, device=generator.device)
        if self.flip:
            mirrored = torch.rand(batch, 1, **drawn) < 0.5
            columns = torch.where(mirrored, columns.flip(1), columns)
        rows, columns = rows.to(images.device), columns.to(images.device)
        which = torch.arange(batch, device=images.device)[:, None, None]
        return padded[which, rows[:, :, None], columns[:, None, :]]


@dataclass(frozen=True)
class Data:
    """A data set divided for a search.

    Attributes:
        name: of the data set.
        classes: number of classes.
        protocol: one of ``VALIDATIONS``: where the validation images come from.
        train: what fine-tuning may see.
        validation: what the search scores candidates on.
        holdout: what neither of the two has seen; report this.
        test: the whole test set (with ``test-5k``, validation and holdout together).
    """

    name: str
    classes: int
    protocol: str
    train: Split
    validation: Split
    holdout: Split
    test: Split

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        height, width, channels = self.train.images.shape[1:]
        return channels, height, width

    def check(self) -> None:
        """Raise a :class:`DataError` if a split is empty, or has labels of no class."""
        for name in ("train", "validation", "holdout", "test"):
            split: Split = getattr(self, name)
            if len(split) < 2:
                raise DataError(f"{self.name}: {len(split)} images are too few to {name}.")
            least, most = int(split.labels.min()), int(split.labels.max())
            if least < 0 or most >= self.classes:
                raise DataError(
                    f"{self.name}: labels of the {name} images are in {least}..{most}, "
                    f"but there are {self.classes} classes, 0..{self.classes - 1}."
                )

    def digest(self) -> str:
        """Return the SHA-256 of the images and labels of training and validation."""
        digest = hashlib.sha256()
        for split in (self.train, self.validation):
            for tensor in (split.images, split.labels):
                digest.update(str(tuple(tensor.shape)).encode())
                digest.update(tensor.cpu().contiguous().numpy())
        return digest.hexdigest()

    def to(self, device: torch.device | str) -> "Data":
        """Return the same data set on ``device``."""
        moved = {
            field.name: value.to(device)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Split)
        }
        return replace(self, **moved)


def load_data(
    name: str = "digits",
    data_dir: Path | str | None = None,
    validation: str = "test-5k",
) -> Data:
    """Load the data set ``name`` and divide it.

    Args:
        name: one of ``DATASETS``.
        data_dir: where downloaded sets are kept; default ``home() / "data"``.
        validation: ``test-5k`` takes 5,000 test images (half of a smaller test set) for
            validation and holds out the others, as the paper does; ``train-5k`` takes
            5,000 training images (a tenth of a smaller set) and holds out the test set.

    Raises:
        DataError: unknown name or validation; no file and no way to get one.
    """
    if name not in DATASETS:
        raise DataError(f"unknown dataset {name!r}; known: {', '.join(DATASETS)}.")
    if validation not in VALIDATIONS:
        raise DataError(
            f"unknown validation {validation!r}; known: {', '.join(VALIDATIONS)}."
        )
    folder = Path(data_dir) if data_dir else home() / "data"
    train, test, classes = DATASETS[name](folder)
    generator = torch.Generator().manual_seed(_SPLIT_SEED)
    if validation == "test-5k":
        order = torch.randperm(len(test), generator=generator)
        size = min(_VALIDATION_SIZE, len(test) // 2)
        held, seen = (
            test.take(order[size:].sort()[0]),
            test.take(order[:size].sort()[0]),
        )
    else:
        order = torch.randperm(len(train), generator=generator)
        size = min(_VALIDATION_SIZE, len(train) // 10)
        held, seen = test, train.take(order[:size].sort()[0])
        train = train.take(order[size:].sort()[0])
    data = Data(name, classes, validation, train, seen, held, test)
    data.check()
    return data


def _cifar(name: str, classes: int, folder: Path) -> tuple[Split, Split, int]:
    path = folder / f"{name}.npz"
    if not path.is_file():
        _download_cifar(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {
                key: torch.from_numpy(_array(file, key))
                for key in ("x_train", "y_train", "x_test", "y_test")
            }
    except (
        *(OSError, ValueError, KeyError, EOFError, TypeError, NotImplementedError),
        *(zipfile.BadZipFile, zlib.error, struct.error, SyntaxError, MemoryError),
    ) as error:
        raise DataError(
            f"{path} is damaged ({error}); delete it and run again to fetch it anew."
        ) from error
    mean = torch.tensor([0.485, 0.456, 0.406])
    std = torch.tensor([0.229, 0.224, 0.225])
    train = Split(arrays["x_train"], arrays["y_train"], mean, std, flip=True)
    test = Split(arrays["x_test"], arrays["y_test"], mean, std, flip=True)
    return train, test, classes


def _array(file: np.lib.npyio.NpzFile, key: str) -> np.ndarray:
    """Return an array, once it is known not to be larger than any that is meant."""
    with file.zip.open(f"{key}.npy") as header:
        version = np.lib.format.read_magic(header)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else (
            np.lib.format.read_array_header_2_0
        )  # fmt: skip
        shape, _, dtype = read(header)
    if math.prod(shape) * dtype.itemsize > _LARGEST:
        raise ValueError(f"{key} would take {math.prod(shape) * dtype.itemsize:,} bytes")
    return file[key]


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _download_cifar(path: Path) -> None:
    """Fetch CIFAR-10 or -100 through torchvision and keep it as one file of arrays."""
    from torchvision import datasets

    name = path.stem.upper()
    try:
        parts = {
            part: getattr(datasets, name)(
                path.parent / "download", part == "train", download=True
            )
            for part in ("train", "test")
        }
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"{name} is not at {path} and could not be downloaded ({error}). Make that "
            "file yourself: numpy.savez with x_train [50000, 32, 32, 3] uint8, y_train "
            "[50000] int64, x_test and y_test; or name its folder with --data-dir."
        ) from error
    arrays = {}
    for part, dataset in parts.items():
        arrays[f"x_{part}"] = dataset.data
        arrays[f"y_{part}"] = np.asarray(dataset.targets, np.int64)
    unfinished = path.with_suffix(".partial.npz")
    np.savez(unfinished, **arrays)
    unfinished.rename(path)


def _digits(_: Path) -> tuple[Split, Split, int]:
    """scikit-learn's handwritten digits, 8x8 grey enlarged to 32x32x3."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    grey = torch.from_numpy(bunch.images).float()[:, None] * (255 / 16)
    large = F.interpolate(grey, size=(32, 32), mode="bilinear", antialias=True)
    images = large.round().to(torch.uint8).expand(-1, 3, -1, -1).permute(0, 2, 3, 1)
    labels = torch.from_numpy(bunch.target).long()
    half = torch.full((3,), 0.5)
    everything = Split(images.contiguous(), labels, half, half, flip=False)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))
    return everything.take(order[:997]), everything.take(order[997:]), 10


DATASETS: dict[str, Callable[[Path], tuple[Split, Split, int]]] = {
    "digits": _digits,
    "cifar10": partial(_cifar, "cifar10", 10),
    "cifar100": partial(_cifar, "cifar100", 100),
}
