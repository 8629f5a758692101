"""Torch's plain layers in place of calls of their functions.

A layer that derives from one of torch's and has a forward of its own, as nearly every one
of timm, calls ``F.batch_norm`` or ``F.conv2d`` with its own weights and statistics. As the
layer that it derives from, it is recalibrated, fused and masked like any other.
"""

import copy

import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

_CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
# By function: the layer, what the function takes, and what of that is a tensor.
_LAYERS = {
    F.batch_norm: (
        _BatchNorm,
        ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum",
         "eps"),
    ),
    F.group_norm: (nn.GroupNorm, ("input", "num_groups", "weight", "bias", "eps")),
    F.linear: (nn.Linear, ("input", "weight", "bias")),
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), (_ConvNd, _CONVOLUTION)),
}  # fmt: skip
_TENSORS = ("weight", "bias", "running_mean", "running_var")
# What a normalisation takes from itself whenever it is called.
_OWN = ("training", "momentum")


def with_plain_layers(graph: fx.Graph, network: nn.Module) -> dict[str, nn.Module]:
    """Let ``graph``, of ``network``, call torch's layers; returns them by name.

    They share their weights and statistics with the layers of ``network`` by these names.
    """
    layers: dict[str, nn.Module] = {}
    for node in [n for n in graph.nodes if n.op == "call_function"]:
        if node.target not in _LAYERS:
            continue
        kind, names = _LAYERS[node.target]
        given = dict(zip(names, node.args, strict=False)) | node.kwargs
        tensors = {key: given.get(key) for key in _TENSORS if given.get(key) is not None}
        owner = _owner(tensors)
        layer = network.get_submodule(owner) if owner is not None else None
        if not isinstance(layer, kind) or not _all_given(layer, tensors):
            continue
        said = {k: v for k, v in given.items() if k not in ("input", *_TENSORS, *_OWN)}
        padded = getattr(layer, "padding_mode", "zeros") != "zeros"
        if padded or any(isinstance(value, fx.Node) for value in said.values()):
            continue
        plain = _as_torchs_own(layer)
        for key, value in said.items():
            setattr(plain, key, _like(getattr(plain, key), value))
        known = layers.setdefault(owner, plain)
        if any(getattr(known, key) != getattr(plain, key) for key in said):
            continue  # called in two different ways
        with graph.inserting_before(node):
            call = graph.call_module(owner, (given["input"],))
        call.meta = dict(node.meta)
        node.replace_all_uses_with(call)
        read = node.all_input_nodes
        graph.erase_node(node)
        for source in read:
            if source.op == "get_attr" and not source.users:
                graph.erase_node(source)
    return layers


def _owner(tensors: dict[str, object]) -> str | None:
    """Return the module that all of ``tensors`` are attributes of, by their own names."""
    owners = set()
    for key, node in tensors.items():
        if not isinstance(node, fx.Node) or node.op != "get_attr":
            return None
        owner, _, name = str(node.target).rpartition(".")
        if name != key:
            return None
        owners.add(owner)
    return owners.pop() if len(owners) == 1 else None


def _all_given(layer: nn.Module, tensors: dict[str, object]) -> bool:
    return all(
        (getattr(layer, key, None) is not None) == (key in tensors) for key in _TENSORS
    )


def _as_torchs_own(layer: nn.Module) -> nn.Module:
    """Return a layer of the class of torch that ``layer``'s derives from, sharing all."""
    plain = copy.copy(layer)
    vars(plain).pop("forward", None)  # of this one alone, in place of its class's
    plain.__class__ = next(
        base
        for base in type(layer).__mro__
        if base.__module__.startswith("torch.nn.modules")
    )
    for name in ("_parameters", "_buffers", "_modules"):
        setattr(plain, name, dict(vars(layer)[name]))
    return plain


def _like(before: object, value: object) -> object:
    """Return ``value``, once for every axis if ``before`` is."""
    each = isinstance(before, tuple) and isinstance(value, int)
    return (value,) * len(before) if each else value
