"""The winner of a run, trained on to what it can be."""

from collections.abc import Callable

from torch import nn

from gnnrl_ray.data import Data
from gnnrl_ray.run.directory import Run
from gnnrl_ray.run.lock import locked
from gnnrl_ray.scoring.training import steps_per_epoch, train


def finetune(
    run: Run,
    network: nn.Module,
    data: Data,
    *,
    epochs: int,
    lr: float = 0.05,
    batch_size: int = 128,
    seed: int = 0,
    precision: str | None = None,
    like: nn.Module | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> None:
    """Fine-tune the winner of ``run`` in place, and keep it there.

    The network of the last epoch counts: no test image decides anything. Interrupted, it
    keeps what has been trained so far, and says so in ``finetune.json``.

    Args:
        run: the search that it is the winner of.
        network: the winner, on the device to train on.
        data: trained on ``data.train``.
        epochs: passes over it.
        lr: peak learning rate.
        batch_size: images in one step.
        seed: of order and augmentation.
        precision: see :func:`~gnnrl_ray.scoring.training.train`; default: what the search
            found to be fast and right.
        like: the dense network, where parameters that are as large as there stay as they
            are: only pruned layers are updated, as in GNN-RL, section 4.1.
        on_step: called with the number of steps done and the last loss.
    """
    if precision is None:
        precision = run.mode.precision if run.mode else "float32"
    done = 0

    def count(step: int, loss: float) -> None:
        nonlocal done
        done = step
        if on_step is not None:
            on_step(step, loss)

    steps = epochs * steps_per_epoch(data.train, batch_size)
    device = next(network.parameters()).device
    if like is not None:
        _freeze(network, like)
    with locked(run.storage):
        try:
            train(
                network, data.train.to(device), steps=steps, lr=lr, batch_size=batch_size,
                seed=seed, precision=precision, on_step=count,
            )  # fmt: skip
        finally:
            run.save_network("finetuned", network.eval())
            run.write_json(
                "finetune.json",
                {"epochs": epochs, "lr": lr, "batch_size": batch_size, "seed": seed,
                 "precision": precision, "steps": steps, "steps_done": done},
            )  # fmt: skip


def _freeze(network: nn.Module, dense: nn.Module) -> None:
    """Let training leave alone what has the same shape as in ``dense``."""
    shapes = {name: parameter.shape for name, parameter in dense.named_parameters()}
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(shapes.get(name) != parameter.shape)
