"""Images with labels on one device, or in a file that is mapped, and batches of them.

No worker processes and no per-image work: cropping, flipping and normalisation happen on
whole batches.

Axis letters: N images, H height, W width, C channels, B batch.
"""

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gnnrl_ray.errors import DataError

# Of random parts of large images: the least and most of their area, and the longest shape.
_AREA, _SHAPE, _TRIES = (0.08, 1.0), 4 / 3, 10


@dataclass(frozen=True)
class ImageFile:
    """A file of images, uint8 [N, H, W, C], that is mapped and not read.

    Attributes:
        path: of the file.
        shape: (N, H, W, C).
        digest: of what it was made from.
    """

    path: str
    shape: tuple[int, int, int, int]
    digest: str

    def map(self) -> Tensor:
        """Return the images, of which only those are read that are asked for.

        Raises:
            DataError: the file is not here, or of another size.
        """
        try:
            images = np.memmap(self.path, np.uint8, "r", shape=self.shape)
        except (OSError, ValueError) as error:
            raise DataError(
                f"{self.path} cannot be mapped ({error}); delete it and it is made anew, "
                "or put $GNNRL_HOME where every node sees it."
            ) from error
        return _without_warning(images)


def _without_warning(array: np.ndarray) -> Tensor:
    """Return the tensor of an array that is read-only, and stays so."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.from_numpy(array)


@dataclass(frozen=True)
class Split:
    """Images with labels, normalised only when a batch is taken.

    Attributes:
        images: uint8 [M, H, W, C]; [N, H, W, C] without ``rows``.
        labels: int64 [N].
        mean: float32 [C], of pixels in [0, 1].
        std: float32 [C].
        flip: whether a mirrored image keeps its label.
        padding: pixels that an image is padded by before it is cropped at random.
        view: side of what a network sees of larger images: the middle, and in training a
            part of random size and shape, as torchvision's ``RandomResizedCrop`` has them;
            default: all of an image, ``padding`` apart.
        file: that ``images`` are a map of, and stay: batches alone go to a device.
        rows: int64 [N], which of the images of a file are of this split.
        channels_last: whether batches have the channels of a pixel side by side in memory.
    """

    images: Tensor
    labels: Tensor
    mean: Tensor
    std: Tensor
    flip: bool
    padding: int = 4
    view: int | None = None
    file: "ImageFile | None" = None
    rows: Tensor | None = None
    channels_last: bool = False

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.dtype != torch.uint8 or images.dim() != 4:
            raise DataError(f"images must be uint8 [N, H, W, C], not {_kind(images)}.")
        if labels.dtype != torch.int64 or labels.dim() != 1:
            raise DataError(f"labels must be int64 [N], not {_kind(labels)}.")
        count = len(images if self.rows is None else self.rows)
        if count != len(labels):
            raise DataError(f"{count} images have {len(labels)} labels.")

    def __len__(self) -> int:
        return len(self.labels)

    def __getstate__(self) -> dict:
        # Arrays are read from Ray's object store in place; tensors would be copied out.
        state = {field.name: getattr(self, field.name) for field in fields(self)}
        if self.file is not None:
            del state["images"]  # mapped again where it is unpickled
        return {
            k: v.cpu().numpy() if isinstance(v, Tensor) else v for k, v in state.items()
        }

    def __setstate__(self, state: dict) -> None:
        for name, value in state.items():
            if isinstance(value, np.ndarray):
                value = _without_warning(value)
            object.__setattr__(self, name, value)
        if self.file is not None:
            object.__setattr__(self, "images", self.file.map())

    @property
    def given(self) -> "Split":
        """What somebody's own functions get: itself."""
        return self

    @property
    def device(self) -> torch.device:
        """Where batches are made."""
        return self.labels.device

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what a network sees."""
        height, width, channels = self.images.shape[1:]
        return channels, self.view or height, self.view or width

    def take(self, index: Tensor) -> "Split":
        """Return the split of the images at ``index`` (int64 [M])."""
        index = index.to(self.labels.device)
        labels = self.labels[index]
        if self.file is None:
            return replace(self, images=self.images[index], labels=labels)
        rows = index.cpu() if self.rows is None else self.rows[index.cpu()]
        return replace(self, rows=rows, labels=labels)

    def to(self, device: torch.device | str) -> "Split":
        """Return the same split on ``device``."""
        moved = {
            field.name: value.to(device)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
            and not (self.file is not None and field.name in ("images", "rows"))
        }
        return replace(self, **moved)

    def add_to(self, digest: Any) -> None:
        """Add images and labels to a digest of ``hashlib``; of a file, what made it."""
        images = self.images
        if self.file is not None:
            digest.update(self.file.digest.encode())
            images = torch.empty(0) if self.rows is None else self.rows
        for tensor in (images, self.labels):
            digest.update(str(tuple(tensor.shape)).encode())
            digest.update(tensor.cpu().contiguous().numpy())

    def batch_count(self, size: int) -> int:
        """Return how many batches of ``size`` one pass takes."""
        return -(-len(self) // size)

    def sample(self, count: int, size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield ``count`` images drawn by ``seed``, as they are, in batches of ``size``."""
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self), generator=generator)
        yield from self.take(order[:count]).batches(size)

    def batches(
        self, size: int, generator: torch.Generator | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield normalised images float32 [B, C, H, W] and labels [B].

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
            images = self._images(index)
            if generator is not None:
                images = self._augment(images, generator)
            elif self.view is not None:
                top, left = ((side - self.view) // 2 for side in images.shape[1:3])
                images = images[:, top : top + self.view, left : left + self.view]
            yield self._normalise(images), self.labels[index]

    def _images(self, index: Tensor) -> Tensor:
        """Return uint8 [B, H, W, C] of ``index`` int64 [B], on the device of the labels."""
        if self.file is None:
            return self.images[index]
        rows = index.cpu() if self.rows is None else self.rows[index.cpu()]
        return self.images[rows].to(self.labels.device, non_blocking=True)

    def _normalise(self, images: Tensor) -> Tensor:
        scaled = (images / 255 - self.mean) / self.std
        images = scaled.permute(0, 3, 1, 2)  # channels last already
        return images if self.channels_last else images.contiguous()

    def _augment(self, images: Tensor, generator: torch.Generator) -> Tensor:
        if self.view is not None:
            return self._resized(images, generator, self.view)
        (batch, height, width, _), pad = images.shape, self.padding
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

    def _resized(self, images: Tensor, generator: torch.Generator, side: int) -> Tensor:
        """Return random parts of ``images`` [B, H, W, C], float [B, side, side, C].

        Their area is 8 to 100 % of an image's, their shape 3:4 to 4:3, as those of
        torchvision's ``RandomResizedCrop``: of ten tries, the first that fits; where none
        does, one is narrowed.
        """
        from torchvision.ops import roi_align

        batch, height, width, _ = images.shape
        drawn = {"generator": generator, "device": generator.device}
        area, shape = torch.rand(2, _TRIES, batch, **drawn).to(images.device)
        top, left, mirror = torch.rand(3, batch, **drawn).to(images.device)
        area = (_AREA[0] + (_AREA[1] - _AREA[0]) * area) * (height * width)
        shape = torch.exp((2 * shape - 1) * math.log(_SHAPE))
        high, wide = (area / shape).sqrt(), (area * shape).sqrt()
        fitting = ((high <= height) & (wide <= width)).byte().argmax(0, keepdim=True)
        high = high.gather(0, fitting)[0].clamp(max=height)
        wide = wide.gather(0, fitting)[0].clamp(max=width)
        top, left = top * (height - high), left * (width - wide)
        boxes = torch.stack([left, top, left + wide, top + high], 1)
        numbers = torch.arange(batch, device=images.device)[:, None].float()
        resized = roi_align(
            images.permute(0, 3, 1, 2).float(), torch.cat([numbers, boxes], 1),
            (side, side), aligned=True,
        )  # fmt: skip
        if self.flip:
            flipped = resized.flip(3)
            resized = torch.where((mirror < 0.5)[:, None, None, None], flipped, resized)
        return resized.permute(0, 2, 3, 1)


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
