"""Which channels matter: a ranking of every group, so that narrower candidates nest.

Axis letters: G prunable groups, C channels of one group, K numbers of one channel.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from gnnrl_ray.data.loader import Images, each_of
from gnnrl_ray.data.records import mapped
from gnnrl_ray.errors import InputError
from gnnrl_ray.settings import IMPORTANCES
from gnnrl_ray.tracing.groups import ChannelGroups
from gnnrl_ray.tracing.network import evaluating
from gnnrl_ray.tracing.operations import Operation

Batch = tuple[Images, Any]
Loss = Callable[[Any, Any], Tensor]  # of what the network returns, and the targets

# From the weights of a group's filters [C, K] to scores [C].
_WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    "l1": lambda weights: weights.abs().sum(1),
    "l2": lambda weights: weights.norm(dim=1),
    # How far a filter is from all others: https://arxiv.org/abs/1811.00250
    "median": lambda weights: torch.cdist(weights, weights).sum(1),
}
_PIXELS = 2**18  # of images that a gradient is taken of at once: 256 of CIFAR


def importances(
    network: nn.Module,
    groups: ChannelGroups,
    importance: str = "l2",
    seed: int = 0,
    batch: Batch | None = None,
    loss: Loss = F.cross_entropy,
) -> tuple[np.ndarray, ...]:
    """Say how important each channel of every group is.

    A channel's weights are those of all filters that make it, over all layers of its
    group, so that layers of one residual stream are ranked as one.

    Args:
        network: the dense network.
        groups: of that network.
        importance: ``l1`` or ``l2`` norm of a channel's weights; ``median``, their
            distance from all other channels'; ``bn``, the scale of its normalisation
            (``l2`` where there is none); ``taylor``, how much the loss changes with it to
            first order (https://arxiv.org/abs/1906.10771); ``random``.
        seed: for ``random``.
        batch: images [B, C, H, W] and labels [B], for ``taylor``.
        loss: of outputs and labels, for ``taylor``.

    Returns:
        G arrays, float64 [C] each: the larger, the more important.

    Raises:
        InputError: unknown importance, or ``taylor`` without a batch.
    """
    if importance not in IMPORTANCES:
        raise InputError(
            f"unknown importance {importance!r}; known: {', '.join(IMPORTANCES)}."
        )
    scores = _scores(network, groups, importance, seed, batch, loss)
    return tuple(score.double().cpu().numpy() for score in scores)


def sensitivities(
    network: nn.Module,
    groups: ChannelGroups,
    batches: Iterable[Batch],
    loss: Loss = F.cross_entropy,
) -> np.ndarray:
    """Say how much the loss of each batch changes with each group, float64 [N, G].

    The sum of what ``taylor`` says of its channels, see :func:`importances`.
    """
    every = (importances(network, groups, "taylor", batch=b, loss=loss) for b in batches)
    return np.array([[channels.sum() for channels in one] for one in every])


def rank(
    network: nn.Module, groups: ChannelGroups, *measured_by: Any, **settings: Any
) -> tuple[np.ndarray, ...]:
    """Order channels as :func:`order` does, by their :func:`importances`."""
    return order(groups, importances(network, groups, *measured_by, **settings))


def filters(network: nn.Module, groups: ChannelGroups) -> list[Tensor]:
    """Return the weights of each group's channels: G tensors float32 [C, K]."""
    return _filters(groups, _tensors(network, groups))


def order(groups: ChannelGroups, scores: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
    """Order the channels of every group from most to least important.

    In a group with a step, every so many channels divide evenly among the parts that must
    stay balanced.

    Args:
        groups: of the network.
        scores: G arrays [C]: how important each channel is.

    Returns:
        G arrays, int64 [C] each: a permutation of 0 .. C - 1.
    """
    return tuple(map(_order, scores, groups.parts))


def _scores(
    network: nn.Module, groups: ChannelGroups, importance: str, seed: int,
    batch: Batch | None, loss: Loss,
) -> list[Tensor]:  # fmt: skip
    tensors = _tensors(network, groups)
    if importance == "random":
        generator = torch.Generator().manual_seed(seed)
        return [torch.rand(width, generator=generator) for width in groups.widths.tolist()]
    if importance == "taylor":
        if batch is None:
            raise InputError("importance 'taylor' needs a batch of images and labels.")
        slopes = _slopes(network, tensors, batch, loss)
        products = {name: tensor * slopes[name] for name, tensor in tensors.items()}
        return [rows.sum(1).square() for rows in _filters(groups, products)]
    if importance == "bn":
        norms = _scales(groups, tensors)
        weights = [_WEIGHTS["l2"](rows) for rows in _filters(groups, tensors)]
        return [
            weight if norm is None else norm
            for norm, weight in zip(norms, weights, strict=True)
        ]
    return [_WEIGHTS[importance](rows) for rows in _filters(groups, tensors)]


def _tensors(network: nn.Module, groups: ChannelGroups) -> dict[str, Tensor]:
    """Return the parameters that have channels."""
    return {
        name: network.get_parameter(name).detach()
        for name, layout in groups.layouts.items()
        if layout.trained
    }


def _slopes(
    network: nn.Module, tensors: dict, batch: Batch, loss: Loss
) -> dict[str, Tensor]:
    """The loss's gradient with respect to each of ``tensors``, on one batch.

    Of large images, in parts: what a backward pass keeps of 256 of them fills a machine.
    """
    images, labels = batch
    parameters = {name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}
    some = next(iter(parameters.values()))
    parts: Iterable[Batch] = [batch]
    if isinstance(images, Tensor) and isinstance(labels, Tensor):
        size = max(1, _PIXELS // math.prod(images.shape[2:]))
        parts = zip(images.split(size), labels.split(size), strict=True)
    slopes = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    for part, own in parts:
        given = mapped(lambda image: image.to(some.device, some.dtype), part)
        wanted = mapped(lambda target: target.to(some.device), own)
        with evaluating(network), torch.enable_grad():
            outputs = torch.func.functional_call(network, parameters, each_of(given))
            share = 1 if own is labels else len(own) / len(labels)
            found = torch.autograd.grad(
                loss(outputs, wanted) * share, list(parameters.values()),
                allow_unused=True, materialize_grads=True,
            )  # fmt: skip
        for slope, more in zip(slopes.values(), found, strict=True):
            slope += more
    return slopes


def _filters(groups: ChannelGroups, tensors: dict[str, Tensor]) -> list[Tensor]:
    """[C, K] for each group: all filters that make a channel, side by side."""
    made: list[dict[str, Tensor]] = [{} for _ in groups.names]
    for op in groups.layers:
        if op.depthwise:
            continue
        filters = _by_output(op, tensors[op.weight])
        for g, rows in _by_group(groups, op.outputs, filters):
            made[g].setdefault(op.weight, rows)
    return [torch.cat(list(rows.values()), 1) for rows in made]


def _by_output(op: Operation, weight: Tensor) -> Tensor:
    """Return the filters of a layer, [C_out, K]."""
    if op.transposed:
        weight = weight.unflatten(0, (op.groups, -1)).transpose(1, 2).flatten(0, 1)
    return weight.flatten(1).float().cpu()


def _by_group(groups: ChannelGroups, channels: np.ndarray, rows: Tensor):
    """Yield each group among ``channels`` with its rows [C, K], a channel's in one."""
    owner = groups.group_of(channels)
    for g in np.unique(owner[owner >= 0]).tolist():
        at = np.flatnonzero(owner == g)
        order = at[np.argsort(channels[at], kind="stable")]
        yield g, rows[order].reshape(groups.widths[g], -1)


def _scales(groups: ChannelGroups, tensors: dict) -> list[Tensor | None]:
    """[C] for each group: the scales of all normalisations of a channel, or None."""
    found: list[Tensor | None] = [None] * len(groups.names)
    for op in groups.operations:
        name = f"{op.module}.weight"
        if op.kind == "norm" and name in tensors:
            scale = tensors[name].abs().float().cpu()[:, None]
            for g, rows in _by_group(groups, op.outputs, scale):
                before = found[g]
                found[g] = rows.sum(1) if before is None else before + rows.sum(1)
    return found


def _order(score: np.ndarray, parts: tuple[np.ndarray, ...]) -> np.ndarray:
    """Order channels so that every so many of them balance ``parts``.

    Channels join the part they are in, in one division, to that in the other: a regular
    bipartite graph, which is a union of perfect matchings (König). Taken best first, they
    nest, and each is balanced.
    """
    order = np.argsort(-score, kind="stable")
    if not parts:
        return order
    rows, columns = parts[0][order], parts[-1][order]
    count = rows.max() + 1
    taken = []
    left = np.ones(len(order), bool)
    while left.any():
        loss = np.full((count, count), np.inf)
        which = np.empty((count, count), int)
        for i in np.flatnonzero(left)[::-1]:  # the best of each pair of parts last
            which[rows[i], columns[i]] = i
            loss[rows[i], columns[i]] = -score[order[i]]
        matched = np.sort(which[linear_sum_assignment(loss)])
        left[matched] = False
        taken.append(order[matched])
    return np.concatenate(taken)
