"""AMC's environment: layer after layer instead of all at once.

Axis letter: G prunable groups.
"""

import gymnasium as gym
import numpy as np

from gnnrl_ray.scoring.objective import Objective
from gnnrl_ray.tracing.operations import Operation


class LayerwiseEnv(gym.Env):
    """Decide the width of one group after the other (https://arxiv.org/abs/1802.03494).

    ========== ===================== ================================================
    space      type                  meaning
    ========== ===================== ================================================
    action     float32 [1] in [0, 1] share of the group's channels that is dropped
    observation float32 [11]         of the group's first layer: its number, channels out
                                     and in, height and width of its input, stride,
                                     kernel side, multiply-accumulates; those that are
                                     saved, those that are still to be decided on; the
                                     action before. All in [0, 1].
    ========== ===================== ================================================

    **Reward:** 0, and minus the top-1 error after the last group. The budget is a wall: an
    action that would put it out of reach of the groups to come drops more.

    Args:
        config: ``objective``, a function that returns the :class:`Objective`.
    """

    def __init__(self, config: dict) -> None:
        self.objective: Objective = config["objective"]()
        self._budget = self.objective.budget
        groups, costs = self._budget.groups, self._budget.costs
        made = [groups.group_of(op.outputs) for op in groups.layers]
        #: of each group, the layers that make it, by their numbers
        self._makers = [
            [i for i, found in enumerate(made) if g in found]
            for g in range(len(groups.names))
        ]
        self._layer_macs = costs.layer_macs(groups.widths)
        static = self._static()
        self._fixed = static / static.max(0)
        self.observation_space = gym.spaces.Box(0.0, 1.0, (11,), np.float32)
        self.action_space = gym.spaces.Box(0.0, 1.0, (1,), np.float32)

    def _static(self) -> np.ndarray:
        """Return float [G, 8]: what pruning does not change, as numbers."""
        groups, rows = self._budget.groups, []
        for g, makers in enumerate(self._makers):
            op = groups.layers[makers[0]]
            before, after = self._input_size(op), op.size
            rows.append(
                [g + 1, len(op.outputs), len(op.inputs), before**0.5, before**0.5,
                 max(1.0, (before / after) ** 0.5), op.kernel**0.5,
                 self._layer_macs[makers].sum()]
            )  # fmt: skip
        return np.array(rows, float)

    def _input_size(self, op: Operation) -> int:
        parent = op.parents[0]
        if parent < 0:
            return self._budget.groups.input_size
        return self._budget.groups.operations[parent].size

    def reset(
        self, *, seed: int | None = None, options: dict | None = None
    ) -> tuple[np.ndarray, dict]:
        """Return what is to be decided on first.

        Args:
            seed: of nothing: the environment is not random.
            options: ``outcomes``, a list of those that need not be scored again.
        """
        super().reset(seed=seed)
        self.objective.remember((options or {}).get("outcomes", ()))
        self._widths = self._budget.groups.widths.copy()
        self._group, self._before = 0, 0.0
        return self._features(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Drop the share ``action`` float [1] of the group that is next."""
        dropped = float(np.clip(action[0], 0, 1))
        dense, g = self._budget.groups.widths, self._group
        self._widths[g] = self._wall(dense[g] * (1 - dropped))
        self._before = 1 - self._widths[g] / dense[g]
        self._group += 1
        if self._group < len(dense):
            return self._features(), 0.0, False, False, {}
        outcome = self.objective(self._widths)
        self._group -= 1  # there is none after it to look at
        return self._features(), outcome.reward, True, False, {"outcome": outcome}

    def _wall(self, wanted: float) -> int:
        """Return the width for the group that is next, at most what the budget allows."""
        budget, g = self._budget, self._group
        widths = np.where(np.arange(len(self._widths)) > g, budget.min_widths, self._widths)
        least, most = budget.min_widths[g], budget.groups.widths[g]
        steps = np.arange(least, most, budget.multiple_of[g])
        possible = np.append(steps, most)
        trials = np.tile(widths, (len(possible), 1))
        trials[:, g] = possible
        allowed = possible[budget.meets(trials)]  # the narrowest is, by the wall before
        return int(allowed[np.abs(allowed - max(wanted, least)).argmin()])

    def _features(self) -> np.ndarray:
        """Return float32 [11], AMC's state."""
        g, costs = self._group, self._budget.costs
        saved = costs.dense - costs.macs(self._widths)
        later = sorted({i for makers in self._makers[g + 1 :] for i in makers})
        rest = self._layer_macs[later].sum()
        changing = [saved / costs.dense, rest / costs.dense, self._before]
        return np.array([*self._fixed[g], *changing], np.float32)
