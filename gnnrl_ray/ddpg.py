"""DDPG for RLlib's current API stack (Lillicrap et al., https://arxiv.org/abs/1509.02971).

RLlib itself has no DDPG any more. This one counts in episodes: each is numbered once for
the whole run, and warm-up, noise and seeds follow from that number, so that one env runner
and sixteen see the same schedule, and a lost episode can be run again.

Axis letters: B batch, G actions.
"""

import contextlib
import logging
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import ray
import torch
import torch.nn.functional as F
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.learner import POLICY_LOSS_KEY
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.core.learner.utils import make_target_network
from ray.rllib.core.rl_module.apis import InferenceOnlyAPI, TargetNetworkAPI
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from ray.rllib.utils.from_config import NotProvided
from ray.rllib.utils.metrics import (
    ENV_RUNNER_RESULTS,
    LEARNER_RESULTS,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
)
from scipy.stats import truncnorm
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim.swa_utils import get_ema_multi_avg_fn

from gnnrl_ray.env import EpisodeError
from gnnrl_ray.episodes import Episodes, Finished
from gnnrl_ray.mgnn import Actor, Critic, GraphEncoder, VectorEncoder
from gnnrl_ray.replay import Replay

Q, Q_OF_ACTOR, Q_NEXT = "q", "q_of_actor", "q_next"
QF_LOSS_KEY = "qf_loss"
_logger = logging.getLogger(__name__)
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
    """Settings of :class:`DDPG`; what GNN-RL gives are the defaults, then AMC's.

    .. code-block:: python

        config = DDPGConfig().environment("Pendulum-v1").training(warmup_episodes=5)
        config.build_algo().train()
    """

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class=algo_class or DDPG)
        self.actor_lr = 1e-4
        self.critic_lr = 1e-3
        self.critic_weight_decay = 0.0
        self.tau = 0.01
        self.warmup_episodes = 30
        self.noise = 0.5
        self.noise_decay = 0.97
        self.noise_floor = 0.0
        self.updates_per_step = 1.0
        self.max_updates_owed = 64
        self.episode_timeout = 0.0
        self.max_retries = 3
        self.replay_capacity = 2000
        self.hidden = (300, 300)
        self.graph_dim = 64
        self.graph_layers = 2
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

    def training(
        self,
        *,
        actor_lr: float = NotProvided,
        critic_lr: float = NotProvided,
        critic_weight_decay: float = NotProvided,
        tau: float = NotProvided,
        warmup_episodes: int = NotProvided,
        noise: float = NotProvided,
        noise_decay: float = NotProvided,
        noise_floor: float = NotProvided,
        updates_per_step: float = NotProvided,
        max_updates_owed: int = NotProvided,
        episode_timeout: float = NotProvided,
        max_retries: int = NotProvided,
        replay_capacity: int = NotProvided,
        hidden: tuple[int, ...] = NotProvided,
        graph_dim: int = NotProvided,
        graph_layers: int = NotProvided,
        **kwargs: Any,
    ) -> "DDPGConfig":
        """Set what concerns learning.

        Args:
            actor_lr: step size of Adam.
            critic_lr: step size of Adam.
            critic_weight_decay: L2 penalty on the critic.
            tau: share of the new weights in each update of the target networks.
            warmup_episodes: with uniformly random actions, before any update.
            noise: standard deviation after warm-up, as a share of the action range; the
                normal distribution around the actor's action is cut at the range.
            noise_decay: factor on it per episode.
            noise_floor: what it does not fall below.
            updates_per_step: gradient steps for each step of the environment.
            max_updates_owed: no new episode starts while so many are outstanding.
            episode_timeout: seconds after which an episode's env runner is replaced; 0
                for never. Not for episodes in this process.
            max_retries: how often an episode is run again that failed with its env
                runner, or by an exception in an actor.
            replay_capacity: steps that are remembered.
            hidden: widths of the hidden layers of actor and critic.
            graph_dim: embedding dimension of the m-GNN.
            graph_layers: rounds of message passing on each level of the m-GNN.
            **kwargs: of ``AlgorithmConfig.training``: ``gamma``,
                ``train_batch_size_per_learner``, ...
        """
        own = {
            name: value
            for name, value in locals().items()
            if name not in ("self", "kwargs", "__class__") and value is not NotProvided
        }
        super().training(**kwargs)
        for name, value in own.items():
            setattr(self, name, value)
        return self

    def validate(self) -> None:
        """Raise ``ValueError`` for settings that do not go together."""
        super().validate()
        if (self.num_learners or 0) > 1 or self.num_envs_per_env_runner != 1:
            self._value_error(
                "DDPG numbers its episodes globally: use `num_learners` <= 1 and "
                "`num_envs_per_env_runner` = 1; scale with `num_env_runners`."
            )
        if not 0 < self.tau <= 1:
            self._value_error(f"`tau` must lie in (0, 1], got {self.tau}.")

    def get_default_rl_module_spec(self) -> RLModuleSpec:  # noqa: D102
        return RLModuleSpec(module_class=DDPGModule)

    def get_default_learner_class(self) -> type:  # noqa: D102
        return DDPGLearner

    @property
    def _model_config_auto_includes(self) -> dict:
        names = (
            "warmup_episodes", "noise", "noise_decay", "noise_floor",
            "hidden", "graph_dim", "graph_layers",
        )  # fmt: skip
        own = {name: getattr(self, name) for name in names}
        return super()._model_config_auto_includes | own


