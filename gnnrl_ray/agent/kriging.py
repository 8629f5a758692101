"""What candidates promise, to go by those that have been scored: kriging.

Axis letters: G groups, N candidates, H candidates that have been scored.
"""

from collections.abc import Callable

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.spatial.distance import cdist

from gnnrl_ray.agent.candidates import History

Kernel = Callable[[np.ndarray, np.ndarray], np.ndarray]

# Of candidates as a whole: how far apart they know little of each other, as a ratio that
# every group differs by.
_LENGTH = 0.27
# Of each group by itself: how much of what is known is that, and the same.
_EACH, _EACH_LENGTH = 3.0, 1.0
_CHANCE = 0.03  # of a score, as a variance
_CURIOSITY = 0.2  # standard deviations


def promise(
    history: History, ratios: np.ndarray, kernel: Kernel | None = None
) -> np.ndarray:
    """Return what candidates promise, float64 [N]: upper confidence by kriging.

    A Gaussian process (simple kriging, https://en.wikipedia.org/wiki/Kriging) whose kernel
    is a sum: of the distance between candidates, as networks that are nearly the same are
    worth nearly the same; and of each group, as one channel more or less of it can matter
    whatever the others keep. Nothing in it is fitted, so that three candidates will do.

    Args:
        history: not empty.
        ratios: float [N, G], shares of the channels that are dropped.
        kernel: default: the sum of :func:`smooth` and :func:`rough`.
    """
    kernel = kernel or _sum
    known = history.ratios
    among = cho_factor(kernel(known, known) + _CHANCE * np.eye(len(known)))
    beside = kernel(ratios, known)
    mean = beside @ cho_solve(among, history.worths)
    told = (beside * cho_solve(among, beside.T).T).sum(1)
    unknown = kernel(known[:1], known[:1])[0] - told
    return mean + _CURIOSITY * np.sqrt(np.maximum(unknown, 0))


def smooth(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Matern 3/2 of the distance, float64 [N, H] of ratios float [N, G] and [H, G]."""
    distance = cdist(a, b) * np.sqrt(3 / a.shape[1]) / _LENGTH
    return (1 + distance) * np.exp(-distance)


def rough(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Mean over groups of an exponential, as :func:`smooth`.

    Additive: https://arxiv.org/abs/1112.4394.
    """
    total = np.zeros((len(a), len(b)))
    for one, other in zip(a.T, b.T, strict=True):
        total += np.exp(-np.abs(one[:, None] - other) / _EACH_LENGTH)
    return total / a.shape[1]


def _sum(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return smooth(a, b) + _EACH * rough(a, b)
