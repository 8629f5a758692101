"""The transitions that the agent learns from, ready to be drawn in batches.

RLlib's replay buffer hands out episodes, which take it longer to cut and to put together
than an update takes. Here a batch is one drawing of numbers and one stacking of arrays.
"""

from collections import deque
from collections.abc import Iterable

import numpy as np
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from torch import Tensor

from gnnrl_ray.agent.candidates import History, worths

_COLUMNS = (Columns.OBS, Columns.ACTIONS, Columns.REWARDS, Columns.TERMINATEDS)


class Replay:
    """Keeps the newest transitions; whole episodes go when there are too many.

    Args:
        capacity: in steps.
        seed: of the drawing.
        hindsight: remember what was done instead of what was said, where the
            environment's infos have it, and what came of it in the end instead of the next
            reward; batches have what that is worth beside all else (``worths``).
    """

    def __init__(
        self, capacity: int, seed: int | None = None, hindsight: bool = False
    ) -> None:
        self._capacity = capacity
        self._hindsight = hindsight
        self._worths: np.ndarray | None = None  # since the last episode
        self._generator = np.random.default_rng(seed)
        self._steps: deque[tuple] = deque()  # observations are shared, not copied
        self._lengths: deque[int] = deque()  # of the episodes
        self._start: np.ndarray | None = None  # where the last episode began
        self._batch: dict[str, np.ndarray] = {}  # fresh memory would cost more than copying

    def __len__(self) -> int:
        return len(self._steps)

    def add(self, episodes: Iterable[SingleAgentEpisode]) -> None:
        """Take over what happened in ``episodes``, complete ones."""
        for episode in episodes:
            observations = [np.asarray(o) for o in episode.get_observations()]
            # Most begin alike; one array in the caches is copied far sooner than many.
            if self._start is None or not np.array_equal(self._start, observations[0]):
                self._start = observations[0]
            observations[0] = self._start
            actions = [np.ravel(np.float32(action)) for action in episode.get_actions()]
            rewards = np.asarray(episode.get_rewards(), np.float32)
            if self._hindsight:
                infos = episode.get_infos()[1:]
                actions = [i.get("done", a) for i, a in zip(infos, actions, strict=True)]
                rewards = rewards[::-1].cumsum()[::-1]
            for t in range(len(episode)):
                ends = episode.is_terminated and t == len(episode) - 1
                following = None if ends else observations[t + 1]
                self._steps.append(
                    (observations[t], actions[t], rewards[t], following, ends)
                )
            self._worths = None
            self._lengths.append(len(episode))
            while len(self._steps) > self._capacity and len(self._lengths) > 1:
                for _ in range(self._lengths.popleft()):
                    self._steps.popleft()

    def sample(self, size: int) -> dict[str, Tensor]:
        """Draw ``size`` transitions with replacement: columns of tensors [size, ...].

        They are there until the next drawing. What follows an end is of no account.
        """
        drawn = self._generator.integers(len(self._steps), size=size)
        steps = zip(*(self._steps[i] for i in drawn), strict=True)
        observations, actions, rewards, following, ends = steps
        if self._hindsight:
            rewards = self._known_worths()[drawn]
        if self._batch and len(self._batch[Columns.REWARDS]) != size:
            self._batch.clear()
        columns = zip(_COLUMNS, (observations, actions, rewards, ends), strict=True)
        for name, column in columns:
            self._batch[name] = np.stack(column, out=self._batch.get(name))
        if Columns.NEXT_OBS not in self._batch:
            self._batch[Columns.NEXT_OBS] = np.zeros_like(self._batch[Columns.OBS])
        for row, observation in zip(self._batch[Columns.NEXT_OBS], following, strict=True):
            if observation is not None:
                row[...] = observation
        return {name: torch.from_numpy(column) for name, column in self._batch.items()}

    def history(self) -> History | None:
        """Return all that was done, and what came of it, where that is remembered."""
        if not self._hindsight or not self._steps:
            return None
        _, actions, scores, _, _ = zip(*self._steps, strict=True)
        return History(np.array(actions), np.array(scores))

    def _known_worths(self) -> np.ndarray:
        """Return float32 of each step: what came of it is worth."""
        if self._worths is None:
            self._worths = worths([step[2] for step in self._steps]).astype(np.float32)
        return self._worths

    def get_state(self) -> dict:
        """Return everything, for a checkpoint."""
        return {
            "steps": list(self._steps),
            "lengths": list(self._lengths),
            "generator": self._generator.bit_generator.state,
        }

    def set_state(self, state: dict) -> None:
        """Take over what :meth:`get_state` returned."""
        self._steps, self._lengths = deque(state["steps"]), deque(state["lengths"])
        self._generator.bit_generator.state = state["generator"]
        self._worths = None
