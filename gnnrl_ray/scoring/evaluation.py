"""Top-1 accuracy of candidates, many times over, as fast as the machine allows.

The plain path is :func:`~gnnrl_ray.scoring.training.accuracy`; what is here gives its
result, to :data:`TOLERANCE`, sooner: fused operations, narrower numbers, and an early end
for what is lost.

Axis letters: N images, B batch.
"""

import math
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, fx

from gnnrl_ray.data import Loader, Split
from gnnrl_ray.errors import Notice
from gnnrl_ray.scoring.fusion import fuse
from gnnrl_ray.scoring.training import accuracy
from gnnrl_ray.settings import PRECISIONS
from gnnrl_ray.tracing.network import TraceError

TOLERANCE = 0.001

# Shares of the images after which it is asked whether to go on, and the risk of all of
# these questions together that a good candidate is given up.
_LOOKS = (0.05, 0.1, 0.2, 0.4, 0.7)
_RISK = 1e-3
# What narrow numbers alone may have accuracy wrong by.
_DOUBT = 0.01
# Images are scored again, those first that are nearest to being right or wrong instead, so
# many at a time, until no more than this share of them is. A GPU is idle with few images.
_AGAIN = {"cpu": 50, "cuda": 250}
_CHANGES = 0.04
BATCHES = {"cpu": (64, 250), "cuda": (500, 1000, 2500, 5000)}
_PART = 1000  # images that are normalised at a time
_SEED = 0  # of the order of the images: a part of the protocol


@dataclass(frozen=True)
class EvaluationMode:
    """How candidates are evaluated.

    Attributes:
        precision: ``plain``, the network as it is; or fused, in this number format.
        batch: images at a time.
        masked: in the dense network with zeros, which a GPU can replay; else removed.
    """

    precision: str = "float32"
    batch: int = 64
    masked: bool = False


@dataclass(frozen=True)
class Score:
    """What a network is worth.

    Attributes:
        accuracy: in [0, 1]; or what stands in its place.
        images: of how many: fewer than all where it was lost.
        measured: what a score of the user's own returned.
    """

    accuracy: float
    images: int
    measured: dict[str, float] | None = None


