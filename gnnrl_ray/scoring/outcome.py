"""What a candidate scored.

Axis letter: G prunable groups.
"""

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
    """

    widths: tuple[int, ...]
    macs: int
    params: int
    accuracy: float
    reward: float
    seconds: float
    images: int | None = None

    def to_dict(self) -> dict:
        """Return the fields, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict) -> "Outcome":
        """Return the outcome whose fields are among ``fields``."""
        known = {
            name: fields[name] for name in cls.__dataclass_fields__ if name != "images"
        }
        known["images"] = fields.get("images")  # not in older journals
        return cls(**known | {"widths": tuple(known["widths"])})
