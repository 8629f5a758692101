"""The data set that needs no file."""

import torch
import torch.nn.functional as F

from gnnrl_ray.data.split import Split


def load_digits() -> tuple[Split, Split, int]:
    """Return scikit-learn's handwritten digits, 8x8 grey enlarged to 32x32x3."""
    from sklearn import datasets

    bunch = datasets.load_digits()
    grey = torch.from_numpy(bunch.images).float()[:, None] * (255 / 16)
    large = F.interpolate(grey, size=(32, 32), mode="bilinear", antialias=True)
    images = large.round().to(torch.uint8).expand(-1, 3, -1, -1).permute(0, 2, 3, 1)
    labels = torch.from_numpy(bunch.target).long()
    half = torch.full((3,), 0.5)
    everything = Split(images.contiguous(), labels, half, half, flip=False)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))
    return everything.take(order[:997]), everything.take(order[997:]), 10
