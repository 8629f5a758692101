"""The paper's DNN-Graph environment as a Gymnasium environment.

Axis letters: E primitive edges, F features of one, G prunable groups.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from gnnrl_ray.errors import InputError
from gnnrl_ray.graph.facts import GroupFacts
from gnnrl_ray.graph.hierarchy import HierarchicalGraph, Motif
from gnnrl_ray.pruning.budget import Budget
from gnnrl_ray.scoring.objective import Objective
from gnnrl_ray.settings import SearchSettings, unknown_setting

#: of a search, that are settings of the environment
SETTINGS = ("fit", "on_timeout", "max_steps", "levels")


class GraphBox(gym.spaces.Box):
    """Features of a graph of fixed topology, with what of it does not change.

    Attributes:
        levels: its topology.
        facts: of the groups, for agents that tell them apart.
        budget: that candidates are to meet, likewise.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        levels: Sequence[Sequence[Motif]],
        facts: GroupFacts | None = None,
        budget: Budget | None = None,
        seed=None,
    ) -> None:
        super().__init__(0.0, 1.0, shape, np.float32, seed)
        self.levels = levels
        self.facts = facts
        self.budget = budget


class PruningEnv(gym.Env):
    """Prune a network step by step until it meets its budget.

    ========== ===================== ================================================
    space      type                  meaning
    ========== ===================== ================================================
    action     float32 [G] in [0, 1] share of each group's channels dropped by this step
    observation float32 [E, F]       state of every primitive edge, see
                                     :meth:`HierarchicalGraph.features`; topology in
                                     ``observation_space.levels``
    ========== ===================== ================================================

    **Reward:** 0 until the budget is met, then minus the top-1 error on the validation
    split, in [-1, 0] (GNN-RL Eq. 8).

    **Start:** the dense network. **End:** the first step that meets the budget, or the
    ``max_steps``-th. The last ``info`` holds the ``outcome``, and every one ``done``, the
    shares float32 [G] that were dropped after rounding and fitting.

    Args:
        config: ``objective``, an :class:`Objective` or a function that returns it;
            ``fit`` (default True): scale the last step back so that the candidate uses
            its whole budget; ``max_steps`` (default 8); ``on_timeout`` (default
            ``"fit"``): what happens there: all groups are scaled down to the budget,
            or, with ``"penalty"``, the reward is -1 and there is no outcome;
            ``levels`` (default 2) of the graph; ``facts`` (default False): whether the
            observation space has those of the groups, which take a backward pass.

    Raises:
        InputError: a setting that is not known, or a value that cannot be.
    """

    def __init__(self, config: Mapping[str, Any] | None = None) -> None:
        given = {"objective": None, "facts": False} | dict(config or {})
        objective, facts = given.pop("objective"), given.pop("facts")
        for name in given.keys() - set(SETTINGS):
            raise unknown_setting(
                name, ("objective", "facts", *SETTINGS), "the environment"
            )
        if not callable(objective):
            raise InputError(
                "the environment needs `objective`, an Objective or a function that "
                f"returns one, in its config; got {objective!r}."
            )
        settings = SearchSettings(**given)
        self.objective = objective if isinstance(objective, Objective) else objective()
        self._fit = settings.fit
        self._max_steps = settings.max_steps
        self._on_timeout = settings.on_timeout
        self._over = True  # until the first reset
        self._graph = HierarchicalGraph(self.objective.groups, settings.levels)
        count = len(self.objective.groups.widths)
        self.observation_space = GraphBox(
            self._graph.shape,
            self._graph.levels,
            self._facts() if facts else None,
            self.objective.budget,
        )
        self.action_space = gym.spaces.Box(0.0, 1.0, (count,), np.float32)

    def _facts(self) -> GroupFacts:
        objective = self.objective
        return GroupFacts.of(self._graph, objective.scores, objective.sensitivities)

    def reset(
        self, *, seed: int | None = None, options: dict | None = None
    ) -> tuple[np.ndarray, dict]:
        """Return the dense network's graph, float32 [E, F].

        Args:
            seed: of nothing: the environment is not random.
            options: ``outcomes``, a list of those that need not be scored again.
        """
        super().reset(seed=seed)
        self.objective.remember((options or {}).get("outcomes", ()))
        self._widths = self.objective.groups.widths
        self._steps = 0
        self._over = False
        return self._graph.features(self._widths), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Drop the shares ``action`` float [G] of what is left of each group.

        Raises:
            InputError: the action is of another shape, or not of numbers.
            gymnasium.error.ResetNeeded: the episode is over, or has not begun.
        """
        if self._over:
            raise gym.error.ResetNeeded("no episode is under way: call `reset` first.")
        action = np.asarray(action)
        numbers = action.dtype.kind in "fiu" and not np.isnan(action).any()
        if action.shape != self._widths.shape or not numbers:
            raise InputError(
                f"an action is {len(self._widths)} shares in [0, 1], got {action}."
            )
        budget, before = self.objective.budget, self._widths
        self._steps += 1
        widths, met = budget.step(self._widths, action, self._fit)
        timeout = not met and self._steps == self._max_steps
        if timeout and self._on_timeout == "fit":
            widths = budget.project(widths, budget.min_widths)
            met = True
        self._widths, self._over = widths, met or timeout
        observation = self._graph.features(widths)
        info: dict = {"done": (1 - widths / before).astype(np.float32)}
        if not met:
            return observation, -1.0 if timeout else 0.0, timeout, False, info
        outcome = self.objective(widths)
        return observation, outcome.reward, True, False, info | {"outcome": outcome}


gym.register("gnnrl_ray/Pruning-v0", entry_point=PruningEnv)
