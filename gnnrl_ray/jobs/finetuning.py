"""The winner of a run, trained on to what it can be."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from gnnrl_ray.data import Data
from gnnrl_ray.run.directory import Run, kept_in
from gnnrl_ray.run.lock import locked
from gnnrl_ray.scoring.padding import padded
from gnnrl_ray.scoring.training import steps_per_epoch, train
from gnnrl_ray.settings import Checked, setting
from gnnrl_ray.tracing.groups import ChannelGroups


@dataclass(frozen=True, kw_only=True)
class Recipe(Checked):
    """How a winner is fine-tuned; every field is an option of ``gnnrl-ray finetune``."""

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


def finetune(
    run: Run,
    network: nn.Module,
    data: Data,
    recipe: Recipe,
    *,
    dense: nn.Module,
    groups: ChannelGroups,
    seed: int = 0,
    precision: str | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> None:
    """Fine-tune the winner of ``run`` in place, and keep it there.

    The network of the last epoch counts: no test image decides anything. Interrupted, it
    keeps what has been trained so far, and says so in ``finetune.json``. What diverges is
    not kept.

    Args:
        run: the search that it is the winner of.
        network: the winner, on the device to train on.
        data: trained on ``data.train``.
        recipe: how.
        dense: the network that it was made of.
        groups: of that one.
        seed: of order and augmentation.
        precision: see :func:`~gnnrl_ray.scoring.training.train`; default: what the search
            found to be fast and right.
        on_step: called with the number of steps done and the last loss.

    Raises:
        TrainingError: the loss became infinite or NaN.
        KeyboardInterrupt: what was trained is kept.
    """
    if precision is None:
        precision = run.mode.precision if run.mode else "float32"
    done = 0

    def count(step: int, loss: float) -> None:
        nonlocal done
        done = step
        if on_step is not None:
            on_step(step, loss)

    def keep() -> None:
        run.save_network("finetuned", network.eval())
        about = {"seed": seed, "precision": precision, "steps": steps, "steps_done": done}
        run.write_json("finetune.json", recipe.to_dict() | about)

    steps = recipe.epochs * steps_per_epoch(data.train, recipe.batch_size)
    device = next(network.parameters()).device
    teacher = copy.deepcopy(dense).to(device) if recipe.distill else None
    if recipe.only_pruned:
        _freeze(network, dense)
    with locked(run.storage):
        kept = kept_in(run.storage, groups)
        try:
            with padded(network, dense, groups, kept) as (trained, hold):
                train(
                    trained, data.train.to(device), steps=steps, lr=recipe.lr,
                    batch_size=recipe.batch_size, seed=seed, precision=precision,
                    teacher=teacher, distill=recipe.distill, hold=hold, on_step=count,
                )  # fmt: skip
        except KeyboardInterrupt:
            keep()
            raise
        keep()


def _freeze(network: nn.Module, dense: nn.Module) -> None:
    """Let training leave alone what has the same shape as in ``dense``."""
    shapes = {name: parameter.shape for name, parameter in dense.named_parameters()}
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(shapes.get(name) != parameter.shape)
