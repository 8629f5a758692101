"""What a trace, or a removal, must not change: outputs and multiply-accumulates."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from gnnrl_ray.data.loader import InputShape
from gnnrl_ray.errors import Notice
from gnnrl_ray.tracing.network import TraceError, cannot_run, evaluating, images_like
from gnnrl_ray.tracing.proxies import tensors_in

_IMAGES = 3  # other than a trace's: nothing may hold for one number of images alone
# Of the largest number: beyond it, rounding is told from what is wrong in double precision,
# and where that cannot be run, what is wrong is wrong by far more.
_TOLERANCE, _LOOSE = 1e-5, 1e-3
SAME = 1e-9  # of the same operations on the same numbers
_ROUNDING = 1e-14  # of images in double precision


@dataclass(frozen=True)
class Reference:
    """What a network makes of some images.

    Attributes:
        network: itself.
        tensors: what stands in place of some of its parameters, by their names.
        images: [B, C, H, W], one for each that it takes.
        outputs: its tensors, in order.
        macs: multiply-accumulates for one image.
    """

    network: nn.Module
    tensors: Mapping[str, Tensor]
    images: tuple[Tensor, ...]
    outputs: list[Tensor]
    macs: int

    @classmethod
    def of(
        cls,
        network: nn.Module,
        input_shape: InputShape,
        tensors: Mapping[str, Tensor] | None = None,
    ) -> "Reference":
        """Run ``network`` on random images.

        Args:
            network: left as it is.
            input_shape: (C, H, W) of one image, or one such for each that it takes.
            tensors: in place of some of its parameters, by their names.

        Raises:
            TraceError: it does not take such images.
        """
        images = images_like(network, input_shape, _IMAGES)
        generator = torch.Generator(images[0].device).manual_seed(0)
        for image in images:
            image.normal_(generator=generator)
        try:
            outputs, macs = _counted(network, images, tensors or {})
        except Exception as error:
            raise cannot_run(input_shape, error) from error
        if not outputs:
            raise TraceError(
                "the network returns no tensors that can be looked at: tuples, lists, "
                "dicts, named tuples and dataclasses of tensors can."
            )
        return cls(network, tensors or {}, images, outputs, macs)

    def check(self, other: nn.Module, what: str, tolerance: float = _TOLERANCE) -> int:
        """Run ``other``, too, and return its multiply-accumulates for one image.

        Args:
            other: is to return the same.
            what: says what that is.
            tolerance: of the largest number.

        Raises:
            TraceError: ``other`` returns anything else.
        """
        try:
            outputs, macs = _counted(other, self.images, {})
        except Exception as error:
            reason = str(error).split("\n")[0]
            raise TraceError(
                f"{what} cannot be run on {_IMAGES} images: {reason}"
            ) from error
        shapes = [[list(t.shape) for t in found] for found in (outputs, self.outputs)]
        if shapes[0] != shapes[1]:
            raise TraceError(
                f"{what} returns tensors of shapes {shapes[0]} where the network returns "
                f"{shapes[1]}: code that goes through images one by one cannot be followed."
            )
        difference = _difference(outputs, self.outputs)
        if difference > tolerance and self._is_random():
            warnings.warn(
                "the network returns something else each time it is run, in evaluation "
                "mode, too, so what is made of it cannot be checked, and its scores vary; "
                "does it call F.dropout without `training=self.training`?",
                Notice,
                stacklevel=2,
            )
            return macs
        if difference > tolerance:
            difference = self._difference_in_double(other, difference)
        if difference > tolerance:
            raise TraceError(
                f"{what} returns something else than the network, by {difference:.3%} of "
                "its largest output: something in its code has not been understood. "
                "Please report it."
            )
        return macs

    def _is_random(self) -> bool:
        again = _run(self.network, self.images, self.tensors)
        return _difference(again, self.outputs) > _LOOSE

    def _difference_in_double(self, other: nn.Module, difference: float) -> float:
        """Compare once more: a hundred layers may have made that of rounding.

        Where they make as much of images that are changed by rounding alone, nothing can be
        said, and the difference is none.
        """
        try:
            images = tuple(image.double() for image in self.images)
            tensors = _in_double(self.network, self.tensors)
            ours = _run(other, images, _in_double(other, {}))
            theirs = _run(self.network, images, tensors)
            shaken = tuple(image * (1 + _ROUNDING) for image in images)
            shaken = _run(self.network, shaken, tensors)
            difference = _difference(ours, theirs)
            return difference if difference > 10 * _difference(shaken, theirs) else 0.0
        except Exception:  # code that insists on its own format
            return difference if difference > _LOOSE else 0.0

    def check_macs(self, counted: int, once: int = 0) -> None:
        """Raise a :class:`TraceError` if not as many multiply-accumulates were counted.

        Args:
            counted: for one image.
            once: of that, once for all images.
        """
        counted = counted - once + once // _IMAGES
        if counted != self.macs:
            raise TraceError(
                f"{counted:,} multiply-accumulates have been counted where the network has "
                f"{self.macs:,}: something in its code has not been understood. Please "
                "report it."
            )


def _counted(
    network: nn.Module, images: tuple[Tensor, ...], tensors: Mapping[str, Tensor]
) -> tuple[list[Tensor], int]:
    """Return outputs, and multiply-accumulates for one image."""
    with FlopCounterMode(display=False) as counter:
        outputs = _run(network, images, tensors)
    return outputs, counter.get_total_flops() // 2 // len(images[0])


def _run(
    network: nn.Module, images: tuple[Tensor, ...], tensors: Mapping[str, Tensor]
) -> list[Tensor]:
    images = tuple(image.clone() for image in images)
    with evaluating(network), torch.no_grad():
        return tensors_in(functional_call(network, dict(tensors), images))


def trains(network: nn.Module, reference: Reference) -> bool:
    """Say whether ``network`` takes images in training, too, where it may do more."""
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    try:
        with evaluating(network), torch.no_grad(), torch.random.fork_rng():
            images = tuple(image.clone() for image in reference.images)
            functional_call(network.train(), buffers, images)
    except Exception:
        return False
    return True


def _in_double(network: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    every = dict(network.named_parameters()) | dict(network.named_buffers()) | tensors
    return {name: t.double() if t.is_floating_point() else t for name, t in every.items()}


def _difference(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """Return the largest difference, as a share of the largest number."""
    if [t.shape for t in ours] != [t.shape for t in theirs]:
        return float("inf")
    worst = 0.0
    for a, b in zip(ours, theirs, strict=True):
        if a.numel() and not torch.equal(a, b):
            finite = b.isfinite()
            if not torch.equal(finite, a.isfinite()):
                return float("inf")
            if not finite.any():  # then they are alike in what can be said of them
                continue
            a, b = a[finite].double(), b[finite].double()
            worst = max(worst, float((a - b).abs().max() / b.abs().max().clamp(min=1e-30)))
    return worst
