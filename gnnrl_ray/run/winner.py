"""The winner of a run, rebuilt from its directory."""

from pathlib import Path

import numpy as np
from torch import nn

from gnnrl_ray.errors import InputError
from gnnrl_ray.process import torch_as_it_starts
from gnnrl_ray.pruning.removal import deliver
from gnnrl_ray.run.directory import RunError, is_count, read_json
from gnnrl_ray.settings import parse_shape
from gnnrl_ray.storage import Storage
from gnnrl_ray.tracing.groups import ChannelGroups, trace
from gnnrl_ray.zoo import build_network, is_ours
from gnnrl_ray.zoo.weights import load_weights


@torch_as_it_starts()
def load_pruned(
    where: Path | str, network: nn.Module | None = None, weights: str | None = None
) -> nn.Module:
    """Rebuild the winner of the run in ``where``, in evaluation mode.

    Args:
        where: a run directory, or its URI.
        network: the dense architecture, trained or not, where the run's network is
            neither of the zoo nor torchvision's: no code is run because a file names it.
        weights: ``pruned`` or ``finetuned``; default: ``finetuned`` if there.

    Raises:
        RunError: the directory lacks what is needed.
        WeightsError: the weights are damaged.
    """
    storage = Storage(where)
    best = read_json(storage, "best.json")
    shape, tracing = best.get("input_shape"), best.get("trace", {})
    if not isinstance(shape, list) or not all(map(is_count, shape)):
        raise RunError(f"{storage}/best.json: input_shape is {shape!r}, not [C, H, W].")
    shape = parse_shape(",".join(map(str, shape)))
    unknown = not isinstance(tracing, dict) or tracing.keys() - {"keep", "skip_untraceable"}
    if unknown or not isinstance(tracing.get("keep"), str | None):
        raise RunError(f"{storage}/best.json: trace is {tracing!r}.")
    if network is None:
        name, classes = best.get("network"), best.get("classes")
        if not isinstance(name, str) or not is_ours(name):
            raise RunError(f"the network of {storage} is your own; pass `network`.")
        if not is_count(classes):
            raise RunError(f"{storage}/best.json: classes are {classes!r}.")
        network = build_network(name, classes, shape[-1])
    groups = trace(network, shape, **tracing)
    return rebuild(storage, network, groups, weights)


@torch_as_it_starts()
def rebuild(
    storage: Storage,
    network: nn.Module,
    groups: ChannelGroups,
    weights: str | None = None,
) -> nn.Module:
    """Do what :func:`load_pruned` does, with a network that has been traced."""
    kept = kept_in(storage, groups)
    if weights is None:
        there = storage.exists("finetuned.safetensors")
        weights = "finetuned" if there else "pruned"

    def load(graph: nn.Module, smaller: nn.Module) -> None:
        load_weights(graph, storage.path(f"{weights}.safetensors"), smaller.state_dict())

    return deliver(network, groups, kept, load).eval()


def kept_in(storage: Storage, groups: ChannelGroups) -> tuple[np.ndarray, ...]:
    """Return the channels that ``best.json`` says each group keeps.

    Raises:
        RunError: no winner, or one of other groups.
    """
    kept = read_json(storage, "best.json").get("kept")
    if not isinstance(kept, dict) or kept.keys() != set(groups.names):
        raise RunError(f"{storage}/best.json is of other groups than this network's.")
    channels = []
    for name, width in zip(groups.names, groups.widths, strict=True):
        given = kept[name]
        valid = isinstance(given, list) and all(
            type(c) is int and 0 <= c < width for c in given
        )
        if not valid or sorted(set(given)) != given:
            raise RunError(
                f"{storage}/best.json: what {name} keeps must be channels in "
                f"0..{width - 1}, in order."
            )
        channels.append(np.array(given, int))
    try:
        groups.check_widths(np.array([len(channel) for channel in channels]))
    except InputError as error:
        raise RunError(f"{storage}/best.json: {error}") from None
    return tuple(channels)
