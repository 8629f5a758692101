"""The method ``gnn-rl``: DDPG on the DNN-Graph environment, one run of it."""

import math
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import ray
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.learner import POLICY_LOSS_KEY
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.metrics import LEARNER_RESULTS
from tensorboardX import SummaryWriter

from gnnrl_ray.actors.connection import connected
from gnnrl_ray.actors.dispatch import Finished
from gnnrl_ray.actors.sharing import SharedObjective, share
from gnnrl_ray.agent.ddpg import DDPG, DDPGConfig, Hooks
from gnnrl_ray.agent.env import SETTINGS, PruningEnv
from gnnrl_ray.agent.learner import QF_LOSS_KEY, QF_MEAN_KEY
from gnnrl_ray.agent.module import noise_of
from gnnrl_ray.agent.settings import AgentSettings
from gnnrl_ray.agent.transfer import AGENT_FILE, PRETRAINED
from gnnrl_ray.errors import InputError
from gnnrl_ray.run.directory import RunError
from gnnrl_ray.run.journal import EpisodeRecord
from gnnrl_ray.run.task import Task
from gnnrl_ray.settings import SearchSettings
from gnnrl_ray.storage import storage_of
from gnnrl_ray.tracing.groups import ChannelGroups
from gnnrl_ray.zoo.weights import read_weights

_CHECKPOINT, _CHECKPOINT_EVERY = "checkpoint.zip", 10
_INITIAL = "initial.safetensors"  # what the agent started from
_INFORMED = 8  # episodes of warm-up, which what it started from then chooses

# What may be set of the agent.
_RLLIBS = {"gamma", "train_batch_size_per_learner"}
AGENT_SETTINGS = AgentSettings.names() - {"episode_timeout", "max_retries"} | _RLLIBS


# Of each algorithm. One gradient step for each layer that AMC visits would be one for each
# group; an episode here is only a step or two, and costs far more than they do.
_TUNED: dict[str, dict[str, Any]] = {
    "ddpg": {"updates_per_step": 32},
    "sac": {"updates_per_step": 32},
    "wolpertinger": {
        "updates_per_step": 100, "warmup_episodes": 10, "actor_lr": 1e-3,
        "critic_lr": 3e-3, "critic_weight_decay": 0.02, "hidden": (64, 64),
    },
}  # fmt: skip
# What is written of learning: RLlib's names, and ours.
_LEARNT = {QF_LOSS_KEY: "critic_loss", POLICY_LOSS_KEY: "actor_loss", QF_MEAN_KEY: "q"}
_OF_ONE = {"noise": "ddpg", "noise_decay": "ddpg", "noise_floor": "ddpg",
           "judges": "wolpertinger"}  # fmt: skip


