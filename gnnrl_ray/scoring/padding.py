"""A pruned network among zeros: as wide as kernels of a GPU are fast, and the same.

Tensor cores take channels in eights; a convolution of 11 of them is padded, in memory and
anew in every call, which costs a step of training more than all of the dense network does
(docs/performance.md). Here the zeros are there once: channels that were pruned stay, up to
the next eight, as zeros that training leaves alone.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain

import numpy as np
import torch
from torch import Tensor, nn

from gnnrl_ray.errors import Notice
from gnnrl_ray.pruning.removal import flags_of, insert_masks, part_of, remove
from gnnrl_ray.scoring.layout import channels_last
from gnnrl_ray.tracing.check import Reference
from gnnrl_ray.tracing.groups import ChannelGroups
from gnnrl_ray.tracing.network import TraceError, get_tensor

_MULTIPLE = 8  # of channels, in half precision


class Padded:
    """Trains what a pruned network is, in a wider one.

    Args:
        smaller: the network of the channels ``kept``, whose weights are taken over, and to
            which :meth:`unload` returns them.
        network: the dense one that it was made of.
        groups: of the dense network.
        kept: channels of each group in ``smaller``, as
            :func:`~gnnrl_ray.pruning.removal.keep` returns them.

    Attributes:
        network: the wider one, on the device of ``smaller``. As long as :meth:`hold` is
            called after every update, it returns what ``smaller`` would.

    Raises:
        TraceError: it does not: zeros count where a layer normalises over channels.
    """

    def __init__(
        self, smaller: nn.Module, network: nn.Module, groups: ChannelGroups,
        kept: Iterable[np.ndarray],
    ) -> None:  # fmt: skip
        kept = tuple(kept)
        wide = tuple(
            # Of a convolution in groups, each must have as many channels as the others.
            index if parts else _widened(index, count)
            for index, count, parts in zip(kept, groups.widths, groups.parts, strict=True)
        )
        self.network = remove(network, groups, wide)
        device = next(smaller.parameters()).device
        names, inside = dict(_tensors(self.network)), _inside(network, groups, kept, wide)
        # Where channels are padded with others, one that is not kept passes on what it got
        # from such a shortcut itself.
        flags, there = flags_of(groups, kept), flags_of(groups, wide)
        padded_ones = [op for op in groups.operations if op.padded]
        for op, mask in insert_masks(self.network, padded_ones, there):
            read = op.inputs[there[op.inputs]]
            mask.copy_(torch.from_numpy(flags[read]).view(mask.shape))
        channels_last(self.network.to(device))
        if dict(_tensors(smaller)).keys() != names.keys():
            raise TraceError("the network has weights that its graph has not.")
        own = dict(_tensors(self.network))
        self._parts = [
            (theirs, own[name], inside[name].to(device) if name in inside else ...)
            for name, theirs in _tensors(smaller)
        ]
        self._held = [
            (ours.detach(), torch.empty_like(ours).copy_(part))  # in memory alike
            for theirs, ours, part in self._parts
            if theirs.requires_grad and part is not ...
        ]
        self._load()
        expected = Reference.of(smaller, groups.input_shapes)
        expected.check(self.network, "the pruned network among zeros")

    @torch.no_grad()
    def _load(self) -> None:
        for theirs, ours, part in self._parts:
            ours.requires_grad_(theirs.requires_grad)
            ours.zero_()
            ours[part] = theirs if part is ... else theirs.flatten()

    def hold(self) -> None:
        """Make zeros again of what was updated and is not kept; waits for nothing."""
        if self._held:  # in one kernel
            held, masks = map(list, zip(*self._held, strict=True))
            torch._foreach_mul_(held, masks)  # pyright: ignore[reportPrivateImportUsage]

    @torch.no_grad()
    def unload(self) -> None:
        """Let ``smaller`` have what was learnt."""
        for theirs, ours, part in self._parts:
            theirs.copy_(ours[part].view(theirs.shape))


def _tensors(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield what is trained and counted; not which channels are selected."""
    for name, tensor in chain(network.named_parameters(), network.named_buffers()):
        if not name.startswith("taken_"):
            yield name, tensor


def _widened(kept: np.ndarray, count: int) -> np.ndarray:
    """Return ``kept`` and as many other channels of ``count`` as make eights."""
    wide = min(count, -(-len(kept) // _MULTIPLE) * _MULTIPLE)
    others = np.setdiff1d(np.arange(count), kept)
    return np.sort(np.concatenate([kept, others[: wide - len(kept)]]))


def _inside(
    network: nn.Module, groups: ChannelGroups, kept: Iterable[np.ndarray],
    wide: Iterable[np.ndarray],
) -> dict[str, Tensor]:  # fmt: skip
    """Return which numbers of tensors of ``wide`` channels are those of ``kept`` ones.

    Bool, in the shape of the wider tensor; both have them in the same order.
    """
    graph = groups.graph_of(network)
    flags = [flags_of(groups, channels) for channels in (kept, wide)]
    inside = {}
    for name, layout in groups.layouts.items():
        count = get_tensor(graph, name).shape
        numbers = torch.arange(count.numel()).view(count)
        own, wider = (part_of(numbers, layout, flag) for flag in flags)
        if own.shape != wider.shape:
            inside[name] = torch.isin(wider, own)
    return inside


@contextmanager
def padded(
    smaller: nn.Module, network: nn.Module, groups: ChannelGroups,
    kept: Iterable[np.ndarray],
) -> Iterator[tuple[nn.Module, Callable[[], None] | None]]:  # fmt: skip
    """Yield what to train in place of ``smaller``, and what to call after every update.

    Afterwards, ``smaller`` has what was learnt. On a CPU, and where zeros would count, that
    is ``smaller`` itself, and nothing. Takes what :class:`Padded` takes.
    """
    wider = None
    if next(smaller.parameters()).device.type == "cuda":
        try:
            wider = Padded(smaller, network, groups, kept)
        except TraceError:
            pass  # as it should be
        except Exception as error:
            # It is only quicker: no search ends for that.
            reason = str(error).split("\n")[0]
            warnings.warn(
                f"trained without zeros, so slower: {reason}", Notice, stacklevel=3
            )
    if wider is None:
        yield smaller, None
        return
    try:
        yield wider.network, wider.hold
    finally:
        wider.unload()
