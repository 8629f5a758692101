"""The winner of a run, trained on to what it can be."""

from collections.abc import Callable
from pathlib import Path

from torch import nn

from gnnrl_ray.data import Data
from gnnrl_ray.run import Run, load_pruned
from gnnrl_ray.training import steps_per_epoch, train


def finetune(
    folder: Path | str,
    data: Data,
    *,
    epochs: int,
    lr: float = 0.05,
    batch_size: int = 128,
    seed: int = 0,
    device: str = "cpu",
    precision: str | None = None,
    network: nn.Module | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> nn.Module:
    """Fine-tune the winner of the run in ``folder`` and keep it there.

    The network of the last epoch counts: no test image decides anything. Interrupted, it
    keeps what has been trained so far, and says so in ``finetune.json``.

    Args:
        folder: a run directory.
        data: trained on ``data.train``.
        epochs: passes over it.
        lr: peak learning rate.
        batch_size: images in one step.
        seed: of order and augmentation.
        device: to train on.
        precision: see :func:`~gnnrl_ray.training.train`; default: what the search found
            to be fast and right.
        network: see :func:`~gnnrl_ray.run.load_pruned`.
        on_step: called with the number of steps done and the last loss.

    Returns:
        The fine-tuned network, also in ``finetuned.safetensors``.
    """
    run = Run.open(folder)
    if precision is None:
        precision = (run.evaluation or {}).get("precision", "float32")
    smaller = load_pruned(folder, network, "pruned").to(device)
    done = 0

    def count(step: int, loss: float) -> None:
        nonlocal done
        done = step
        if on_step is not None:
            on_step(step, loss)

    steps = epochs * steps_per_epoch(data.train, batch_size)
    try:
        train(
            smaller, data.train.to(device), steps=steps, lr=lr, batch_size=batch_size,
            seed=seed, precision=precision, on_step=count,
        )  # fmt: skip
    finally:
        run.save_network("finetuned", smaller.eval())
        run.write_json(
            "finetune.json",
            {"epochs": epochs, "lr": lr, "batch_size": batch_size, "seed": seed,
             "precision": precision, "steps": steps, "steps_done": done},
        )  # fmt: skip
    return smaller
