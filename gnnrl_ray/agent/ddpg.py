"""DDPG for RLlib's current API stack (Lillicrap et al., https://arxiv.org/abs/1509.02971).

RLlib itself has no DDPG any more. This one counts in episodes: each is numbered once for
the whole run, and warm-up, noise and seeds follow from that number, so that one env runner
and sixteen see the same schedule, and a lost episode can be run again.
"""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import ray
import torch
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.registry import ALGORITHMS
from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from ray.rllib.utils.metrics import (
    ENV_RUNNER_RESULTS,
    LEARNER_RESULTS,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
)

from gnnrl_ray.actors.dispatch import Dispatcher, Finished
from gnnrl_ray.agent.choosing import ChoosingLearner, ChoosingModule
from gnnrl_ray.agent.learner import DDPGLearner
from gnnrl_ray.agent.module import DDPGModule
from gnnrl_ray.agent.replay import Replay
from gnnrl_ray.agent.runner import DDPGEnvRunner
from gnnrl_ray.agent.sac import SACLearner, SACModule
from gnnrl_ray.agent.settings import AgentSettings
from gnnrl_ray.agent.transfer import knowledge
from gnnrl_ray.errors import EpisodeError

_WAIT_SECONDS = 0.2  # at most, before somebody is told how things are
_UPDATES_AT_ONCE = 8  # what RLlib does around one takes as long as the update itself


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Keep small operations on one core: sharing them costs several times their work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class DDPGConfig(AlgorithmConfig):
    """Settings of :class:`DDPG`; those of its own are ``AgentSettings``.

    .. code-block:: python

        config = DDPGConfig().environment("Pendulum-v1").training(warmup_episodes=5)
        config.build_algo().train()
    """

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class=algo_class or DDPG)
        for name, value in AgentSettings().to_dict().items():
            setattr(self, name, value)
        # What the base class needs to be told for this to work.
        self.lr = None
        self.train_batch_size_per_learner = 64
        self.env_runner_cls = DDPGEnvRunner
        self.batch_mode = "complete_episodes"
        self.normalize_actions = False
        self.clip_actions = False
        self.log_sys_usage = False
        self.delay_between_env_runner_restarts_s = 0.0
        self.validate_env_runners_after_construction = False  # nobody waits for the last
        self._dont_auto_sync_env_runner_states = True
        # What the loss of RLlib's SAC asks for, as it has it; the targets follow after
        # each of our steps.
        self.twin_q, self.alpha_lr, self.initial_alpha = True, 3e-4, 1.0
        self.target_entropy, self.target_network_update_freq = "auto", math.inf

    def training(self, **settings: Any) -> "DDPGConfig":
        """Set what concerns learning.

        Args:
            **settings: of :class:`~gnnrl_ray.agent.settings.AgentSettings`; and of
                ``AlgorithmConfig.training``: ``gamma``,
                ``train_batch_size_per_learner``, ...

        Raises:
            InputError: a value that cannot be.
        """
        own = {name: settings.pop(name) for name in AgentSettings.names() & settings.keys()}
        super().training(**settings)
        checked = AgentSettings(**own).to_dict()
        for name in own:
            setattr(self, name, checked[name])
        return self

    def validate(self) -> None:
        """Raise ``ValueError`` for settings that do not go together."""
        super().validate()
        if (self.num_learners or 0) > 1 or self.num_envs_per_env_runner != 1:
            self._value_error(
                "DDPG numbers its episodes globally: use `num_learners` <= 1 and "
                "`num_envs_per_env_runner` = 1; scale with `num_env_runners`."
            )
        if not (
            self.enable_rl_module_and_learner and self.enable_env_runner_and_connector_v2
        ):
            self._value_error(
                "DDPG is of RLlib's new API stack; leave `api_stack` as it is."
            )
        if self.is_multi_agent:
            self._value_error("DDPG has one agent; leave `multi_agent` out.")
        if self.lr is not None:
            self._value_error(
                f"lr={self.lr!r} would not be used: set `actor_lr` and `critic_lr`."
            )

    def get_default_rl_module_spec(self) -> RLModuleSpec:  # noqa: D102
        return RLModuleSpec(module_class=self._parts()[0])

    def get_default_learner_class(self) -> type:  # noqa: D102
        return self._parts()[1]

    @property
    def hindsight(self) -> bool:
        """Whether what is learnt is what was done, and what came of it in the end."""
        return self.algorithm == "wolpertinger"

    def _parts(self) -> tuple[type, type]:
        """Return the classes of module and learner."""
        return {
            "ddpg": (DDPGModule, DDPGLearner),
            "sac": (SACModule, SACLearner),
            "wolpertinger": (ChoosingModule, ChoosingLearner),
        }[self.algorithm]

    @property
    def _model_config_auto_includes(self) -> dict:
        names = (
            "warmup_episodes", "noise", "noise_decay", "noise_floor",
            "hidden", "encoder", "pooling", "graph_dim", "graph_layers", "twin_q",
            "initial", "judges",
        )  # fmt: skip
        own = {name: getattr(self, name) for name in names}
        return super()._model_config_auto_includes | own


