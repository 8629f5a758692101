"""What a candidate scored.

Axis letter: G prunable groups.
"""

import math
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Outcome:
    """What one candidate scored.

    Attributes:
        widths: [G], channels kept.
        macs: multiply-accumulates of one image.
        params: trainable parameters.
        accuracy: top-1 on the validation split, in [0, 1].
        reward: minus the error, in [-1, 0] (GNN-RL Eq. 8).
        seconds: that pruning, fine-tuning and evaluation took.
        images: how many were scored, where an early stop spared the others; the accuracy
            is an estimate then, and too low to be among the best.
        measured: what a score of the user's own returned, by name; ``accuracy`` is then
            where it lies between its bounds.
    """

    widths: tuple[int, ...]
    macs: int
    params: int
    accuracy: float
    reward: float
    seconds: float
    images: int | None = None
    measured: dict[str, float] | None = None

    def to_dict(self) -> dict:
        """Return the fields, ready for JSON."""
        fields = asdict(self)
        if self.measured is None:
            del fields["measured"]
        return fields

    @classmethod
    def from_dict(cls, fields: dict) -> "Outcome":
        """Return the outcome whose fields are among ``fields``.

        Raises:
            ValueError: one is missing, of another kind, or cannot be.
        """
        known = {name: fields.get(name) for name in cls.__dataclass_fields__}
        widths, images = known["widths"], known["images"]  # the latter not in old journals
        if not isinstance(widths, list) or not all(_is_count(w, 1) for w in widths):
            raise ValueError(f"widths are {widths!r}")
        for name, least in {"macs": 0, "params": 0}.items():
            if not _is_count(known[name], least):
                raise ValueError(f"{name} are {known[name]!r}")
        if images is not None and not _is_count(images, 1):
            raise ValueError(f"images are {images!r}")
        measured = known["measured"]
        if measured is not None and not (
            isinstance(measured, dict) and all(map(_is_number, measured.values()))
        ):
            raise ValueError(f"measured is {measured!r}")
        for name, (least, most) in {
            "accuracy": (0, 1), "reward": (-1, 0), "seconds": (0, math.inf),
        }.items():  # fmt: skip
            value = known[name]
            if not _is_number(value) or not least <= value <= most:
                raise ValueError(f"{name} is {value!r}")
        outcome = cls(**known | {"widths": tuple(widths)})
        if abs(outcome.accuracy - 1 - outcome.reward) > 1e-6:
            raise ValueError(f"reward is {outcome.reward}, not minus the error")
        return outcome


def _is_number(value: object) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value)


def _is_count(value: object, least: int) -> bool:
    whole = isinstance(value, int) and not isinstance(value, bool)
    return whole and least <= value < 2**63