class DDPGModule(TorchRLModule, InferenceOnlyAPI, TargetNetworkAPI):
    """Actor and critic: with the m-GNN on a ``GraphBox``, plain on any other ``Box``."""

    def setup(self) -> None:
        """Build the networks; an env runner needs the actor alone."""
        space, hidden = self.action_space, self.model_config["hidden"]
        low, high = (torch.tensor(bound).flatten() for bound in (space.low, space.high))
        self.actor = Actor(self._encoder(), low, high, hidden)
        if not self.inference_only:
            self.critic = Critic(self._encoder(), len(low), hidden)
        # Set anew for each episode by the env runner.
        self.episode = 0
        self.generator = np.random.default_rng(0)

    def _encoder(self) -> nn.Module:
        space, settings = self.observation_space, self.model_config
        if hasattr(space, "levels"):
            return GraphEncoder(
                space.levels,
                space.shape[1],
                settings["graph_dim"],
                settings["graph_layers"],
            )
        return VectorEncoder(int(np.prod(space.shape)))

    def train(self, mode: bool = True) -> "DDPGModule":
        """Change the mode if it is another: RLlib asks before each step."""
        return self if self.training == mode else super().train(mode)

    def get_non_inference_attributes(self) -> list[str]:  # noqa: D102
        return ["critic", "target_actor", "target_critic"]

    def make_target_networks(self) -> None:  # noqa: D102
        self.target_actor = make_target_network(self.actor)
        self.target_critic = make_target_network(self.critic)

    def get_target_network_pairs(self) -> list[tuple[nn.Module, nn.Module]]:  # noqa: D102
        return [(self.actor, self.target_actor), (self.critic, self.target_critic)]

    @torch.no_grad()
    def forward_target(self, batch: dict) -> Tensor:
        """Return Q'(s', mu'(s')) of the target networks, [B]; 0 where s' is the end."""
        values = torch.zeros_like(batch[Columns.REWARDS])
        goes_on = ~batch[Columns.TERMINATEDS]
        if goes_on.any():
            actor, critic = self.target_actor, self.target_critic
            plan = actor.encoder.plan(batch[Columns.NEXT_OBS][goes_on])
            values[goes_on] = critic(critic.encoder(plan), actor(plan))[plan.which]
        return values

    @torch.no_grad()
    def _forward_inference(self, batch: dict, **_) -> dict:
        return {Columns.ACTIONS: self._act(batch[Columns.OBS])}

    @torch.no_grad()
    def _forward_exploration(self, batch: dict, **_) -> dict:
        action = self._act(batch[Columns.OBS])
        return {Columns.ACTIONS: self._explore(action.cpu().numpy())}

    def _act(self, observations: Tensor) -> Tensor:
        plan = self.actor.encoder.plan(observations)
        return self.actor(plan)[plan.which]

    def _explore(self, action: np.ndarray) -> Tensor:
        """Draw around ``action`` float32 [B, G], within the action range."""
        settings = self.model_config
        low, span = self.actor.low.cpu().numpy(), self.actor.span.cpu().numpy()
        after = self.episode - settings["warmup_episodes"]
        if after < 0:
            drawn = low + span * self.generator.random(action.shape)
        else:
            decayed = settings["noise"] * settings["noise_decay"] ** after
            sigma = span * max(decayed, settings["noise_floor"], 1e-6)
            bounds = (low - action) / sigma, (low + span - action) / sigma
            drawn = truncnorm.rvs(
                *bounds, action, sigma, action.shape, random_state=self.generator
            )
        return torch.tensor(drawn, dtype=torch.float32)

    def _forward_train(self, batch: dict, **_) -> dict:
        critic, plan = self.critic, self.actor.encoder.plan(batch[Columns.OBS])
        embedding = critic.encoder(plan)
        # With the critic held constant for the actor's loss, a single backward pass gives
        # actor and critic each its own gradient.
        critic.mlp.requires_grad_(False)
        judged = critic(embedding.detach(), self.actor(plan))
        critic.mlp.requires_grad_(True)
        return {
            Q: critic(embedding[plan.which], batch[Columns.ACTIONS]),
            Q_NEXT: self.forward_target(batch),
            Q_OF_ACTOR: judged[plan.which],
        }