class Evaluator:
    """Scores networks on one split.

    Args:
        split: images and labels, on the device of the networks.
        mode: how; of a loader, ``plain``.
    """

    def __init__(self, split: Split | Loader, mode: EvaluationMode) -> None:
        self._split = split
        if isinstance(split, Split):  # so that its beginnings are random samples
            generator = torch.Generator().manual_seed(_SEED)
            split = split.take(torch.randperm(len(split), generator=generator))
            self._split = replace(split, channels_last=True)  # traced ones can be run so
        self._mode = mode
        self._dtype = getattr(torch, mode.precision, torch.float32)

    @cached_property
    def _images(self) -> Tensor:
        """Normalised [N, C, H, W], channels-last, in the format of the network."""
        return normalised(self._split, self._dtype)

    def __call__(self, network: fx.GraphModule, worth: float = 0.0) -> Score:
        """Score ``network``, a removed one in evaluation mode.

        Args:
            network: left as it is.
            worth: give up once an accuracy this high is out of reach (Serfling's bound;
                wrong about one network in a thousand).
        """
        total = len(self._split)
        if self._mode.precision == "plain":
            return Score(accuracy(network, self._split), total)
        fused, parts, start = self._prepare(network, self._dtype), [], 0
        for end in [int(share * total) for share in _LOOKS] if worth > 0 else []:
            parts.append(self._run(fused, self._images[start:end]))
            score, start = self._score(torch.cat(parts)), end
            if _is_lost(score, total, worth - _DOUBT):
                return score
        parts.append(self._run(fused, self._images[start:]))
        logits = torch.cat(parts)
        if self._dtype != torch.float32:
            self._look_again(network, logits)
        return self._score(logits)

    def seconds(self, network: fx.GraphModule) -> float:
        """Return how long one pass takes, the least of three."""
        fused, times = self._prepare(network, self._dtype), []
        for _ in range(3):
            start = time.perf_counter()
            self._score(self._run(fused, self._images))  # waits for a GPU
            times.append(time.perf_counter() - start)
        return min(times)

    def _prepare(self, network: fx.GraphModule, dtype: torch.dtype) -> fx.GraphModule:
        return fuse(network, tuple(self._images.shape[1:]), dtype)

    def _run(self, fused: fx.GraphModule, images: Tensor) -> Tensor:
        """Return logits float32 [N, K]; in smaller batches, where memory is short."""
        try:
            return self._pass(fused, images)
        except torch.OutOfMemoryError:
            if self._mode.batch == 1:
                raise
            self._mode = replace(self._mode, batch=self._mode.batch // 2)
            warnings.warn(
                f"out of memory; evaluating {self._mode.batch} images at a time.",
                Notice,
                stacklevel=2,
            )
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return self._run(fused, images)

    def _pass(self, fused: fx.GraphModule, images: Tensor) -> Tensor:
        """Return logits float32 [N, K].

        On a CPU, every thread has a batch of its own: sharing one costs them more time.
        """
        threads = torch.get_num_threads() if images.device.type == "cpu" else 1
        batch = min(self._mode.batch, -(-len(images) // threads))

        def run(part: Tensor) -> Tensor:
            with torch.inference_mode():
                return fused(part).float()

        if threads == 1:
            return torch.cat([run(part) for part in images.split(batch)])
        single = {"initializer": torch.set_num_threads, "initargs": (1,)}
        with ThreadPoolExecutor(threads, **single) as pool:
            parts = list(pool.map(run, images.split(batch)))
        torch.set_num_threads(threads)  # in part, the setting is of the whole process
        return torch.cat(parts)

    def _score(self, logits: Tensor) -> Score:
        labels = self._split.labels[: len(logits)]
        right = int((logits.argmax(1) == labels).sum())
        return Score(right / len(logits), len(logits))

    def _look_again(self, network: fx.GraphModule, logits: Tensor) -> None:
        """Replace ``logits`` of narrow numbers where those of float32 may decide anew."""
        labels = self._split.labels
        ahead = margins(logits, labels)
        size = _AGAIN[logits.device.type]
        wide = self._prepare(network, torch.float32)
        for index in ahead.abs().argsort().split(size):
            ((images, _),) = self._split.take(index).batches(len(index))
            again = self._run(wide, images)
            right = [x.argmax(1) == labels[index] for x in (again, logits[index])]
            logits[index] = again
            if (right[0] != right[1]).sum() <= _CHANGES * size:
                break


def normalised(split: Split, dtype: torch.dtype) -> Tensor:
    """Return all images of ``split``, [N, C, H, W], channels-last.

    A part after the other: in float32, they take several times the memory.
    """
    batches = replace(split, channels_last=True).batches(_PART)
    parts = [images.to(dtype) for images, _ in batches]
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def margins(logits: Tensor, labels: Tensor) -> Tensor:
    """Return by how much the label is ahead of all other classes, [N] of [N, K], [N]."""
    own = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return own[:, 0] - others.amax(1)


def _is_lost(score: Score, total: int, worth: float) -> bool:
    """Say whether ``score``, of the first of ``total`` images, rules out ``worth``.

    The bound is Serfling's for samples without replacement (1974, Corollary 1.1).
    """
    unseen = 1 - (score.images - 1) / total
    slack = unseen * math.log(len(_LOOKS) / _RISK) / (2 * score.images)
    return score.accuracy + math.sqrt(slack) < worth


def choose(
    network: fx.GraphModule, split: Split, precision: str = "auto"
) -> EvaluationMode:
    """Return the fastest mode that is right, by trying them.

    Warns of modes that are not, or that the network cannot be run in.

    Args:
        network: a typical candidate, in evaluation mode.
        split: what candidates will be scored on.
        precision: one of ``PRECISIONS`` instead of the fastest.
    """
    if precision == "plain":
        return EvaluationMode(precision)
    batches = BATCHES[split.device.type]
    sample = split.take(torch.arange(min(batches[-1], len(split))))
    wanted = PRECISIONS[1:] if precision == "auto" else (precision,)
    seconds = {}
    for mode in (EvaluationMode(p, b) for p in wanted for b in batches):
        try:
            seconds[mode] = Evaluator(sample, mode).seconds(network)
        except (RuntimeError, TraceError) as error:
            warnings.warn(
                f"cannot evaluate in {mode.precision}: {error}", Notice, stacklevel=2
            )
    expected = accuracy(network, split)
    for mode in sorted(seconds, key=seconds.__getitem__):
        found = Evaluator(split, mode)(network).accuracy
        if abs(found - expected) <= TOLERANCE:
            return mode
        warnings.warn(
            f"evaluation in {mode.precision} gives {found:.2%} where {expected:.2%} is "
            "right; trying another way.",
            Notice,
            stacklevel=2,
        )
    return EvaluationMode("plain")
