"""The method ``turbo``."""

import warnings
from collections.abc import Sequence

import numpy as np
from scipy.stats import norm, rankdata
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel
from threadpoolctl import threadpool_limits

from gnnrl_ray.agent.candidates import box_of
from gnnrl_ray.methods.proposer import Proposer
from gnnrl_ray.scoring.outcome import Outcome

_RANDOM = 20  # candidates before the first model, with ratios of at most _MOST
_MOST = 0.7
_CANDIDATES = 1500
_MOVED = 0.25  # share of the groups in which a candidate differs from the best
_CURIOSITY = 0.5  # standard deviations


class Turbo(Proposer):
    """Gaussian process in a box around the best candidate that grows and shrinks.

    After TuRBO, https://arxiv.org/abs/1910.01739. The process predicts normal scores of
    the ranks from the ratios that candidates really have. In turn, what promises most and
    a Thompson draw is proposed.
    """

    @threadpool_limits.wrap(1)  # of so small matrices, several threads take longer
    def propose(  # noqa: D102
        self, history: Sequence[Outcome], generator: np.random.Generator
    ) -> np.ndarray:
        count = len(self.budget.groups.widths)
        if len(history) < _RANDOM:
            return self.budget.reach(generator.uniform(0, _MOST, count))
        accuracies = np.array([outcome.accuracy for outcome in history])
        ratios = self.ratios(history)
        near = self._near(
            ratios[accuracies.argmax()], box_of(accuracies, count, _RANDOM), generator
        )
        model = _fitted(ratios, norm.ppf((rankdata(accuracies) - 0.5) / len(accuracies)))
        inputs = 1 - near / self.budget.groups.widths
        if len(history) % 2:
            seed = int(generator.integers(2**31))
            worth = model.sample_y(inputs, random_state=seed)[:, 0]
        else:
            mean, deviation = model.predict(inputs, return_std=True)
            worth = mean + _CURIOSITY * deviation
        return near[worth.argmax()]

    def _near(
        self, best: np.ndarray, box: float, generator: np.random.Generator
    ) -> np.ndarray:
        """Return candidates int64 [N, G] around the ratios ``best``, none known."""
        count = len(best)
        moved = generator.random((_CANDIDATES, count)) < _MOVED
        moved[np.arange(_CANDIDATES), generator.integers(count, size=_CANDIDATES)] = True
        drawn = best + moved * generator.uniform(-box, box, moved.shape)
        near = np.unique([self.budget.reach(ratios) for ratios in drawn], axis=0)
        new = [self.task.objective.known(widths) is None for widths in near]
        return near[new] if any(new) else near


def _fitted(inputs: np.ndarray, scores: np.ndarray) -> GaussianProcessRegressor:
    lengths = np.ones(inputs.shape[1])
    kernel = ConstantKernel(1.0, (0.05, 20)) * Matern(lengths, (0.05, 20), nu=2.5)
    model = GaussianProcessRegressor(kernel + WhiteKernel(0.1, (1e-3, 1)))
    with warnings.catch_warnings():
        # A length at its bound is that of a group which does not matter.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(inputs, scores)
