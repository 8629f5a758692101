"""What candidates promise, to go by those that have been scored: kriging.

Axis letters: G groups, N candidates, H candidates that have been scored.
"""

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.spatial.distance import cdist

from gnnrl_ray.agent.candidates import History

# Of candidates as a whole: how far apart they know little of each other, as a ratio that
# every group differs by.
_LENGTH = 0.27
# Of each group by itself: how much of what is known is that, and the same.
_EACH, _EACH_LENGTH = 3.0, 1.0
_CHANCE = 0.03  # of a score, as a variance
_CURIOSITY = 0.2  # standard deviations


def promise(history: History, ratios: np.ndarray) -> np.ndarray:
    """Return what candidates promise, float64 [N]: upper confidence by kriging.

    A Gaussian process (simple kriging, https://en.wikipedia.org/wiki/Kriging) whose kernel
    is a sum: a smooth one of the distance between candidates (Matern 3/2), as networks that
    are nearly the same are worth nearly the same; and a rough, additive one (exponential,
    https://arxiv.org/abs/1112.4394), as one channel more or less of one group can matter
    whatever the others keep. Nothing in it is fitted, so that three candidates will do.

    Args:
        history: not empty.
        ratios: float [N, G], shares of the channels that are dropped.
    """
    known = history.ratios
    among = cho_factor(_kernel(known, known) + _CHANCE * np.eye(len(known)))
    beside = _kernel(ratios, known)
    mean = beside @ cho_solve(among, history.worths)
    told = (beside * cho_solve(among, beside.T).T).sum(1)
    return mean + _CURIOSITY * np.sqrt(np.maximum(1 + _EACH - told, 0))


def _kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return float64 [N, H] of candidates float [N, G] and [H, G]."""
    count = a.shape[1]
    distance = cdist(a, b) * np.sqrt(3 / count) / _LENGTH
    smooth = (1 + distance) * np.exp(-distance)
    each = np.zeros_like(smooth)
    for one, other in zip(a.T, b.T, strict=True):
        each += np.exp(-np.abs(one[:, None] - other) / _EACH_LENGTH)
    return smooth + _EACH * each / count
