"""Candidates in one dense network: shapes stay, so that a GPU can replay a whole score.

Building a small network anew for every candidate keeps a GPU waiting for Python. Here the
dense network is there once; a candidate is zeros among its weights, and scoring it is the
same work on the same memory.

Axis letters: N images, K classes.
"""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from gnnrl_ray.data import Data
from gnnrl_ray.pruning.removal import flags_of, insert_masks
from gnnrl_ray.scoring.capture import Captured
from gnnrl_ray.scoring.evaluation import EvaluationMode, Score, margins, normalised
from gnnrl_ray.scoring.fusion import Fusion
from gnnrl_ray.scoring.layout import channels_last
from gnnrl_ray.scoring.training import calibration_batches, recalibrate_on
from gnnrl_ray.tracing.groups import ChannelGroups
from gnnrl_ray.tracing.network import copied, get_tensor
from gnnrl_ray.tracing.operations import Operation

# Images that are scored again in wide numbers. A graph cannot ask how many are worth it;
# of 413 changes to 14 candidates of 5,000 images, 5 were further down.
_AGAIN = 250


class MaskedNetwork:
    """The dense network in which only some channels are read; which, can be changed.

    What a layer reads from a channel that is not kept meets a weight of zero. All that is
    kept computes as in the removed network, statistics over batches included.

    Args:
        network: dense; left as it is.
        groups: of that network.

    Attributes:
        graph: of the network, with weights of its own.
    """

    def __init__(self, network: nn.Module, groups: ChannelGroups) -> None:
        self.graph = channels_last(copied(groups.graph_of(network)))
        self._groups = groups
        some = next(self.graph.parameters())
        # What everything else follows from, so that a graph of kernels has one input.
        count = int(groups.offsets[-1]) + 1
        self._flags = torch.ones(count, dtype=some.dtype, device=some.device)
        padded = [op for op in groups.operations if op.padded]
        self._masks = [
            (mask, self._numbers(op.inputs).view(mask.shape))
            for op, mask in insert_masks(self.graph, padded)
        ]
        self._weights = []
        for name, op in {op.weight: op for op in groups.layers}.items():
            weight = get_tensor(self.graph, name).detach()
            read = self._numbers(_read_by(op, weight))
            read = read.view(*read.shape, *[1] * (weight.dim() - 2))
            self._weights.append((weight, weight.clone(), read))

    def _numbers(self, channels: np.ndarray) -> Tensor:
        """Return places in the flags; the last is that of fixed channels."""
        places = torch.from_numpy(channels % len(self._flags))
        return places.to(self._flags.device)

    def keep(self, kept: Iterable[np.ndarray]) -> None:
        """Choose the channels, as :func:`~gnnrl_ray.pruning.removal.keep` returns them."""
        self._flags.copy_(torch.from_numpy(flags_of(self._groups, kept)))

    def apply(self) -> None:
        """Let the weights follow; waits for nothing."""
        for mask, read in self._masks:
            mask.copy_(self._flags[read])
        for weight, dense, read in self._weights:
            torch.mul(dense, self._flags[read], out=weight)


def _read_by(op: Operation, weight: Tensor) -> np.ndarray:
    """Return the channel that each weight [rows, columns, ...] is multiplied with."""
    rows, columns = weight.shape[:2]
    if op.transposed:
        return op.inputs[:, None]
    each = rows // op.groups  # filters that read the same part of the inputs
    return op.inputs.reshape(op.groups, columns).repeat(each, 0)


class MaskedEvaluator:
    """Scores candidates on the validation split, all in one network.

    Args:
        network: dense; left as it is.
        groups: of that network.
        data: on the device of the network.
        mode: how; never ``plain``.
        recalibrates: whether candidates get statistics of their own first.
        seed: of the images for these.
    """

    def __init__(
        self, network: nn.Module, groups: ChannelGroups, data: Data, mode: EvaluationMode,
        recalibrates: bool, seed: int,
    ) -> None:  # fmt: skip
        self._masked = MaskedNetwork(network, groups)
        self._network = self._masked.graph.eval()
        self._mode = mode
        train, self._split = (
            replace(split, channels_last=True) for split in (data.train, data.validation)
        )
        self._calibration = calibration_batches(train, seed) if recalibrates else []
        dtype, shape = getattr(torch, mode.precision), data.input_shape
        self._wide = Fusion(self._network, shape, torch.float32)
        self._fused = self._wide
        if dtype != torch.float32:
            self._fused = Fusion(self._network, shape, dtype)
        self._images = images = normalised(self._split, dtype)
        self._right = torch.zeros((), dtype=torch.int64, device=images.device)
        self._captured = Captured(self._score, images.device)

    def __call__(self, kept: Iterable[np.ndarray]) -> Score:
        """Score the candidate that keeps ``kept``; where memory is short, in parts."""
        self._masked.keep(kept)
        while True:
            try:
                self._captured()
                return Score(self._right.item() / len(self._split), len(self._split))
            except torch.OutOfMemoryError:
                if self._mode.batch == 1:
                    raise
            self._mode = replace(self._mode, batch=self._mode.batch // 2)
            self._captured = Captured(self._score, self._images.device)
            torch.cuda.empty_cache()

    @torch.no_grad()
    def _score(self) -> None:
        """Everything from the choice of channels to the number of images that are right."""
        self._masked.apply()
        recalibrate_on(self._network, self._calibration)
        self._wide.refold()
        if self._fused is not self._wide:
            self._fused.refold(self._wide)
        parts = self._images.split(self._mode.batch)
        logits = torch.cat([self._fused.network(part).float() for part in parts])
        labels = self._split.labels
        if self._fused is not self._wide:
            count = min(_AGAIN, len(labels))
            index = margins(logits, labels).abs().topk(count, largest=False).indices
            ((images, _),) = self._split.take(index).batches(count)
            logits[index] = self._wide.network(images).float()
        self._right.copy_((logits.argmax(1) == labels).sum())
