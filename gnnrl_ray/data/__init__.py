"""Data sets by name, divided for a search.

``split`` has images with labels and makes batches of them; each data set has a file.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from gnnrl_ray.data.cifar import load_cifar
from gnnrl_ray.data.digits import load_digits
from gnnrl_ray.data.folder import load_folder
from gnnrl_ray.data.loader import InputShape, Loader, described
from gnnrl_ray.data.split import Split
from gnnrl_ray.errors import DataError
from gnnrl_ray.home import home
from gnnrl_ray.process import torch_as_it_starts
from gnnrl_ray.settings import DATASETS, FOLDER, check_dataset
from gnnrl_ray.zoo import import_callable

_VALIDATION_SIZE = 5000
# The split is part of the protocol, so it does not follow the seed of a search.
_SPLIT_SEED = 0

# From the folder of the data: training and test split, and the number of classes.
LOADERS: dict[str, Callable[[Path], tuple[Split, Split, int]]] = {
    "digits": lambda _: load_digits(),
    "cifar10": partial(load_cifar, "cifar10", 10),
    "cifar100": partial(load_cifar, "cifar100", 100),
}


@dataclass(frozen=True)
class Data:
    """A data set divided for a search.

    .. code-block:: python

        data = Data.of(train_loader, validation_loader)

    Attributes:
        name: of the data set.
        classes: number of classes; None where that is not known.
        protocol: where the validation images come from: one of
            :data:`~gnnrl_ray.settings.VALIDATIONS`; or ``given``, by the user.
        train: what fine-tuning may see.
        validation: what the search scores candidates on.
        holdout: what neither of the two has seen, if there is any; report this.
        test: the whole test set (with ``test-5k``, validation and holdout together).
    """

    name: str
    classes: int | None
    protocol: str
    train: Split | Loader
    validation: Split | Loader
    holdout: Split | Loader | None = None
    test: Split | Loader | None = None

    @classmethod
    def of(
        cls,
        train: Split | Iterable,
        validation: Split | Iterable,
        test: Split | Iterable | None = None,
        *,
        name: str = "own",
        classes: int | None = None,
    ) -> "Data":
        """Return a data set of the user's own.

        Args:
            train: what fine-tuning may see: pairs of images and targets, in batches, that
                can be gone through again and again, such as a ``DataLoader``; or a
                :class:`Split`.
            validation: what the search scores candidates on, likewise.
            test: what the search never sees, likewise.
            name: what it is called.
            classes: number of classes, to check labels.

        Raises:
            DataError: a loader yields something else, or nothing.
        """
        held = None if test is None else as_split(test, "test")
        data = cls(
            name, classes, "given", as_split(train, "training"),
            as_split(validation, "validation"), held, held,
        )  # fmt: skip
        data.check()
        return data

    @property
    def splits(self) -> dict[str, Split | Loader]:
        """By name, those that there are."""
        names = ("train", "validation", "holdout", "test")
        every = {name: getattr(self, name) for name in names}
        return {name: split for name, split in every.items() if split is not None}

    @property
    def input_shape(self) -> InputShape:
        """(C, H, W) of one image; of several at once, one such for each."""
        return self.train.input_shape

    def check(self) -> None:
        """Raise a :class:`DataError` if a split is empty, or has labels of no class."""
        for name, split in self.splits.items():
            if isinstance(split, Loader):
                split.check()
                continue
            if len(split) < 2:
                raise DataError(
                    f"{self.name}: {len(split)} {name} images are too few; there have to "
                    "be two."
                )
            least, most = int(split.labels.min()), int(split.labels.max())
            if least < 0 or (self.classes is not None and most >= self.classes):
                classes = self.classes or most + 1
                raise DataError(
                    f"{self.name}: labels of the {name} images are in {least}..{most}, "
                    f"but there are {classes} classes, 0..{classes - 1}."
                )

    def digest(self) -> str:
        """Return the SHA-256 of the images and labels of training and validation."""
        digest = hashlib.sha256()
        for split in (self.train, self.validation):
            split.add_to(digest)
        return digest.hexdigest()

    def to(self, device: torch.device | str) -> "Data":
        """Return the same data set on ``device``."""
        moved = {name: split.to(device) for name, split in self.splits.items()}
        return replace(self, **moved)


@torch_as_it_starts()
def load_data(
    name: str = "digits",
    data_dir: Path | str | None = None,
    validation: str = "test-5k",
    image_size: int | None = None,
) -> Data:
    """Load the data set ``name`` and divide it.

    Args:
        name: one of ``DATASETS``; ``folder:PATH`` with images of your own
            (:func:`~gnnrl_ray.data.folder.load_folder`); or ``package.module:callable``,
            which returns a :class:`Data`, or what :meth:`Data.of` takes.
        data_dir: where downloaded sets are kept, and a PATH is looked for that is not
            here; default ``home() / "data"``.
        validation: ``test-5k`` takes 5,000 test images (half of a smaller test set) for
            validation and holds out the others, as the paper does; ``train-5k`` takes
            5,000 training images (a tenth of a smaller set) and holds out the test set.
        image_size: side of the images of a folder; see there.

    Raises:
        DataError: unknown name or validation; no file and no way to get one.
    """
    check_dataset(name, validation)
    if is_code(name):
        return _called(name)
    if image_size is not None and name in DATASETS:
        raise DataError(f"--image-size is of images of your own; {name} has its size.")
    folder = Path(data_dir) if data_dir else home() / "data"
    if name in DATASETS:
        train, test, classes = LOADERS[name](folder)
    else:
        path = Path(name.removeprefix(FOLDER))
        path = path if path.is_dir() else folder / path
        train, test, classes = load_folder(path, image_size)
        name = path.name
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


def is_code(name: str) -> bool:
    """Say whether loading the data set ``name`` runs code that is not ours."""
    return ":" in name and not name.startswith(FOLDER)


def _called(name: str) -> Data:
    """Return what a callable of the user's does, as a data set."""
    module, _, attribute = name.partition(":")
    make = import_callable(module, attribute)
    try:
        made = make()
    except Exception as error:
        raise DataError(
            f"--dataset {name} raised {type(error).__name__}: {error}"
        ) from error
    return as_data(made, attribute)


def as_split(given: Split | Loader | Iterable, role: str) -> Split | Loader:
    """Return ``given`` if it is a split already, else a :class:`Loader` of it.

    Raises:
        DataError: it cannot be gone through; ``role`` is what the error calls it.
    """
    if isinstance(given, Split | Loader):
        return given
    if not isinstance(given, Iterable):
        raise DataError(f"{given!r} is no {role} loader: it cannot be iterated.")
    return Loader(given, role)


def as_data(given: object, name: str = "own") -> Data:
    """Return ``given`` if it is a :class:`Data`, else :meth:`Data.of` two or three loaders.

    Raises:
        DataError: it is neither.
    """
    if isinstance(given, Data):
        return given
    if isinstance(given, Sequence) and len(given) in (2, 3):
        return Data.of(*given, name=name)
    raise DataError(
        "data have to be a gnnrl_ray.Data, or two or three loaders for training, "
        f"validation and testing, not {described(given)}."
    )