class Hooks:
    """What whoever runs the algorithm is told, and knows; these know nothing."""

    def on_episode(self, finished: Finished) -> None:
        """Take note of an episode that is over, before anything is learnt from it."""

    def on_wait(self, status: dict[int, tuple[str, float]]) -> None:
        """Take note of what each env runner does, a few times a second."""

    def replayed(self, number: int) -> Finished | None:
        """Return the episode of a number if it is known from elsewhere."""

    def options(self) -> dict | ray.ObjectRef | None:
        """Return what the environment's ``reset`` is given in an actor."""


class DDPG(Algorithm):
    """Deep deterministic policy gradient with replay, one episode per env runner.

    With one env runner, or none, acting and learning take turns and a run is exactly
    repeatable. With more, the learner works while episodes are under way, and a slow
    episode holds up nobody.

    Args:
        config: settings; the default ones run on any task with ``Box`` spaces.
        hooks: called in this process.
        **kwargs: of ``Algorithm``.

    Attributes:
        dispatcher: gives out the episodes.
    """

    def __init__(
        self,
        config: AlgorithmConfig | dict | None = None,
        *args: Any,
        hooks: Hooks | None = None,
        **kwargs: Any,
    ) -> None:
        self._hooks = hooks or Hooks()
        super().__init__(config, *args, **kwargs)

    @classmethod
    def get_default_config(cls) -> DDPGConfig:  # noqa: D102
        return DDPGConfig()

    def setup(self, config: DDPGConfig) -> None:
        """Build runners, learner and replay buffer, and seed what RLlib leaves alone."""
        self._episodes_done = 0
        self._updates_owed = 0.0
        self._weights: ray.ObjectRef | None = None  # of the module, since the last update
        self._greedy: TorchRLModule | None = None  # with these weights
        try:
            super().setup(config)
        except IndexError as error:  # the first env runner was asked for its spaces
            raise EpisodeError(
                "the first env runner died while it was set up; run with 0 env runners to "
                "see why in this process."
            ) from error
        self.dispatcher = Dispatcher(
            self.env_runner_group._worker_manager.actors(),
            self.config.episode_timeout,
            self.config.max_retries,
        )
        self._replay = Replay(
            self.config.replay_capacity, self.config.seed, self.config.hindsight
        )

    @property
    def episodes_done(self) -> int:
        """How many episodes have been run and learnt from, or given up."""
        return self._episodes_done

    def act(self, observation: np.ndarray) -> np.ndarray:
        """Return the greedy action in the state ``observation``, without noise.

        Args:
            observation: of the observation space's shape.

        Returns:
            of the action space's shape and type.
        """
        if self._greedy is None:
            spaces = self.env_runner_group.get_spaces()
            spec = self.config.get_rl_module_spec(spaces=spaces, inference_only=True)
            self._greedy = spec.build()
            self._greedy.set_state(self._module_state())
        seen = np.asarray(observation, self._greedy.observation_space.dtype)
        batch = {Columns.OBS: torch.from_numpy(seen)[None]}
        return self._greedy.forward_inference(batch)[Columns.ACTIONS][0].numpy()

    def knowledge(self) -> bytes:
        """Return all parameters of the module, as a safetensors file."""
        (found,) = self.learner_group.foreach_learner(
            lambda learner: knowledge(learner.module[DEFAULT_MODULE_ID].unwrapped())
        )
        content = found.get()
        assert isinstance(content, bytes)
        return content

    def training_step(self) -> None:
        """Act, and learn meanwhile, until an episode is over."""
        over = False
        while not over and not self.dispatcher.exhausted:
            for finished in self._collect():
                self._take_in(finished)
                over = True
            self._start_episodes()  # before learning, which can take a while
            if self._warm and len(self._replay):
                # While episodes are under way, look after them every few updates.
                most = _UPDATES_AT_ONCE if self.dispatcher.under_way else math.inf
                self._learn(min(most, self._updates_owed))
            self._hooks.on_wait(self.dispatcher.status())

    def _take_in(self, finished: Finished) -> None:
        self._hooks.on_episode(finished)
        if finished.metrics:
            self.metrics.aggregate([finished.metrics], key=ENV_RUNNER_RESULTS)
        if finished.result is not None:
            steps = len(finished.result)
            owed = self._updates_owed + steps * self.config.updates_per_step
            # Critics that choose have learnt all they can from what there is by then.
            most = 2 * self.config.updates_per_step if self.config.hindsight else math.inf
            self._updates_owed = min(owed, most)
            self._replay.add([finished.result])
        self._episodes_done += 1

    def _learn(self, updates: float) -> None:
        """Do so many updates, whole ones."""
        left = int(updates)
        with _one_thread():
            while left > 0:
                count = min(left, _UPDATES_AT_ONCE)
                self._update(count)
                self._updates_owed -= count
                left -= count

    @property
    def _warm(self) -> bool:
        return self._episodes_done >= self.config.warmup_episodes

    def _collect(self) -> list[Finished]:
        known = self._hooks.replayed(self.dispatcher.peek())
        if known is not None:
            self.dispatcher.take()
            return [known]
        runners = self.env_runner_group.num_remote_env_runners()
        if runners == 0:
            weights = self._module_state()
            local = self.env_runner_group.local_env_runner
            history = self._replay.history()
            return [local.run_episode(self.dispatcher.take(), weights, history=history)]
        busy = self._warm and self._updates_owed >= 1
        return self.dispatcher.collect(0.0 if busy else _WAIT_SECONDS)

    def _start_episodes(self) -> None:
        """Give every idle env runner new weights and an episode."""
        alone, owed = len(self.dispatcher.status()) == 1, self._updates_owed
        if self._warm and (owed > self.config.max_updates_owed or (alone and owed >= 1)):
            return
        for runner in self.dispatcher.idle:
            number = self.dispatcher.peek()
            if number >= self.dispatcher.limit or self._hooks.replayed(number) is not None:
                return
            if self._weights is None:
                self._weights = ray.put(self._module_state())
            options, history = self._hooks.options(), self._replay.history()
            if history is not None:
                history = replace(history, under_way=len(self.dispatcher.under_way))
            self.dispatcher.start(
                runner, weights=self._weights, options=options, history=history
            )

    def _module_state(self) -> dict:
        """Return the state of the actor network."""
        path = f"{COMPONENT_LEARNER}/{COMPONENT_RL_MODULE}"
        state = self.learner_group.get_state(components=path, inference_only=True)
        return state[COMPONENT_LEARNER][COMPONENT_RL_MODULE][DEFAULT_MODULE_ID]

    def _update(self, count: int = 1) -> None:
        """Take ``count`` gradient steps."""
        self._weights = self._greedy = None
        size = count * self.config.total_train_batch_size
        batch = SampleBatch(self._replay.sample(size))
        steps = self.metrics.peek(
            (ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME), default=0
        )
        results = self.learner_group.update(
            batch=MultiAgentBatch({DEFAULT_MODULE_ID: batch}, size),
            timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: steps},
        )
        self.metrics.aggregate(results, key=LEARNER_RESULTS)

    # Checkpoints: RLlib's do without the replay buffer and know nothing of episodes.

    def get_state(self, components=None, *, not_components=None, **kwargs) -> dict:
        """Return RLlib's state with replay buffer, its generator and the counters."""
        state = super().get_state(components, not_components=not_components, **kwargs)
        if self._check_component("ddpg", components, not_components):
            state["ddpg"] = {
                "episodes": self.dispatcher.get_state(),
                "episodes_done": self._episodes_done,
                "updates_owed": self._updates_owed,
                "replay": self._replay.get_state(),
            }
        return state

    def set_state(self, state: dict) -> None:
        """Take over what :meth:`get_state` returned, in a newly built algorithm."""
        super().set_state(state)
        if "ddpg" in state:
            own = state["ddpg"]
            self.dispatcher.set_state(own["episodes"])
            self._episodes_done = own["episodes_done"]
            self._updates_owed = own["updates_owed"]
            self._replay.set_state(own["replay"])
            self._weights = self._greedy = None


# Not `register_trainable`, which the next Ray of this process would know nothing of.
ALGORITHMS["GNN-RL-DDPG"] = lambda: (DDPG, DDPG.get_default_config())