class DDPGLearner(TorchLearner):
    """One gradient step for critic and actor; then the targets follow."""

    def build(self) -> None:
        """Build the module, and targets for it."""
        super().build()
        self._pairs = []  # of all parameters, targets and what they follow
        for module_id, module in self.module.items():
            module.unwrapped().make_target_networks()
            tau = self.config.get_config_for_module(module_id).tau
            for online, target in module.unwrapped().get_target_network_pairs():
                pair = list(target.parameters()), list(online.parameters())
                self._pairs.append((*pair, tau))

    def configure_optimizers_for_module(self, module_id, config=None) -> None:
        """Give actor and critic an Adam each."""
        module = self.module[module_id].unwrapped()
        for name, network, lr, decay in (
            ("actor", module.actor, config.actor_lr, 0.0),
            ("critic", module.critic, config.critic_lr, config.critic_weight_decay),
        ):
            parameters = self.get_parameters(network)
            self.register_optimizer(
                module_id=module_id,
                optimizer_name=name,
                optimizer=torch.optim.Adam(parameters, weight_decay=decay, fused=True),
                params=parameters,
                lr_or_lr_schedule=lr,
            )

    def apply_gradients(self, gradients_dict: dict) -> None:
        """Take the step, and let the targets follow by tau.

        A gradient that is not a finite number is no step.
        """
        if not get_total_norm(gradients_dict.values()).isfinite():
            _logger.warning("A gradient is not finite; nothing is learnt from this batch.")
            return
        for optimizer in self._named_optimizers.values():
            optimizer.step()
        for targets, parameters, tau in self._pairs:
            get_ema_multi_avg_fn(1 - tau)(targets, parameters, None)

    def after_gradient_based_update(self, *, timesteps: dict) -> None:
        """Log the losses, of the last step only: logging takes as long as a step."""
        super().after_gradient_based_update(timesteps=timesteps)
        self.metrics.log_dict(self._losses, key=DEFAULT_MODULE_ID, window=1)

    def _update(self, batch: dict, **kwargs: Any) -> tuple:
        """Take one gradient step for each train batch that ``batch`` holds in a row."""
        size, result = self.config.train_batch_size_per_learner, ({}, {}, {})
        for module_id, columns in batch.items():
            parts = [columns[name].split(size) for name in columns]
            for part in zip(*parts, strict=True):
                one = {module_id: dict(zip(columns, part, strict=True))}
                result = super()._update(one, **kwargs)
        return result

    def compute_loss_for_module(self, *, module_id, config, batch, fwd_out) -> Tensor:
        """Return (y - Q(s, a))^2 - Q(s, mu(s)), averaged over the batch."""
        target = batch[Columns.REWARDS] + config.gamma * fwd_out[Q_NEXT]
        critic_loss = F.mse_loss(fwd_out[Q], target)
        actor_loss = -fwd_out[Q_OF_ACTOR].mean()
        self._losses = {QF_LOSS_KEY: critic_loss, POLICY_LOSS_KEY: actor_loss}
        return critic_loss + actor_loss


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
        explore: bool = True,
    ) -> Finished:  # fmt: skip
        """Run episode ``number``; its noise and seeds follow from the number alone.

        Args:
            number: of the episode.
            weights: of the module, unless it is to stay as it is.
            options: for ``reset`` of the environment.
            explore: whether to add noise.
        """
        if weights is not None:
            self.module.set_state(weights)
        self._options = options
        entropy = np.random.SeedSequence([self.config.seed or 0, number])
        self._seed = int(entropy.generate_state(1)[0] >> 1)
        self.module.unwrapped().episode = number
        self.module.unwrapped().generator = np.random.default_rng(entropy)
        episodes = self.sample(num_episodes=1, explore=explore)
        return Finished(number, episodes, self.get_metrics())

    def attempt_episode(self, number: int, **request: Any) -> Finished:
        """Do the same, but say what went wrong instead of raising it.

        An exception would cost this actor its life, and others the time to start it anew.
        """
        try:
            return self.run_episode(number, **request)
        except Exception as error:
            cause = error.__cause__ or error  # RLlib wraps what environments raise
            return Finished(number, failed=f"{type(cause).__name__}: {cause}")

    def _try_env_reset(self, *, seed: int | None = None, options: dict | None = None):
        return super()._try_env_reset(seed=seed, options=options or self._options)


