"""What an agent has learnt, in a file of tensors, and a start from it elsewhere.

Everything that the agent whose critics choose has learnt is of groups, motifs and graphs
in general, so it can be taken to another network; but for the weights with which the
nodes of each motif are pooled, which are of that motif.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from torch import Tensor, nn

from gnnrl_ray.zoo.weights import WeightsError, read_weights

AGENT_FILE = "agent.safetensors"
PRETRAINED = Path(__file__).with_name("pretrained.safetensors")
_OF_MOTIFS = "alpha"  # a pooling weight for each node: of one network alone


def knowledge(module: nn.Module, **about: object) -> bytes:
    """Return the parameters of ``module`` as a safetensors file.

    Args:
        module: of an agent.
        **about: kept as its metadata, in JSON.
    """
    tensors = {name: p.detach().cpu().contiguous() for name, p in module.named_parameters()}
    said = {name: json.dumps(value) for name, value in about.items()}
    return safetensors.torch.save(tensors, said)


def start_from(module: nn.Module, path: Path | str) -> dict[str, Tensor]:
    """Let ``module`` know what the agent in ``path`` has learnt.

    Returns:
        What has been taken over, by the names of the parameters.

    Raises:
        WeightsError: it is damaged, or of another kind of agent.
    """
    there, taken = read_weights(path), {}
    for name, parameter in module.named_parameters():
        if name.rpartition(".")[2] == _OF_MOTIFS:
            continue
        given = there.get(name)
        if given is None or given.shape != parameter.shape:
            kind = "has none" if given is None else f"has {list(given.shape)}"
            raise WeightsError(
                f"{path} is of another agent: for {name} {list(parameter.shape)} it "
                f"{kind}. Start from a search with the same --levels and --agent settings."
            )
        taken[name] = given.to(parameter)
    apply(module, taken, 1.0)
    return taken


def apply(module: nn.Module, tensors: Mapping[str, Tensor], share: float) -> None:
    """Move the parameters of ``module`` by ``share`` of the way to ``tensors``."""
    parameters = dict(module.named_parameters())
    for name, tensor in tensors.items():
        parameters[name].data.lerp_(tensor, share)
