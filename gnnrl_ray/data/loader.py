"""Batches that the user's own loader makes: any (images, targets), of any task.

Axis letters: B batch, N images, C channels.
"""

import copy
import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from gnnrl_ray.data.records import mapped
from gnnrl_ray.errors import DataError

# (C, H, W) of one image, or one such for each image that a network takes at once.
InputShape = Sequence[int] | Sequence[Sequence[int]]
# What a loader yields for a network that takes several images: one of each, in order.
Images = Tensor | tuple[Tensor, ...]


_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Loader:
    """What stands in place of a :class:`~gnnrl_ray.data.split.Split`.

    Order, size and augmentation of batches are the loader's own. Where these are drawn by
    torch's generator, as those of ``torch.utils.data.DataLoader`` are, they follow the
    seed that is asked for.

    Attributes:
        given: what yields pairs of images and targets, and can be gone through again.
            Images are a floating-point tensor [B, C, ...], or a sequence of such for a
            network that takes several; targets are whatever loss and score take.
        name: what errors call it.
        device: that batches are moved to.
    """

    given: Iterable
    name: str = "loader"
    device: torch.device = _CPU

    def __getstate__(self) -> dict:
        given = self.given
        if isinstance(given, DataLoader) and given._iterator is not None:
            # Its workers, which stay between passes, are of this process.
            given = copy.copy(given)
            given._iterator = None
        return self.__dict__ | {"given": given}

    def __len__(self) -> int:
        """N; known from the loader's data set, or counted once."""
        return self._sizes[0]

    @cached_property
    def _sizes(self) -> tuple[int, int]:
        """How many images and batches there are."""
        counted = getattr(self.given, "dataset", None)
        try:
            if not getattr(self.given, "drop_last", False):
                return len(counted), len(self.given)  # type: ignore[arg-type]
        except TypeError:  # it does not know
            pass
        images = batches = 0
        for batch, _ in self.batches():
            images += len(each_of(batch)[0])
            batches += 1
        return images, batches

    def batch_count(self, size: int) -> int:
        """Return how many batches one pass has, whatever ``size`` is wanted."""
        return self._sizes[1]

    @cached_property
    def input_shape(self) -> InputShape:
        """(C, H, W) of one image; of several at once, one such for each."""
        images, _ = self.first()
        if isinstance(images, tuple):
            return tuple(tuple(each.shape[1:]) for each in images)
        return tuple(images.shape[1:])

    def check(self) -> None:
        """Raise a :class:`DataError` if its first batch is none; it is looked at once."""
        if isinstance(self.given, Iterator):  # it is its own pass, and the only one
            raise self._gone_through
        _ = self.input_shape

    def first(self) -> tuple[Images, Any]:
        """Return the first batch; raises as :meth:`batches` does."""
        return next(self.batches())

    def to(self, device: torch.device | str) -> "Loader":
        """Return the same loader, with batches on ``device``."""
        return replace(self, device=torch.device(device))

    def sample(self, count: int, size: int, seed: int) -> Iterator[tuple[Images, Any]]:
        """Yield the first batches, of ``count`` images together; see ``Split.sample``."""
        seen = 0
        for images, targets in self.batches(size, torch.Generator().manual_seed(seed)):
            yield images, targets
            seen += len(each_of(images)[0])
            if seen >= count:
                return

    def batches(
        self,
        size: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Iterator[tuple[Images, Any]]:
        """Yield what the loader yields, on the device.

        Args:
            size: is the loader's own.
            generator: its state seeds torch's for this pass, and moves on.

        Raises:
            DataError: there is none, or one is no pair of images and targets.
        """
        batch = None
        for batch in _seeded(self.given, generator):
            yield self._checked(batch)
        if batch is None:
            raise self._gone_through

    @property
    def _gone_through(self) -> DataError:
        return DataError(
            f"the {self.name} loader yields nothing, or can be gone through only once, as "
            "a generator can; a list or a DataLoader can be gone through again."
        )

    def _checked(self, batch: object) -> tuple[Images, Any]:
        if not isinstance(batch, Sequence) or isinstance(batch, str) or len(batch) != 2:
            raise DataError(
                f"the {self.name} loader has to yield pairs of images and targets, but "
                f"yields {described(batch)}."
            )
        images, targets = batch
        if isinstance(images, list | tuple):
            images = tuple(images)
        for each in each_of(images):
            if not isinstance(each, Tensor) or not each.is_floating_point():
                raise DataError(
                    f"the {self.name} loader has to yield images as floating-point "
                    f"tensors [B, C, H, W], but yields {described(each)}."
                )
        # Copies: a network may change images in place, and a list yields them again.
        copied = mapped(partial(self._move, copy=True), images)
        return copied, mapped(self._move, targets)

    def _move(self, tensor: Tensor, copy: bool = False) -> Tensor:
        return tensor.to(self.device, non_blocking=True, copy=copy)

    def add_to(self, digest: Any) -> None:
        """Add the shapes of the first batch to a digest of ``hashlib``, and its size.

        What is in it may be augmented, and another one the next time.
        """
        digest.update(str(self.input_shape).encode())
        digest.update(str(len(self)).encode())


def shapes_of(input_shape: InputShape) -> tuple[tuple[int, ...], ...]:
    """Return the shape of each image that a network takes at once.

    Raises:
        DataError: it is no shape.
    """
    try:
        several = [tuple(shape) for shape in input_shape if isinstance(shape, Sequence)]
        shapes = tuple(
            tuple(operator.index(side) for side in shape)
            for shape in several or [input_shape]
        )
    except TypeError:
        shapes = ()
    if not shapes or min((side for shape in shapes for side in shape), default=0) < 1:
        raise DataError(
            "the shape of an image is (C, H, W), whole numbers from 1 on, got "
            f"{input_shape}."
        )
    return shapes


def each_of(images: Images) -> tuple[Tensor, ...]:
    """Return ``images``, several or one, as several."""
    return images if isinstance(images, tuple) else (images,)


def forward(network: nn.Module, images: Images) -> Any:
    """Return what ``network`` makes of images, one of each shape that it takes."""
    return network(*each_of(images))


def _seeded(given: Iterable, generator: torch.Generator | None) -> Iterator:
    """Go through ``given``; with a ``generator``, torch's own begins where it says."""
    if generator is None:
        yield from given
        return
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        iterator = iter(given)
        state = torch.get_rng_state()
    while True:
        # What others draw between two batches is not to change them, nor the reverse.
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(state)
            try:
                batch = next(iterator)
            except StopIteration:
                return
            state = torch.get_rng_state()
        yield batch


def described(value: object) -> str:
    """Say what kind of thing a loader or a network has returned."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"
