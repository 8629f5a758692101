"""How long a candidate takes, from a table of what its layers take.

Axis letters: G prunable groups, L layers, S networks that were timed, K terms.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Self

import numpy as np
from scipy.optimize import nnls

from gnnrl_ray.pruning.costs import Costs

# Kernels work on so many channels at once: a few more take as long as these together.
_LANES = 16


@dataclass(frozen=True, eq=False)
class LatencyTable:
    """What a pass takes on one device: the sum over layers, and over all else.

    Every term has a weight that is not negative, so that narrower is never slower.

    Attributes:
        device: that was measured.
        batch: images at a time.
        layers: L rows of K weights, microseconds for each term.
        rest: two weights: of every pass, and for each number that operations return.
        error: mean share by which networks that it was not fitted to take another time.
    """

    device: str
    batch: int
    layers: tuple[tuple[float, ...], ...]
    rest: tuple[float, float]
    error: float = 0.0

    @classmethod
    def fitted(
        cls, costs: Costs, widths: np.ndarray, layers: np.ndarray, passes: np.ndarray,
        **facts: object,
    ) -> Self:  # fmt: skip
        """Return the table that explains what has been measured.

        Args:
            costs: of the network.
            widths: int [S, G], of networks that were timed.
            layers: float [S, L], microseconds of each layer in each of them.
            passes: float [S], of the whole.
            **facts: ``device`` and ``batch``.
        """
        terms = _terms(costs, widths)  # [S, L, K]
        found = [
            _weights(terms[:, layer], layers[:, layer]) for layer in range(terms.shape[1])
        ]
        left = np.maximum(passes - layers.sum(1), 0)
        numbers = np.stack([np.ones(len(widths)), costs.elements(widths)], 1)
        first, second = _weights(numbers, left)
        return cls(layers=tuple(map(tuple, found)), rest=(first, second), **facts)

    def __call__(self, costs: Costs, widths: np.ndarray) -> np.ndarray:
        """Return the microseconds [...] of widths int [..., G]."""
        of_layers = (_terms(costs, widths) * self._layers).sum((-1, -2))
        return of_layers + self.rest[0] + self.rest[1] * costs.elements(widths)

    @property
    def unit(self) -> str:
        """What is counted."""
        return f"microseconds at batch {self.batch} on {self.device}"

    @cached_property
    def _layers(self) -> np.ndarray:
        return np.array(self.layers)

    def to_dict(self) -> dict:
        """Return the fields, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict) -> Self:
        """Return the table whose fields are ``fields``.

        Raises:
            KeyError, TypeError, ValueError: they are of no table.
        """
        layers = np.array(fields["layers"], float)
        rest = np.array(fields["rest"], float)
        if layers.ndim != 2 or rest.shape != (2,) or min(layers.min(), rest.min()) < 0:
            raise ValueError("it is no table of latencies")
        return cls(
            str(fields["device"]), int(fields["batch"]), tuple(map(tuple, layers.tolist())),
            (float(rest[0]), float(rest[1])), float(fields["error"]),
        )  # fmt: skip


def _terms(costs: Costs, widths: np.ndarray) -> np.ndarray:
    """[..., L, K]: what the time of a layer may grow with."""
    inputs, outputs = costs.layer_widths(widths)
    wide, high = (np.ceil(channels / _LANES) for channels in (inputs, outputs))
    terms = (
        np.ones_like(inputs), inputs, outputs, wide, high,
        inputs * outputs, wide * outputs, inputs * high, wide * high,
    )  # fmt: skip
    return np.stack(terms, -1)


def _weights(terms: np.ndarray, times: np.ndarray) -> Sequence[float]:
    """Return what is not negative and explains ``times`` [S] best, as a share of them."""
    scale = np.maximum(times, 1e-3)
    sizes = np.maximum(np.abs(terms).max(0), 1e-12)
    found, _ = nnls(terms / sizes / scale[:, None], times / scale)
    return (found / sizes).tolist()
