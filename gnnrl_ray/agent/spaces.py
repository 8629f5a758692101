"""The spaces that an agent sees and acts in, and how a plain vector becomes an action.

Axis letters: B batch, G actions.
"""

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from gnnrl_ray.errors import InputError


def bounds_of(space: gym.Space, seen: gym.Space) -> tuple[Tensor, Tensor]:
    """Return the least and the largest action, float32 [G] each.

    Args:
        space: of the actions, of any shape; G are its elements.
        seen: of the observations.

    Raises:
        InputError: one that the agent cannot act or see in.
    """
    if not isinstance(seen, gym.spaces.Box):
        raise InputError(
            f"the agent sees observations of a Box, not of {seen}; flatten them, with "
            "gymnasium.wrappers.FlattenObservation."
        )
    if not isinstance(space, gym.spaces.Box) or not np.issubdtype(space.dtype, np.floating):
        raise InputError(
            f"the agent acts in a Box of real numbers, not in {space}; for a choice among "
            "a few, take another algorithm."
        )
    if not (
        np.isfinite(space.low) & np.isfinite(space.high) & (space.low < space.high)
    ).all():
        raise InputError(
            f"every action needs two finite bounds that differ, and {space} has others; "
            "give the environment an action space that has them."
        )
    low, high = (torch.tensor(np.float32(b)).flatten() for b in (space.low, space.high))
    return low, high


def shaped(actions: Tensor, space: gym.Space) -> Tensor:
    """Return ``actions`` [B, G] as elements of ``space``, [B, ...] of its own type.

    Rounding may have taken one a little out of its bounds.
    """
    assert isinstance(space, gym.spaces.Box)
    values = actions.cpu().numpy().reshape(-1, *space.shape).astype(space.dtype)
    return torch.from_numpy(values.clip(space.low, space.high))
