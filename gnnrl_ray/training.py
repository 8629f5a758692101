"""Accuracy, recalibration and one training loop, used before, during and after search.

Axis letters: B batch, K classes.
"""

import contextlib
from collections.abc import Callable, Iterator
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnnrl_ray.data import Split

# Small enough for the caches of a CPU core, large enough for a GPU.
_EVALUATION_BATCH = {"cpu": 64, "cuda": 1000}
_RECALIBRATION_IMAGES = 250
_RECALIBRATION_BATCH = 125
_NORMS = (nn.modules.batchnorm._BatchNorm,)


class TrainingError(RuntimeError):
    """Training that cannot go on: the loss is not a finite number."""


@contextlib.contextmanager
def _mode(network: nn.Module, training: bool) -> Iterator[None]:
    before = network.training
    network.train(training)
    try:
        yield
    finally:
        network.train(before)


def accuracy(network: nn.Module, split: Split) -> float:
    """Return the top-1 accuracy of ``network`` on ``split``, in [0, 1]."""
    correct = torch.zeros((), dtype=torch.int64, device=split.labels.device)
    with _mode(network, training=False), torch.inference_mode():
        for images, labels in split.batches(_EVALUATION_BATCH[split.labels.device.type]):
            correct += (network(images).argmax(1) == labels).sum()
    return correct.item() / len(split)


def recalibrate(network: nn.Module, split: Split, seed: int = 0) -> None:
    """Recompute the statistics of batch normalisation in place, on 250 training images.

    Removing channels shifts every later activation; the running averages of the dense
    network no longer describe it. The new ones are plain averages over the batches.

    Args:
        network: changed in place; its weights are not touched.
        split: training images; a seeded sample of them is used.
        seed: of the sample.
    """
    norms = [module for module in network.modules() if isinstance(module, _NORMS)]
    momenta = [norm.momentum for norm in norms]
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(split), generator=generator)
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average instead of an exponential one
    try:
        with _mode(network, training=True), torch.no_grad():
            sample = split.take(order[:_RECALIBRATION_IMAGES])
            for images, _ in sample.batches(_RECALIBRATION_BATCH):
                network(images)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def train(
    network: nn.Module,
    split: Split,
    *,
    steps: int,
    lr: float = 0.05,
    batch_size: int = 128,
    weight_decay: float = 5e-4,
    seed: int = 0,
    precision: str = "float32",
    on_step: Callable[[int, float], None] | None = None,
) -> None:
    """Train ``network`` in place: SGD with Nesterov momentum, one cycle of cosine decay.

    The learning rate rises linearly over the first tenth of the steps and then follows
    half a cosine to zero, so that the last step's network is the one to report.

    Args:
        network: trained in place, left in evaluation mode.
        split: training images, augmented.
        steps: batches to train on; an epoch is ``steps_per_epoch(split, batch_size)``.
        lr: peak learning rate.
        batch_size: B.
        weight_decay: L2 penalty on every parameter.
        seed: of order and augmentation.
        precision: ``float32``; or ``bfloat16`` where that costs no accuracy (automatic
            mixed precision: weights and their updates stay float32).
        on_step: called with the number of steps done and the last loss: after every step
            on a CPU, after every epoch on a GPU, which a look at the loss would hold up.

    Raises:
        TrainingError: the loss became infinite or NaN.
    """
    if steps < 1:
        return
    device = split.labels.device.type
    optimizer = torch.optim.SGD(
        network.parameters(), lr, 0.9, weight_decay=weight_decay, nesterov=True,
        fused=device == "cuda",
    )  # fmt: skip
    rise = max(1, steps // 10)
    schedule = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LinearLR(optimizer, 1 / (rise + 1), 1, rise),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps - rise + 1),
        ],
        milestones=[rise],
    )
    network.train()
    batches = _forever(split, batch_size, torch.Generator().manual_seed(seed))
    mixed = torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16")
    look_every = 1 if device == "cpu" else steps_per_epoch(split, batch_size)
    for step, (images, labels) in enumerate(islice(batches, steps), start=1):
        with mixed:
            logits = network(images)
        loss = F.cross_entropy(logits.float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % look_every and step != steps:
            continue
        if not loss.isfinite():
            raise TrainingError(
                f"the loss is {loss.item()} after {step} steps; try a --lr below {lr:g}."
            )
        if on_step is not None:
            on_step(step, loss.item())
    network.eval()


def steps_per_epoch(split: Split, batch_size: int = 128) -> int:
    """Return how many batches of ``batch_size`` one pass over ``split`` takes."""
    return -(-len(split) // batch_size)


def _forever(
    split: Split, batch_size: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        yield from split.batches(batch_size, generator)