class DDPG(Algorithm):
    """Deep deterministic policy gradient with replay, one episode per env runner.

    With one env runner, or none, acting and learning take turns and a run is exactly
    repeatable. With more, the learner works while episodes are under way, and a slow
    episode holds up nobody.

    Attributes:
        on_episode: called in this process with every episode that is over, before
            anything is learnt from it.
        on_wait: called in this process a few times a second.
        recall: returns the episode of a number if it is known from elsewhere, else None.
        options: returns what the environment's ``reset`` is given in an actor.
    """

    on_episode: Callable[[Finished], None] | None = None
    on_wait: Callable[[], None] | None = None
    recall: Callable[[int], Finished | None] | None = None
    options: Callable[[], dict | ray.ObjectRef | None] | None = None

    @classmethod
    def get_default_config(cls) -> DDPGConfig:  # noqa: D102
        return DDPGConfig()

    def setup(self, config: DDPGConfig) -> None:
        """Build runners, learner and replay buffer, and seed what RLlib leaves alone."""
        self._episodes_done = 0
        self._updates_owed = 0.0
        self._weights: ray.ObjectRef | None = None  # of the module, since the last update
        try:
            super().setup(config)
        except IndexError as error:  # the first env runner was asked for its spaces
            raise EpisodeError(
                "the first env runner died while it was set up; run with 0 env runners to "
                "see why in this process."
            ) from error
        self.episodes = Episodes(
            self.env_runner_group._worker_manager.actors(),
            self.config.episode_timeout,
            self.config.max_retries,
        )
        self._replay = Replay(self.config.replay_capacity, self.config.seed)

    @property
    def episodes_done(self) -> int:
        """How many episodes have been run and learnt from, or given up."""
        return self._episodes_done

    def training_step(self) -> None:
        """Act, and learn meanwhile, until an episode is over."""
        over = False
        while not over and not self.episodes.exhausted:
            for finished in self._collect():
                self._take_in(finished)
                over = True
            self._start_episodes()  # before learning, which can take a while
            if self._warm and len(self._replay):
                # While episodes are under way, look after them every few updates.
                most = _UPDATES_AT_ONCE if self.episodes.under_way else math.inf
                self._learn(min(most, self._updates_owed))
            if self.on_wait is not None:
                self.on_wait()

    def _take_in(self, finished: Finished) -> None:
        if self.on_episode is not None:
            self.on_episode(finished)
        if finished.metrics:
            self.metrics.aggregate([finished.metrics], key=ENV_RUNNER_RESULTS)
        for episode in finished.episodes:
            self._updates_owed += len(episode) * self.config.updates_per_step
        self._replay.add(finished.episodes)
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
        known = self._recalled(self.episodes.peek())
        if known is not None:
            self.episodes.take()
            return [known]
        runners = self.env_runner_group.num_remote_env_runners()
        if runners == 0:
            weights = self._module_state()
            local = self.env_runner_group.local_env_runner
            return [local.run_episode(self.episodes.take(), weights)]
        busy = self._warm and self._updates_owed >= 1
        return self.episodes.collect(0.0 if busy else _WAIT_SECONDS)

    def _recalled(self, number: int) -> Finished | None:
        return self.recall(number) if self.recall is not None else None

    def _start_episodes(self) -> None:
        """Give every idle env runner new weights and an episode."""
        alone, owed = len(self.episodes.status()) == 1, self._updates_owed
        if self._warm and (owed > self.config.max_updates_owed or (alone and owed >= 1)):
            return
        for runner in self.episodes.idle:
            number = self.episodes.peek()
            if number >= self.episodes.limit or self._recalled(number) is not None:
                return
            if self._weights is None:
                self._weights = ray.put(self._module_state())
            options = self.options() if self.options is not None else None
            self.episodes.start(runner, weights=self._weights, options=options)

    def _module_state(self) -> dict:
        """Return the state of the actor network."""
        path = f"{COMPONENT_LEARNER}/{COMPONENT_RL_MODULE}"
        state = self.learner_group.get_state(components=path, inference_only=True)
        return state[COMPONENT_LEARNER][COMPONENT_RL_MODULE][DEFAULT_MODULE_ID]

    def _update(self, count: int = 1) -> None:
        """Take ``count`` gradient steps."""
        self._weights = None
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
                "episodes": self.episodes.get_state(),
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
            self.episodes.set_state(own["episodes"])
            self._episodes_done = own["episodes_done"]
            self._updates_owed = own["updates_owed"]
            self._replay.set_state(own["replay"])
