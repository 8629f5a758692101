"""Accuracy, recalibration and one training loop, used before, during and after search.

Axis letters: B batch, K classes.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnnrl_ray.data import Loader, Split, as_split
from gnnrl_ray.data.loader import Images, forward
from gnnrl_ray.data.records import mapped
from gnnrl_ray.errors import GnnrlError, InputError
from gnnrl_ray.interrupts import held
from gnnrl_ray.process import torch_as_it_starts
from gnnrl_ray.pruning.importance import Loss
from gnnrl_ray.scoring.capture import Captured
from gnnrl_ray.scoring.layout import quick

# Small enough for the caches of a CPU core, large enough for a GPU.
_EVALUATION_BATCH = {"cpu": 64, "cuda": 1000}
_RECALIBRATION_IMAGES = 250
_RECALIBRATION_BATCH = 125
_TEMPERATURE = 4.0
_APART = 1_000_003  # steps between what two seeds draw
_NORMS = (nn.modules.batchnorm._BatchNorm,)


class TrainingError(GnnrlError, RuntimeError):
    """Training that cannot go on: the loss is not a finite number."""

    exit_code = 1


@contextlib.contextmanager
def _mode(network: nn.Module, training: bool) -> Iterator[None]:
    before = network.training
    network.train(training)
    try:
        yield
    finally:
        network.train(before)


@torch_as_it_starts()
def accuracy(network: nn.Module, split: Split | Loader | Iterable) -> float:
    """Return the top-1 accuracy of ``network`` on ``split``, in [0, 1].

    Args:
        network: left as it is.
        split: images and labels int64 [B], in batches; moved to where the network is.

    Raises:
        DataError: a loader yields something else, or nothing.
    """
    split = _beside(network, split, "validation")
    correct = torch.zeros((), dtype=torch.int64, device=split.device)
    with _mode(network, training=False), torch.inference_mode():
        size = _EVALUATION_BATCH[split.device.type]
        for images, labels in quick(split, network).batches(size):
            correct += (forward(network, images).argmax(1) == labels).sum()
    return correct.item() / len(split)


def recalibrate(network: nn.Module, split: Split | Loader, seed: int = 0) -> None:
    """Recompute the statistics of batch normalisation in place, on 250 training images.

    Removing channels shifts every later activation; the running averages of the dense
    network no longer describe it. The new ones are plain averages over the batches.

    Args:
        network: changed in place; its weights are not touched.
        split: training images; a seeded sample of them is used.
        seed: of the sample.
    """
    recalibrate_on(network, calibration_batches(quick(split, network), seed))


def calibration_batches(split: Split | Loader, seed: int) -> list[Images]:
    """Return the images that :func:`recalibrate` takes, in batches [B, C, H, W]."""
    sample = split.sample(_RECALIBRATION_IMAGES, _RECALIBRATION_BATCH, seed)
    return [images for images, _ in sample]


def recalibrate_on(network: nn.Module, batches: Sequence[Images]) -> None:
    """Recompute the statistics of batch normalisation on ``batches``, if there are any."""
    if not batches:
        return
    norms = [module for module in network.modules() if isinstance(module, _NORMS)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
    try:
        with _mode(network, training=True), torch.no_grad():
            # What drops at random would make them those of something else.
            for module in network.modules():
                module.training = module.training and isinstance(module, _NORMS)
            for count, images in enumerate(batches, start=1):
                for norm in norms:
                    norm.momentum = 1 / count  # a plain average, not an exponential one
                forward(network, images)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


@torch_as_it_starts()
def train(
    network: nn.Module, split: Split | Loader | Iterable, *, steps: int, **options: Any
) -> None:
    """Go through a :class:`Training`, which takes the same, to its end."""
    if type(steps) is not int or steps < 0:
        raise InputError(f"`steps` is a whole number from 0 on, got {steps!r}.")
    split = _beside(network, split, "training")
    for _ in Training(network, split, steps=steps, **options):
        pass


def _beside(network: nn.Module, given: Any, role: str) -> Split | Loader:
    """Return the batches of ``given`` on the device of ``network``."""
    split = as_split(given, role)
    weights = next(network.parameters(), None)
    return split if weights is None else split.to(weights.device)


class Training:
    """Trains ``network`` in place, a step at every turn, by SGD with Nesterov momentum.

    The learning rate rises linearly over the first tenth of the steps and then follows
    half a cosine to zero, so that the last step's network is the one to report.
    Going through it yields nothing, after every step; it can be left and gone on with.

    Args:
        network: trained in place, left in evaluation mode.
        split: training images, augmented; or a loader of the user's own.
        steps: batches to train on; an epoch is ``steps_per_epoch(split, batch_size)``.
        lr: peak learning rate.
        batch_size: B; a loader has its own.
        weight_decay: L2 penalty on every parameter.
        seed: of order and augmentation.
        precision: ``float32``; or ``bfloat16`` where that costs no accuracy (automatic
            mixed precision: weights and their updates stay float32).
        teacher: a network on the same device whose outputs are to be met, too; left in
            evaluation mode.
        distill: share of the loss that is the distance to them, in [0, 1].
        loss: a function of what the network returns and the labels, to make small.
        hold: called after every update, as a part of the step: see
            :meth:`gnnrl_ray.scoring.padding.Padded.hold`.
        on_step: called with the number of steps done and the last loss: after every step
            on a CPU, after every epoch on a GPU, which a look at the loss would hold up.

    Attributes:
        done: steps that have been taken.

    Raises:
        TrainingError: all parameters are frozen; when gone through: the loss became
            infinite or NaN.
    """

    def __init__(
        self,
        network: nn.Module,
        split: Split | Loader,
        *,
        steps: int,
        lr: float = 0.05,
        batch_size: int = 128,
        weight_decay: float = 5e-4,
        seed: int = 0,
        precision: str = "float32",
        teacher: nn.Module | None = None,
        distill: float = 0.0,
        loss: Loss = F.cross_entropy,
        hold: Callable[[], None] | None = None,
        on_step: Callable[[int, float], None] | None = None,
    ) -> None:
        if not any(parameter.requires_grad for parameter in network.parameters()):
            raise TrainingError(
                "nothing can be trained: no parameter of the network has requires_grad."
            )
        device = split.device
        self.done, self._steps = 0, steps
        self._network, self._lr = network, lr
        both = (network,) if teacher is None else (network, teacher)
        self._split = quick(split, *both)
        self._batch_size, self._on_step = batch_size, on_step
        static = device.type == "cuda" and isinstance(split, Split)  # batches are alike
        self._step = TrainingStep(
            network, weight_decay=weight_decay, precision=precision, device=device,
            teacher=teacher, distill=distill, loss=loss, hold=hold,
            static=static,
        )  # fmt: skip
        rates = _rates(lr, steps)
        # Read there by every step, without waiting.
        self._rates = torch.tensor(rates, device=device) if static else rates
        self._seed = seed
        self._generator = torch.Generator(device).manual_seed(seed)
        self._epoch = steps_per_epoch(split, batch_size)
        self._began_with = self._generator.get_state()  # the epoch that goes on

    def __iter__(self) -> Iterator[None]:
        if self.done >= self._steps:
            return
        self._network.train()
        batches = self._batches()
        look_every = 1 if self._split.device.type == "cpu" else self._epoch
        for images, labels in islice(batches, self._steps - self.done):
            # Or what is gone on with would have begun the step.
            with held(), self._own_draws():
                now = self._step(images, labels, self._rates[self.done])
                self.done += 1
                if self.done % self._epoch == 0:
                    self._began_with = self._generator.get_state()
            yield
            if self.done % look_every and self.done != self._steps:
                continue
            if not now.isfinite():
                raise TrainingError(
                    f"the loss is {now.item()} after {self.done} steps; try a --lr below "
                    f"{self._lr:g}."
                )
            if self._on_step is not None:
                self._on_step(self.done, now.item())
        if not all(parameter.isfinite().all() for parameter in self._network.parameters()):
            raise TrainingError(
                f"not all weights are finite; try a --lr below {self._lr:g}."
            )
        self._network.eval()

    @contextlib.contextmanager
    def _own_draws(self) -> Iterator[None]:
        """Let what a network draws, as dropout does, follow from seed and step alone.

        On a GPU, where sums are not the same twice either, it goes on as it was.
        """
        if self._split.device.type != "cpu":
            yield
            return
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed((_APART * self._seed + self.done) % 2**63)
            yield

    def _batches(self) -> Iterator[tuple[Images, Any]]:
        """Yield batches for ever, from the next one of the epoch that goes on."""
        seen = self.done % self._epoch
        while True:
            batches = self._split.batches(self._batch_size, self._generator)
            yield from islice(batches, seen, None)
            seen = 0

    def state(self) -> dict[str, Tensor]:
        """Return copies, on the CPU, of all that it takes to go on from here."""
        tensors = {f"network.{k}": v for k, v in self._network.state_dict().items()}
        tensors |= {f"momentum.{k}": v for k, v in self._step.momentum().items()}
        tensors["generator"] = self._began_with
        tensors["steps"] = torch.tensor(self.done)
        return {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}

    def go_on_from(self, state: Mapping[str, Tensor]) -> None:
        """Take over the ``state`` of a training with the same arguments.

        Raises:
            ValueError: it is that of another.
        """
        fresh = self.state()
        momenta = {f"momentum.{name}" for name, _ in self._network.named_parameters()}
        wrong = [name for name in (fresh.keys() | momenta) ^ state.keys()
                 if name not in momenta]  # fmt: skip
        wrong += [name for name in fresh.keys() & state.keys()
                  if (fresh[name].shape, fresh[name].dtype)
                  != (state[name].shape, state[name].dtype)]  # fmt: skip
        if wrong or not 0 <= int(state["steps"]) <= self._steps:
            raise ValueError(
                f"of another training: {', '.join(sorted(wrong)[:3]) or 'steps'}"
            )
        parts: dict[str, dict[str, Tensor]] = {"network": {}, "momentum": {}}
        for name, tensor in state.items():
            kind, _, own = name.partition(".")
            if own:
                parts[kind][own] = tensor
        self._network.load_state_dict(parts["network"])
        self._step.set_momentum(parts["momentum"])
        self._generator.set_state(state["generator"])
        self._began_with = state["generator"]
        self.done = int(state["steps"])


def in_turns(trainings: Iterable[Iterable[None]], device: torch.device) -> None:
    """Go through all of ``trainings`` together, on a GPU each on a stream of its own.

    Kernels of a small network leave most of a GPU idle; those of others fill it.

    Args:
        trainings: each :class:`Training` of a network of its own.
        device: of all of them.
    """
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize(device)  # of what they read, all is written
    going = [(iter(training), torch.cuda.Stream(device) if on_gpu else None)
             for training in trainings]  # fmt: skip
    while going:
        for turn in tuple(going):
            training, stream = turn
            with torch.cuda.stream(stream):
                if next(training, turn) is turn:
                    going.remove(turn)
    if on_gpu:
        torch.cuda.synchronize(device)


class TrainingStep:
    """One step of SGD on one batch; on a GPU, a CUDA graph for all batches of one size.

    Args:
        network: in training mode, on ``device``.
        weight_decay: L2 penalty on every parameter.
        precision: ``float32`` or ``bfloat16``, see :class:`Training`.
        device: of the network and of all batches.
        teacher: see :class:`Training`.
        distill: see :class:`Training`.
        loss: see :class:`Training`.
        hold: see :class:`Training`.
        static: keep batch, loss and learning rate in the same memory, as a CUDA graph
            needs it; default: on a GPU only.
    """

    def __init__(
        self, network: nn.Module, *, weight_decay: float = 5e-4,
        precision: str = "float32", device: torch.device,
        teacher: nn.Module | None = None, distill: float = 0.0,
        loss: Loss = F.cross_entropy, hold: Callable[[], None] | None = None,
        static: bool | None = None,
    ) -> None:  # fmt: skip
        self._network = network
        self._teacher = teacher.eval() if teacher is not None and distill else None
        self._distill, self._loss_of, self._hold = distill, loss, hold
        self._static = device.type == "cuda" if static is None else static
        rate = torch.zeros((), device=device) if self._static else 0.0
        self._optimizer = torch.optim.SGD(
            network.parameters(), rate, 0.9, weight_decay=weight_decay, nesterov=True,
            fused=device.type == "cuda",
        )  # fmt: skip
        self._mixed = torch.autocast(
            device.type, torch.bfloat16, enabled=precision == "bfloat16",
            cache_enabled=not self._static,  # casts of weights would be of the capture's
        )  # fmt: skip
        self._device = device
        self._loss = torch.zeros((), device=device)
        # By the number of images: that of most batches, and that of an epoch's last one.
        self._memory: dict[int, tuple[tuple[Tensor, Tensor], Captured]] = {}

    def __call__(self, images: Images, labels: Any, rate: float | Tensor) -> Tensor:
        """Take the step.

        Args:
            images: float32 [B, C, H, W].
            labels: int64 [B]; both tensors where all is ``static``.
            rate: of learning; a tensor of the device where all is ``static``.

        Returns:
            The loss before the step; overwritten by the next one.
        """
        for group in self._optimizer.param_groups:
            if self._static:
                group["lr"].copy_(rate)
            else:
                group["lr"] = rate
        if not self._static:
            self._take(images, labels)
            return self._loss
        if len(labels) not in self._memory:
            own = images.clone(), labels.clone()
            self._memory[len(labels)] = (
                own,
                Captured(lambda: self._take(*own), self._device),
            )
        own, captured = self._memory[len(labels)]
        for there, now in zip(own, (images, labels), strict=True):
            there.copy_(now)
        captured()
        return self._loss

    def momentum(self) -> dict[str, Tensor]:
        """Return the momentum of each parameter that has been updated, by its name."""
        kept = self._optimizer.state
        return {name: kept[parameter]["momentum_buffer"]
                for name, parameter in self._network.named_parameters()
                if parameter in kept}  # fmt: skip

    def set_momentum(self, momenta: Mapping[str, Tensor]) -> None:
        """Go on with what :meth:`momentum` returned; before the first step."""
        for name, parameter in self._network.named_parameters():
            if name in momenta:
                kept = torch.empty_like(parameter).copy_(momenta[name])
                self._optimizer.state[parameter]["momentum_buffer"] = kept

    def _take(self, images: Images, labels: Any) -> None:
        with self._mixed:
            logits = forward(self._network, images)
        logits = mapped(_in_full, logits)
        loss = self._loss_of(logits, labels)
        if self._teacher is not None:
            with self._mixed, torch.no_grad():
                wanted = forward(self._teacher, images)
            distance = distillation_loss(logits, wanted.float())
            loss = (1 - self._distill) * loss + self._distill * distance
        self._optimizer.zero_grad()  # a graph keeps the memory of its gradients
        loss.backward()
        self._optimizer.step()
        if self._hold is not None:
            self._hold()
        if self._static:
            self._loss.copy_(loss.detach())
        else:
            self._loss = loss.detach()


def _in_full(output: Tensor) -> Tensor:
    return output.float() if output.dtype == torch.bfloat16 else output


def distillation_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """Return how far ``logits`` are from those ``wanted``, both [B, K].

    The Kullback-Leibler divergence at temperature T, times T squared, so that its gradient
    is as large as that of the labels: https://arxiv.org/abs/1503.02531, section 2.
    """
    soft, target = (F.log_softmax(x / _TEMPERATURE, 1) for x in (logits, wanted))
    divergence = F.kl_div(soft, target, reduction="batchmean", log_target=True)
    return divergence * _TEMPERATURE**2


def _rates(lr: float, steps: int) -> list[float]:
    """Return the learning rate of every step: a linear rise, then half a cosine."""
    rise = max(1, steps // 10)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr)
    schedule = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LinearLR(optimizer, 1 / (rise + 1), 1, rise),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps - rise + 1),
        ],
        milestones=[rise],
    )
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


def steps_per_epoch(split: Split | Loader, batch_size: int = 128) -> int:
    """Return how many batches of ``batch_size`` one pass over ``split`` takes."""
    return split.batch_count(batch_size)
