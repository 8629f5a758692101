"""Where network and data of a run come from: loaded in one way, whoever asks.

What loads them is imported then: ``--help`` needs the names alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from gnnrl_ray.errors import InputError
from gnnrl_ray.settings import (
    DATASETS,
    FOLDER,
    VALIDATIONS,
    Checked,
    check_dataset,
    last_word,
    parse_dataset,
    parse_path,
    setting,
)
from gnnrl_ray.zoo import NETWORKS, build_network, check_network, is_ours

if TYPE_CHECKING:
    from torch import nn

    from gnnrl_ray.data import Data
    from gnnrl_ray.scoring.checkpoint import Checkpoint

# The data set that needs no file, small enough to train a network on the spot.
EMBEDDED, EMBEDDED_EPOCHS = "digits", 20

OnStep = Callable[[int, float], None]


@dataclass(frozen=True, kw_only=True)
class Source(Checked):
    """Network and data, by name; every field is an option of the commands that load them.

    ``network`` is None where a module was passed on instead.
    """

    panels: ClassVar[Mapping[str, Sequence[str]]] = {"Network and data": ()}

    network: str | None = setting(
        "resnet20",
        f"One of: {', '.join(NETWORKS)}, torchvision:NAME, timm:NAME or "
        "package.module:callable.",
    )
    dataset: str = setting(
        EMBEDDED,
        f"One of: {', '.join(DATASETS)} ({EMBEDDED} is embedded); {FOLDER}PATH, with a "
        "folder of images for each class, under train/ and val/ or without; or "
        "package.module:callable, which returns loaders for training and validation.",
        parse=parse_dataset,
    )
    image_size: int | None = setting(
        None,
        "Side of what a network sees of the images of a folder; default: their own if they "
        "are all of one size, else 224.",
        least=8,
        most=2**13,
    )
    validation: str = setting(
        "test-5k",
        "Where validation images are taken from. test-5k is the paper's protocol; what is "
        "left of the test set is the holdout.",
        metavar="|".join(VALIDATIONS),
    )
    weights: str | None = setting(
        None, "State dict of the dense network (.th, .pt, .safetensors); file or URI.",
        free=True, parse=parse_path,
    )  # fmt: skip
    data_dir: str | None = setting(
        None, "Folder of cifar*.npz; default: data/ in $GNNRL_HOME or cache.",
        free=True, parse=parse_path,
    )  # fmt: skip

    @property
    def data_name(self) -> str:
        """What the data set is called, without where it is."""
        return last_word(self.dataset)

    def check(self) -> None:
        """Raise an ``InputError`` for what can be known to be nowhere, at once."""
        if self.network is not None:
            check_network(self.network)
        check_dataset(self.dataset, self.validation)

    def load(self, on_step: OnStep | None = None) -> "tuple[nn.Module, Data]":
        """Return the trained network, in evaluation mode, and the data.

        Args:
            on_step: see :meth:`load_network`.

        Raises:
            InputError: an unknown name, a damaged file, or none and no way to get one.
        """
        data = self.load_data()
        return self.load_network(data, on_step), data

    def load_data(self) -> "Data":
        """Return the data; a wrong name of a network does not wait for a download."""
        from gnnrl_ray.data import load_data

        if self.network is None:
            raise InputError(
                "the network of this run is your own module: go on with it in Python, with "
                "gnnrl_ray.search(network, data, out=..., resume=True)."
            )
        check_network(self.network)
        return load_data(self.dataset, self.data_dir, self.validation, self.image_size)

    def load_network(self, data: "Data", on_step: OnStep | None = None) -> "nn.Module":
        """Return the trained network for ``data``, in evaluation mode.

        Weights for the embedded data set are made where there are none yet.

        Args:
            data: that it is for.
            on_step: called with the number of steps done and the last loss, where the
                network has to be trained.
        """
        network = self.build(data)
        self.load_weights(network, data, on_step)
        return network

    def build(self, data: "Data", seed: int = 0) -> "nn.Module":
        """Return the untrained network for ``data``, in evaluation mode."""
        import torch

        from gnnrl_ray.data.loader import shapes_of
        from gnnrl_ray.process import generators_kept, torch_as_it_starts

        size = shapes_of(data.input_shape)[0][-1]
        if data.classes is None and is_ours(self.network):
            raise InputError(
                f"--dataset {self.dataset} does not say how many classes there are; let it "
                "return Data.of(..., classes=K)."
            )
        with torch_as_it_starts(), generators_kept():
            torch.manual_seed(seed)
            return build_network(self.network, data.classes or 10, size).eval()

    def load_weights(
        self, network: "nn.Module", data: "Data", on_step: OnStep | None = None
    ) -> None:
        """Do what :meth:`load_network` does, with a network that :meth:`build` returned."""
        from gnnrl_ray.zoo.weights import fetch_weights, load_weights, weights_path

        made = weights_path(self.network, self.dataset).is_file()
        if self.weights is None and self.dataset == EMBEDDED and not made:
            begun = self.checkpoint(epochs=EMBEDDED_EPOCHS).is_of_this()
            self.train(network, data, epochs=EMBEDDED_EPOCHS, resume=begun, on_step=on_step)
        else:
            path = self.weights or fetch_weights(self.network, self.dataset)
            load_weights(network, path)

    def checkpoint(
        self, *, epochs: float, lr: float = 0.05, batch_size: int = 128, seed: int = 0
    ) -> "Checkpoint":
        """Return what it takes to go on with :meth:`train`, given the same."""
        from gnnrl_ray.scoring.checkpoint import Checkpoint
        from gnnrl_ray.storage import Storage
        from gnnrl_ray.zoo.weights import weights_path

        path = weights_path(self.network, self.dataset)
        about = {"network": self.network, "dataset": self.dataset,
                 "image_size": self.image_size, "epochs": epochs, "lr": lr,
                 "batch_size": batch_size, "seed": seed}  # fmt: skip
        return Checkpoint(Storage(path.parent), f"{path.stem}.training.safetensors", about)

    def train(
        self, network: "nn.Module", data: "Data", *, epochs: float, lr: float = 0.05,
        batch_size: int = 128, seed: int = 0, device: str = "cpu", resume: bool = False,
        on_step: OnStep | None = None,
    ) -> None:  # fmt: skip
        """Train ``network``; its weights go to where they are looked for.

        Args:
            network: that :meth:`build` returned; trained in place.
            data: trained on ``data.train``.
            epochs: passes over it, or a part of one.
            lr: peak learning rate.
            batch_size: images in one step.
            seed: of order and augmentation.
            device: to train on.
            resume: go on with what was interrupted, or killed, and was given the same.
            on_step: called with the number of steps done and the last loss.

        Raises:
            InputError: nothing to go on with, or something else.
            KeyboardInterrupt: once it can be gone on with.
        """
        from gnnrl_ray.process import torch_as_it_starts
        from gnnrl_ray.scoring.training import Training
        from gnnrl_ray.storage import Storage
        from gnnrl_ray.zoo.weights import save_weights, weights_path

        path = weights_path(self.network, self.dataset)
        Storage(path.parent).check_writable("set $GNNRL_HOME to a folder of yours")
        checkpoint = self.checkpoint(epochs=epochs, lr=lr, batch_size=batch_size, seed=seed)
        state = checkpoint.read() if resume else None
        with torch_as_it_starts():
            training = Training(
                network.to(device), data.train.to(device), lr=lr, batch_size=batch_size,
                steps=training_steps(data, epochs, batch_size), seed=seed, on_step=on_step,
            )  # fmt: skip
            checkpoint.train(training, state)
        save_weights(network.to("cpu").eval(), path)
        checkpoint.remove()


def training_steps(data: "Data", epochs: float, batch_size: int = 128) -> int:
    """Return how many batches ``epochs`` passes over the training images take."""
    from gnnrl_ray.scoring.training import steps_per_epoch

    return max(1, round(epochs * steps_per_epoch(data.train, batch_size)))
