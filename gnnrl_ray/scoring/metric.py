"""What a network is worth, by a function of the user's own."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from gnnrl_ray.errors import InputError
from gnnrl_ray.tracing.network import copied

# (network, validation data as it was given) -> a number, or several by name.
ScoreFunction = Callable[[nn.Module, Any], float | Mapping[str, float]]


class ScoreError(InputError):
    """A function of the user's that raised, or returned what is no score."""


@dataclass(frozen=True)
class Metric:
    """A score of the user's own in place of top-1 accuracy; larger is better.

    .. code-block:: python

        search(network, loaders, score=Metric(mean_iou, "mIoU"))

    Attributes:
        function: of a copy of a network, in evaluation mode, and the validation data as it
            was given; returns a number, or several by name, of which that called ``name``
            counts and the others are kept in the journal. The network is called as the
            dense one is.
        name: what it is called.
        low: that it cannot be below, as where nothing has been learnt.
        high: that it cannot be above.
    """

    function: ScoreFunction
    name: str = "score"
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise InputError(f"`score` {self.function!r} is no function.")
        if not (math.isfinite(self.low) and self.low < self.high < math.inf):
            raise InputError(
                f"the bounds of {self.name} are {self.low} and {self.high}; they have to "
                "be finite, and the first the smaller."
            )

    def __call__(self, network: nn.Module, validation: Any) -> dict[str, float]:
        """Return what the function does, as numbers by name.

        Raises:
            ScoreError: it raised, or its score is no number within the bounds.
        """
        shown = copied(network)  # whose statistics, say, may follow what it is shown
        try:
            with torch.no_grad():
                found = self.function(shown, validation)
        except Exception as error:
            raise ScoreError(
                f"{self.name}: the score function raised {type(error).__name__}: {error}"
            ) from error
        several = found if isinstance(found, Mapping) else {self.name: found}
        try:
            numbers = {str(name): float(value) for name, value in several.items()}
        except (TypeError, ValueError):
            raise ScoreError(
                f"{self.name}: the score function returned {found!r}, not a number."
            ) from None
        if self.name not in numbers:
            raise ScoreError(
                f"the score function returned {', '.join(numbers) or 'nothing'}; one of "
                f"them has to be {self.name!r}, which counts."
            )
        if not self.low <= numbers[self.name] <= self.high:
            raise ScoreError(
                f"the score function returned {self.name} = {numbers[self.name]}, which is "
                f"not in [{self.low:g}, {self.high:g}]; say its bounds with "
                "Metric(function, name, low, high)."
            )
        return numbers

    def share(self, numbers: Mapping[str, float]) -> float:
        """Return how good that is, in [0, 1]: what stands in place of the accuracy."""
        return (numbers[self.name] - self.low) / (self.high - self.low)
