"""CIFAR-10 and CIFAR-100 as one file of arrays each."""

import math
import struct
import zipfile
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from gnnrl_ray.data.split import Split
from gnnrl_ray.errors import DataError
from gnnrl_ray.storage import written_whole

_LARGEST = 2**30  # bytes of one array; CIFAR's largest has 1.5e8


def load_cifar(name: str, classes: int, folder: Path) -> tuple[Split, Split, int]:
    """Return training and test split of ``folder``/``name``.npz, and the classes.

    Raises:
        DataError: it is damaged, or not there and cannot be downloaded.
    """
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


def _download_cifar(path: Path) -> None:
    """Fetch CIFAR-10 or -100 through torchvision and keep it as one file of arrays."""
    from torchvision import datasets

    name, arrays = path.stem.upper(), {}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=path.parent) as scratch:
            for part in ("train", "test"):
                dataset = getattr(datasets, name)(scratch, part == "train", download=True)
                arrays[f"x_{part}"] = dataset.data
                arrays[f"y_{part}"] = np.asarray(dataset.targets, np.int64)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"{name} is not at {path} and could not be downloaded ({error}). Make that "
            "file yourself: numpy.savez with x_train [50000, 32, 32, 3] uint8, y_train "
            "[50000] int64, x_test and y_test; or name its folder with --data-dir."
        ) from error
    with written_whole(path) as file:
        np.savez(file, **arrays)
