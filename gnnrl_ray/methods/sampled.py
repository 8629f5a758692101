"""Methods ``tpe`` and ``gp``: samplers of Optuna."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from gnnrl_ray.methods.proposer import Proposer, required
from gnnrl_ray.scoring.outcome import Outcome
from gnnrl_ray.settings import SearchSettings

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler


class Sampled(Proposer):
    """Ask one of Optuna's samplers (https://optuna.org), in a study of what was scored.

    It is told the ratios that candidates really have. The study is made anew each time, so
    that a run goes on from its journal.
    """

    @staticmethod
    def check(settings: SearchSettings) -> None:  # noqa: D102
        Proposer.check(settings)
        required("optuna", settings.method)

    def sampler(self, seed: int) -> "BaseSampler":
        """Return the sampler."""
        raise NotImplementedError

    def propose(  # noqa: D102
        self, history: Sequence[Outcome], generator: np.random.Generator
    ) -> np.ndarray:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        names = self.budget.groups.names
        space = {name: optuna.distributions.FloatDistribution(0, 1) for name in names}
        sampler = self.sampler(int(generator.integers(2**31)))
        study = optuna.create_study(direction="maximize", sampler=sampler)
        for outcome, ratios in zip(history, self.ratios(history), strict=True):
            params = dict(zip(names, ratios.tolist(), strict=True))
            study.add_trial(
                optuna.trial.create_trial(
                    params=params, distributions=space, value=outcome.accuracy
                )
            )
        asked = study.ask(space).params
        return self.budget.reach(np.array([asked[name] for name in names]))


class TPE(Sampled):
    """Tree-structured Parzen estimators, https://arxiv.org/abs/2304.11127."""

    def sampler(self, seed: int) -> "BaseSampler":  # noqa: D102
        from optuna.samplers import TPESampler

        return TPESampler(seed=seed, multivariate=True)


class GP(Sampled):
    """Gaussian process with log expected improvement, Optuna's."""

    def sampler(self, seed: int) -> "BaseSampler":  # noqa: D102
        from optuna.samplers import GPSampler

        return GPSampler(seed=seed)