class Agent:
    """Lets the DDPG agent search.

    Args:
        task: what it is to find.

    Attributes:
        environment: that it acts in.
        defaults: of ``DDPGConfig.training``, where ``--agent`` says nothing.
    """

    environment: ClassVar[type[gym.Env]] = PruningEnv
    defaults: ClassVar[dict[str, Any]] = {"algorithm": "wolpertinger", "gamma": 1.0}

    def __init__(self, task: Task) -> None:
        self._task = task

    @staticmethod
    def candidates(settings: SearchSettings) -> int:
        """Return how many candidates it proposes."""
        return settings.episodes

    @staticmethod
    def probes(groups: ChannelGroups) -> int:
        """Return how many evaluations it makes beside those of candidates: none."""
        return 0

    @classmethod
    def check(cls, settings: SearchSettings) -> None:
        """Raise ``InputError`` for a setting that the agent does not have."""
        if unknown := settings.agent.keys() - AGENT_SETTINGS:
            known = ", ".join(sorted(AGENT_SETTINGS))
            raise InputError(
                f"--agent {unknown.pop()!r} is no setting of it; known: {known}."
            )
        own = AgentSettings.names() & settings.agent.keys()
        AgentSettings(**{name: settings.agent[name] for name in own})
        algorithm = (cls.defaults | settings.agent)["algorithm"]
        for name in _OF_ONE.keys() & settings.agent.keys():
            if (owner := _OF_ONE[name]) != algorithm:
                raise InputError(
                    f"--agent {name} is of {owner}, and {algorithm} has none; give --agent "
                    f"algorithm={owner}, too."
                )
        if settings.from_run is not None and algorithm != "wolpertinger":
            raise InputError(
                f"--from-run {settings.from_run}: {algorithm} has a head for each group of "
                "one network, which says nothing of another; leave out --from-run or "
                "--agent."
            )

    def run(self) -> None:
        """Run the episodes that the run still lacks, from its newest checkpoint on.

        Checkpoints and TensorBoard events go to the run directory.

        Raises:
            PlacementError: the cluster has no room for the env runners.
            EpisodeError: one episode after the other has failed, or every env runner died.
        """
        initial = self._initial()
        self._task.say("starting Ray")
        with connected(self._task.settings.address):
            self._task.say("building the agent")
            shared = share(self._task)
            config = self.env_config(self._task.settings, lambda: self._task.objective)
            hooks = _RunHooks(self._task, self.environment(config))
            settings = self.config(self._task.settings, shared)
            if initial is not None:
                settings.training(initial=initial)
                if "warmup_episodes" not in self._task.settings.agent:
                    settings.training(warmup_episodes=_INFORMED)
            with warnings.catch_warnings():  # RLlib registers one environment each time
                warnings.filterwarnings("ignore", ".*Overriding environment")
                algorithm = DDPG(settings, hooks=hooks)
            try:
                _Session(algorithm, self._task, hooks).run()
            finally:
                algorithm.stop()

    def _initial(self) -> str | None:
        """Return what the agent starts from, once it is in the run directory.

        Raises:
            WeightsError: there is no such agent, or it is damaged.
        """
        given, storage = self._task.settings.from_run, self._task.run.storage
        if given is None:
            return None
        if not storage.exists(_INITIAL):
            path = str(PRETRAINED) if given == "pretrained" else given
            if not path.endswith(".safetensors"):
                path = f"{path}/{AGENT_FILE}"
            read_weights(path)  # or say what is wrong with it
            there, name = storage_of(path)
            storage.write(_INITIAL, there.read(name))
        return storage.path(_INITIAL)

    @classmethod
    def env_config(cls, settings: SearchSettings, objective: Any) -> dict:
        """Return the configuration of the environment.

        Args:
            settings: of the search.
            objective: a function that returns it.
        """
        chooses = (cls.defaults | settings.agent)["algorithm"] == "wolpertinger"
        own = {name: getattr(settings, name) for name in SETTINGS}
        return {"objective": objective, "facts": chooses} | own

    @classmethod
    def config(cls, settings: SearchSettings, shared: SharedObjective) -> DDPGConfig:
        """Return the configuration of the algorithm for a search."""
        agent = cls.defaults | settings.agent
        agent = _TUNED[agent["algorithm"]] | agent
        faults = {
            "episode_timeout": settings.episode_timeout,
            "max_retries": settings.max_retries,
        }
        return (
            DDPGConfig()
            .environment(cls.environment, env_config=cls.env_config(settings, shared))
            .env_runners(
                num_env_runners=settings.env_runners,
                num_cpus_per_env_runner=settings.cpus_per_env_runner,
                num_gpus_per_env_runner=settings.gpus_per_env_runner,
            )
            .training(**agent | faults)
            .debugging(seed=settings.seed, log_level="ERROR")
        )


class _RunHooks(Hooks):
    """Writes down what happens, and replays what the journal has and the agent has not."""

    def __init__(self, task: Task, environment: gym.Env) -> None:
        self._task = task
        self._shared: tuple[int, ray.ObjectRef | None] = (-1, None)
        self._environment = environment
        self._images = task.objective.images
        self.writer: SummaryWriter | None = None

    def on_episode(self, finished: Finished) -> None:
        number, episode = finished.number, finished.result
        record = self._task.run.journal.record(number) or _record_of(finished)
        self._task.record(number, record)
        if record.outcome is not None and self.writer is not None:
            scored = record.outcome.images or self._images
            self.writer.add_scalar("accuracy", record.outcome.accuracy, number)
            self.writer.add_scalar("reward", record.outcome.reward, number)
            self.writer.add_scalar("macs", record.outcome.macs, number)
            self.writer.add_scalar("images", scored, number)
            self.writer.add_scalar("steps", len(episode), number)

    def on_wait(self, status: dict[int, tuple[str, float]]) -> None:
        self._task.report(status)

    def options(self) -> ray.ObjectRef | None:
        """Return what is known already, so that no env runner scores it again."""
        known, ref = self._shared
        journal = self._task.run.journal
        if known != len(journal):
            ref = ray.put({"outcomes": [outcome for _, outcome in journal]})
            self._shared = len(journal), ref
        return ref

    def replayed(self, number: int) -> Finished | None:
        record = self._task.run.journal.record(number)
        if record is None:
            return None
        if record.actions is None:
            # Older journals hold no actions; the candidate at least is known.
            return Finished(number, failed=record.failed) if record.failed else None
        env, terminated, rewards, info = self._environment, False, [], {}
        observations, infos = [env.reset()[0]], [{}]
        actions = [np.array(action, np.float32) for action in record.actions]
        for action in actions:
            observation, reward, terminated, _, info = env.step(action)
            observations.append(observation)
            rewards.append(reward)
            infos.append(info)
        if not terminated or info.get("outcome") != record.outcome:
            raise RunError(
                f"episode {number} in {self._task.run.storage}/journal.jsonl is not of "
                "this network: its actions lead elsewhere. Start a new run with --out."
            )
        episode = SingleAgentEpisode(
            observations=observations, actions=actions, rewards=rewards,
            infos=infos, terminated=True, len_lookback_buffer=0,
        )  # fmt: skip
        return Finished(number, episode)


