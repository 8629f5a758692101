"""Weights on disk: where they are kept, how they are fetched, checked and read.

Only tensors are ever read (safetensors, or ``torch.load`` with ``weights_only=True``): a
file that holds anything else is refused before any of it runs.
"""

import hashlib
import io
import json
import pickle
import shlex
from collections.abc import Iterable
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from gnnrl_ray.errors import InputError
from gnnrl_ray.home import home
from gnnrl_ray.settings import DATASETS, file_name, last_word
from gnnrl_ray.storage import storage_of

SOURCE = "https://github.com/akamaster/pytorch_resnet_cifar10/raw/master/pretrained_models/"
# Each published file carries the first eight digits of its SHA-256 in its name.
PUBLISHED = {
    ("resnet20", "cifar10"): "resnet20-12fca82f.th",
    ("resnet32", "cifar10"): "resnet32-d509ac18.th",
    ("resnet44", "cifar10"): "resnet44-014dd654.th",
    ("resnet56", "cifar10"): "resnet56-4bfd9763.th",
    ("resnet110", "cifar10"): "resnet110-1d1ed7c2.th",
}


class WeightsError(InputError):
    """A weights file that is missing, damaged, unsafe or of another network."""


def weights_path(name: str, dataset: str) -> Path:
    """Return where the weights of a network for a data set are kept, there or not.

    Args:
        name: of the network.
        dataset: as ``--dataset`` has it. Of what is not ours, the last word alone would not
            do: many folders are called ``images``, and one may be called ``digits``.
    """
    called = dataset
    if dataset not in DATASETS:
        digest = hashlib.sha256(dataset.encode()).hexdigest()
        called = f"{last_word(dataset)}-{digest[:8]}"
    file = PUBLISHED.get((name, dataset), f"{file_name(name)}-{called}.safetensors")
    return home() / "weights" / file


def fetch_weights(name: str, dataset: str) -> Path:
    """Return the weights file, downloading it first if it is published and not here.

    Args:
        name: of the network.
        dataset: as ``--dataset`` has it.

    Raises:
        WeightsError: no such file here, and none could be had.
    """
    path = weights_path(name, dataset)
    published = PUBLISHED.get((name, dataset))
    if published is None:
        if not path.is_file():
            train = ("gnnrl-ray", "train", "--network", name, "--dataset", dataset)
            raise WeightsError(
                f"no weights of {name!r} for {dataset!r} are published and none are at "
                f"{path}; make them with `{shlex.join(train)}`, or pass your own with "
                "--weights FILE."
            )
        return path
    prefix = path.stem.rsplit("-", 1)[1]
    if path.is_file():
        _check_hash(path, prefix)
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(
            SOURCE + published, str(path), hash_prefix=prefix, progress=True
        )
    except (OSError, RuntimeError) as error:
        raise WeightsError(
            f"cannot download {SOURCE + published} ({error}); put the file at {path} "
            "yourself, or pass --weights FILE."
        ) from error
    return path


def _check_hash(path: Path, prefix: str) -> None:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not digest.startswith(prefix):
        raise WeightsError(
            f"{path}: SHA-256 begins {digest[:8]}, not {prefix}: the file is damaged; "
            "delete it and it will be fetched again."
        )


def read_weights(path: Path | str) -> dict[str, Tensor]:
    """Read a state dict of tensors, and nothing else, from ``path``, which may be a URI.

    A wrapping ``{"state_dict": ...}`` and the ``module.`` prefix of
    ``nn.DataParallel`` are taken off.

    Raises:
        WeightsError: the file is missing, truncated, or holds other than tensors.
    """
    try:
        storage, name = storage_of(path)
        file = storage.read(name)
        if str(path).endswith(".safetensors"):
            return safetensors.torch.load(file)
        content = torch.load(io.BytesIO(file), map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise WeightsError(f"no weights file at {path}.") from error
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} is not a plain state dict: it is damaged or asks for Python "
            "objects to be built, which is refused; nothing in it was run. Save "
            "`network.state_dict()` and pass that file."
        ) from error
    except (
        *(OSError, EOFError, RuntimeError, ValueError, KeyError, IndexError),
        safetensors.SafetensorError,
    ) as error:
        raise WeightsError(f"{path} is truncated or damaged: {error}") from error
    state = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(state, dict) or not all(
        isinstance(value, Tensor) for value in state.values()
    ):
        raise WeightsError(f"{path} holds no state dict of tensors.")
    return {str(key).removeprefix("module."): value for key, value in state.items()}


def read_facts(path: Path | str) -> dict[str, str]:
    """Return what a safetensors file that :func:`read_weights` has read says of itself."""
    storage, name = storage_of(path)
    file = storage.read(name)
    size = int.from_bytes(file[:8], "little")
    return json.loads(file[8 : 8 + size]).get("__metadata__", {})


def load_weights(network: nn.Module, path: Path | str, ignored: Iterable[str] = ()) -> None:
    """Load the state dict at ``path`` into ``network``, strictly.

    Args:
        network: whose weights they are to be.
        path: a file, or its URI.
        ignored: keys that may be there beside those of ``network``.

    Raises:
        WeightsError: unreadable (see :func:`read_weights`), or of another network; names
            the first keys that are missing, unknown or of another shape, and selections
            of other channels than those of ``network``.
    """
    state = read_weights(path)
    expected = network.state_dict()
    wrong = [
        *(f"{key} is missing" for key in expected.keys() - state.keys()),
        *(f"{key} is unknown" for key in state.keys() - expected.keys() - set(ignored)),
        *(
            f"{key} has shape {tuple(state[key].shape)}, not {tuple(value.shape)}"
            for key, value in expected.items()
            if key in state and state[key].shape != value.shape
        ),
    ]
    if not wrong:
        wrong = [
            f"{key} takes other channels"
            for key, value in expected.items()
            if _selects(key) and key in state and not torch.equal(value.cpu(), state[key])
        ]
    # Old checkpoints predate the batch counters of normalisation layers, and selections.
    wrong += [
        f"{key} is not finite"
        for key, value in state.items()
        if value.is_floating_point() and not value.isfinite().all()
    ]
    wrong = sorted(w for w in wrong if not (w.endswith("is missing") and _may_lack(w)))
    if wrong:
        shown = "; ".join(wrong[:3]) + (
            f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        )
        raise WeightsError(f"{path} is not of this {type(network).__name__}: {shown}.")
    network.load_state_dict(state, strict=False)


def _selects(key: str) -> bool:
    """Say whether a tensor says which channels are taken (see ``removal.remove``)."""
    return key.rpartition(".")[2].startswith("taken_")


def _may_lack(key: str) -> bool:
    return "num_batches_tracked" in key or _selects(key)


def hash_of(network: nn.Module) -> str:
    """Return the SHA-256 of all parameters and buffers, by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(
            tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        )
    return digest.hexdigest()


def packed(network: nn.Module) -> bytes:
    """Return the state dict of ``network`` as a file of safetensors.

    Tensors that share memory, as tied weights do, are in it once for each name.
    """
    plain = torch.contiguous_format
    tensors = network.state_dict().items()
    state = {name: tensor.clone(memory_format=plain) for name, tensor in tensors}
    return safetensors.torch.save(state)


def save_weights(network: nn.Module, path: Path | str) -> None:
    """Write the state dict of ``network`` to ``path``, whole or not at all."""
    storage, name = storage_of(path)
    storage.write(name, packed(network))
