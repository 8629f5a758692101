"""The env runner of DDPG: one numbered episode at a time."""

from typing import Any

import numpy as np
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.utils.metrics import ENV_STEP_TIMER

from gnnrl_ray.actors.dispatch import Finished
from gnnrl_ray.agent.candidates import History


class DDPGEnvRunner(SingleAgentEnvRunner):
    """Runs one numbered episode at a time."""

    def __init__(self, *, config: AlgorithmConfig, **kwargs: Any) -> None:
        # The share of a GPU is for the environment; the actor network is too small.
        if config.num_gpus_per_env_runner:
            config = config.copy(copy_frozen=False)
            config.num_gpus_per_env_runner = 0
        self._options: dict | None = None
        super().__init__(config=config, **kwargs)

    def run_episode(
        self, number: int, weights: dict | None = None, options: dict | None = None,
        explore: bool = True, history: History | None = None,
    ) -> Finished:  # fmt: skip
        """Run episode ``number``; its noise and seeds follow from the number alone.

        Args:
            number: of the episode.
            weights: of the module, unless it is to stay as it is.
            options: for ``reset`` of the environment.
            explore: whether to add noise.
            history: of what was done before, for a module that looks at it.
        """
        if weights is not None:
            self.module.set_state(weights)
        self._options = options
        entropy = np.random.SeedSequence([self.config.seed or 0, number])
        self._seed = int(entropy.generate_state(1)[0] >> 1)
        self.module.unwrapped().episode = number
        self.module.unwrapped().generator = np.random.default_rng(entropy)
        self.module.unwrapped().history = history
        (episode,) = self.sample(num_episodes=1, explore=explore)
        return Finished(number, episode, self.get_metrics())

    def attempt_episode(self, number: int, **request: Any) -> Finished:
        """Do the same, but say what went wrong instead of raising it.

        An exception would cost this actor its life, and others the time to start it anew.
        """
        try:
            return self.run_episode(number, **request)
        except Exception as error:
            return Finished(number, failed=f"{type(error).__name__}: {error}")

    def _try_env_step(self, actions: list) -> Any:
        """Let what an environment raises be seen as what it is, and once."""
        if self.config.restart_failed_sub_environments:
            return super()._try_env_step(actions)
        with self.metrics.log_time(ENV_STEP_TIMER):
            results = self.env.step(actions)
        self._log_env_steps(metric=self._metrics_num_try_env_step, num_steps=1)
        return results

    def _try_env_reset(self, *, seed: int | None = None, options: dict | None = None):
        return super()._try_env_reset(seed=seed, options=options or self._options)