def _record_of(finished: Finished) -> EpisodeRecord:
    """Return what the journal keeps of an episode."""
    if finished.failed is not None:
        return EpisodeRecord(failed=finished.failed)
    episode = finished.result
    actions = [np.asarray(action).tolist() for action in episode.get_actions()]
    outcome = episode.get_infos(-1).get("outcome")
    if outcome is None:
        missed = f"the budget was not met in {len(episode)} steps"
        return EpisodeRecord(None, actions, missed)
    return EpisodeRecord(outcome, actions)


class _Session:
    """One agent at work on one run, from its newest checkpoint to the end."""

    def __init__(self, algorithm: DDPG, task: Task, hooks: _RunHooks) -> None:
        self._algorithm = algorithm
        self._storage = task.run.storage
        self._total = task.settings.episodes
        self._hooks = hooks
        algorithm.dispatcher.limit = self._total

    def run(self) -> None:
        """Run the episodes that are left, and save the agent now and then.

        Saved between episodes only: what an interruption cuts short is not a state to go
        on from, and what came after the last checkpoint is replayed from the journal.
        """
        algorithm = self._algorithm
        with tempfile.TemporaryDirectory() as scratch:
            self._events = (self._storage.local or Path(scratch)) / "events"
            with SummaryWriter(str(self._events)) as writer:
                self._hooks.writer = writer
                self._restore()
                saved = algorithm.episodes_done
                while algorithm.episodes_done < self._total:
                    self._write(writer, algorithm.train().get(LEARNER_RESULTS, {}))
                    due = algorithm.episodes_done - saved >= _CHECKPOINT_EVERY
                    if due or algorithm.episodes_done >= self._total:
                        self._save()
                        writer.flush()
                        if self._storage.local is None:
                            self._storage.copy(self._events, "events")
                        saved = algorithm.episodes_done

    def _write(self, writer: SummaryWriter, learners: dict) -> None:
        """Write what was learnt since the episode before, for TensorBoard."""
        config, last = self._algorithm.config, self._algorithm.episodes_done - 1
        found = learners.get(DEFAULT_MODULE_ID, {})
        values = {name: found.get(key, math.nan) for key, name in _LEARNT.items()}
        if config.algorithm == "ddpg" and last >= config.warmup_episodes:
            values["noise"] = noise_of(last, config.to_dict())
        for name, value in values.items():
            if math.isfinite(value):
                writer.add_scalar(name, value, last)

    def _restore(self) -> None:
        if not self._storage.exists(_CHECKPOINT):
            return
        with tempfile.TemporaryDirectory() as scratch:
            archive = Path(scratch) / _CHECKPOINT
            archive.write_bytes(self._storage.read(_CHECKPOINT))
            shutil.unpack_archive(archive, f"{scratch}/checkpoint")
            try:
                self._algorithm.restore_from_path(f"{scratch}/checkpoint")
            except (RuntimeError, KeyError, ValueError) as error:
                reason = str(error).splitlines()[0]
                raise RunError(
                    f"{self._storage}/{_CHECKPOINT} is of another agent ({reason}); go on "
                    "with the --agent that it was started with, or delete it, and what the "
                    "journal holds is learnt anew."
                ) from error

    def _save(self) -> None:
        """Replace the checkpoint, a single file so that there is always a whole one."""
        if self._algorithm.config.hindsight:  # others know of one network alone
            self._storage.write(AGENT_FILE, self._algorithm.knowledge())
        with tempfile.TemporaryDirectory() as scratch:
            self._algorithm.save_to_path(f"{scratch}/checkpoint")
            archive = shutil.make_archive(scratch, "zip", f"{scratch}/checkpoint")
            try:
                self._storage.write(_CHECKPOINT, Path(archive).read_bytes())
            finally:
                Path(archive).unlink()
