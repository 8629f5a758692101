"""Folders of images, decoded once into a file that is mapped.

The tree is that of torchvision's ``ImageFolder``: a folder for each class, under
``train/`` and ``val/`` (or ``test/``) as for ImageNet; or without these, and then a fifth
of each class is for testing.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import track

from gnnrl_ray.data.split import ImageFile, Split
from gnnrl_ray.errors import DataError
from gnnrl_ray.home import home
from gnnrl_ray.settings import FOLDER
from gnnrl_ray.storage import written_whole

if TYPE_CHECKING:
    from torchvision.datasets import ImageFolder

_SIZE = 224  # of a view, where images differ in size
_MARGIN = 16 / 224  # that is kept on each side of a view, as a share of it
_AT_ONCE = 256  # images that are decoded before they are written
_TEST_EVERY = 5  # where nothing says what is for testing
# torchvision's, of ImageNet.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Samples = Sequence[tuple[str, int]]  # path and class of each image


def load_folder(path: Path, image_size: int | None = None) -> tuple[Split, Split, int]:
    """Return training and test split of the images under ``path``, and the classes.

    Images of one size stay as they are, and are cropped as CIFAR's. Others are what
    torchvision's transforms for ImageNet make of them: the shorter side becomes 256 / 224
    of ``image_size``, and the middle of that is kept; of it, a network sees the middle
    ``image_size``, or a random part in training.

    Args:
        path: the folder.
        image_size: side of what a network sees; default: that of the images if they are
            all of one size, else 224.

    Raises:
        DataError: it is not such a tree; a file in it is no image; the disk is full.
    """
    train, test, classes = _listed(path)
    files = [name for name, _ in (*train, *test)]
    sizes = {_size(name) for name in files} if image_size is None else set()
    if len(sizes) == 1:
        ((width, height),), view, side = sizes, None, None
        shape = (height, width)
    else:
        view = image_size or _SIZE
        side = view + 2 * round(view * _MARGIN)
        shape = (side, side)
    kept = _kept(path, files, shape, side)
    images = kept.map()
    rows = torch.arange(len(files)).split([len(train), len(test)])

    def split(samples: Samples, rows: torch.Tensor) -> Split:
        labels = torch.tensor([label for _, label in samples], dtype=torch.int64)
        return Split(
            images, labels, torch.tensor(_MEAN), torch.tensor(_STD), flip=True,
            padding=min(shape) // 8, view=view, file=kept, rows=rows,
        )  # fmt: skip

    return split(train, rows[0]), split(test, rows[1]), classes


def _listed(path: Path) -> tuple[Samples, Samples, int]:
    """Return the images for training and for testing, and the number of classes."""
    if not path.is_dir():
        raise DataError(f"--dataset {FOLDER}{path}: there is no such folder.")
    parts = [path / name for name in ("train", "val", "test") if (path / name).is_dir()]
    if path / "train" in parts and len(parts) > 1:
        train, test = (_images(part) for part in parts[:2])
        if train.classes != test.classes:
            apart = sorted(set(train.classes) ^ set(test.classes))
            raise DataError(
                f"{parts[0]} and {parts[1]} have to hold the same classes, and "
                f"{apart[0]!r} is in one of them only."
            )
        found = train.samples, test.samples
        classes = train.classes
    else:
        every = _images(path)
        groups = [
            [s for s in every.samples if s[1] == c] for c in range(len(every.classes))
        ]
        found = (
            [s for g in groups for n, s in enumerate(g, 1) if n % _TEST_EVERY],
            [s for g in groups for n, s in enumerate(g, 1) if n % _TEST_EVERY == 0],
        )
        classes = every.classes
    if len(classes) < 2:
        only = "val/ is missing" if classes == ["train"] else "there have to be two"
        raise DataError(f"{path} holds one class, {classes[0]!r}; {only}.")
    return *found, len(classes)


def _images(path: Path) -> "ImageFolder":
    from torchvision.datasets import ImageFolder

    try:
        return ImageFolder(str(path))
    except (FileNotFoundError, OSError) as error:
        raise DataError(
            f"{path} is no folder of images, with one for each class: "
            f"{str(error).splitlines()[0]}"
        ) from error


def _size(name: str) -> tuple[int, int]:
    """Return width and height of an image, of which only the head is read."""
    with _opened(name) as image:
        return image.size


@contextmanager
def _opened(name: str) -> Iterator[Image.Image]:
    """Open an image; whatever is wrong with it is an error that names the file."""
    try:
        with Image.open(name) as image:
            yield image
    except Exception as error:
        raise DataError(
            f"{name} cannot be read as an image ({type(error).__name__}: {error}); mend or "
            "delete it."
        ) from error


def _decoded(name: str, side: int | None) -> tuple[np.ndarray, bytes]:
    """Return uint8 [H, W, 3], and the hash of the image's file.

    With a ``side``, it is the middle of the image at that size.
    """
    from torchvision.transforms import functional as transforms

    with _opened(name) as image:
        hashed = hashlib.sha256(Path(name).read_bytes()).digest()
        image = image.convert("RGB")
        if side is not None:
            image = transforms.center_crop(transforms.resize(image, [side]), [side])
        return np.asarray(image), hashed


def _kept(
    path: Path, files: Sequence[str], shape: tuple[int, int], side: int | None
) -> ImageFile:
    """Return the file with all images, making it if it is not there.

    It is looked for by what the disk says of the images; what they are, wherever and
    whenever they were copied, is written down beside it.
    """
    made_of = hashlib.sha256(json.dumps([*shape, side]).encode())
    names = [os.path.relpath(file, path) for file in files]
    for name, file in zip(names, files, strict=True):
        about = os.stat(file)
        told = [name, about.st_size, about.st_mtime_ns]
        made_of.update(json.dumps(told).encode())
    called = f"{path.resolve().name}-{made_of.hexdigest()[:16]}"
    where, beside = (home() / "images" / f"{called}.{end}" for end in ("uint8", "sha256"))
    sized = (len(files), *shape, 3)
    if not (where.is_file() and beside.is_file()):
        digest = hashlib.sha256(json.dumps([*shape, side, names]).encode())
        try:
            _decode_all(files, where, side, digest)
            with written_whole(beside) as file:
                file.write(digest.hexdigest().encode())
        except OSError as error:
            size = np.prod(sized, dtype=float) / 1e9
            raise DataError(
                f"the decoded images take {size:.1f} GB at {where.parent}: {error}. Set "
                "$GNNRL_HOME to a disk that has room."
            ) from error
    return ImageFile(str(where), sized, beside.read_text())


def _decode_all(
    files: Sequence[str], where: Path, side: int | None, digest: "hashlib._Hash"
) -> None:
    """Write the images, and add them to ``digest``; the file is there when it is whole."""
    console = Console(stderr=True)
    with written_whole(where) as file, ThreadPoolExecutor() as pool:
        parts = [files[n : n + _AT_ONCE] for n in range(0, len(files), _AT_ONCE)]
        for part in track(
            parts, f"decoding {len(files):,} images", console=console, transient=True,
            disable=not console.is_terminal,
        ):  # fmt: skip
            for image, hashed in pool.map(partial(_decoded, side=side), part):
                file.write(image.tobytes())
                digest.update(hashed)
