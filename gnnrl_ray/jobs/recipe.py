"""How a winner is fine-tuned."""

from dataclasses import dataclass
from typing import ClassVar

from gnnrl_ray.settings import Checked, setting


@dataclass(frozen=True, kw_only=True)
class Recipe(Checked):
    """How a winner is fine-tuned; every field is an option of ``gnnrl-ray finetune``."""

    otherwise: ClassVar[str] = "start over without --resume"

    epochs: int = setting(100, "Passes over the training images.", least=1, most=10**5)
    lr: float = setting(0.05, "Peak learning rate.", above=0, most=1e3)
    batch_size: int = setting(128, "Images in one step.", least=2)
    only_pruned: bool = setting(
        False,
        "Leave layers that lost no channel as they are, as in GNN-RL, section 4.1.",
    )
    distill: float = setting(
        0.0,
        "Share of the loss that is the distance to what the dense network says "
        "(https://arxiv.org/abs/1503.02531, temperature 4).",
        least=0,
        most=1,
    )
