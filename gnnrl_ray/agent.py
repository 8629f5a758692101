"""Lets the DDPG agent search: objective, run directory -> episodes, checkpoints, events."""

import inspect
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import ray
import torch
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from tensorboardX import SummaryWriter

from gnnrl_ray.ddpg import DDPG, DDPGConfig
from gnnrl_ray.env import EpisodeError, PruningEnv
from gnnrl_ray.episodes import Finished
from gnnrl_ray.evaluation import Format
from gnnrl_ray.journal import Entry
from gnnrl_ray.objective import Objective
from gnnrl_ray.placement import check_placement
from gnnrl_ray.run import Run, RunError

_CHECKPOINT, _CHECKPOINT_EVERY = "checkpoint.zip", 10
_HOPELESS = 10  # failed episodes in a row
# One gradient step for each layer that AMC visits would be one for each group; an episode
# here is only a step or two, and costs far more than they do.
_AGENT = {"updates_per_step": 32, "gamma": 1.0}

# What may be set of the agent.
AGENT_SETTINGS = set(inspect.signature(DDPGConfig.training).parameters) - {
    *("self", "kwargs", "episode_timeout", "max_retries"),
} | {"gamma", "train_batch_size_per_learner"}

Status = dict[int, tuple[str, float]]


class _Held:
    """Hands an objective to environments without copying it into every configuration.

    Remote environments fetch it from Ray's object store, where each node has it once; a
    local one gets the thing itself. A pickled copy (configurations end up in checkpoints)
    holds no local objective.
    """

    def __init__(self, objective: Objective, remote: bool, gpus: float) -> None:
        self._value = ray.put(objective) if remote else objective
        self._remote = remote
        self._gpus = gpus
        self.form = objective.form

    def __call__(self) -> Objective:
        if isinstance(self._value, Objective):
            return self._value
        if 0 < self._gpus < 1:
            # Ray gives out shares of a GPU, and nothing keeps an actor to its own.
            torch.cuda.set_per_process_memory_fraction(self._gpus)
        objective = ray.get(self._value).to("cuda" if self._gpus else "cpu")
        objective.form = self.form
        return objective

    def __deepcopy__(self, memo: dict) -> "_Held":
        return self

    def __getstate__(self) -> dict:
        return self.__dict__ if self._remote else {}


def run_agent(
    objective: Objective,
    run: Run,
    record: Callable[[int, Entry], None],
    *,
    address: str | None = None,
    wait_for_nodes: float = 0,
    on_status: Callable[[Status, int], None] | None = None,
) -> None:
    """Run the episodes that ``run`` still lacks, from its newest checkpoint on.

    Args:
        objective: scores the candidates.
        run: its settings say how; checkpoints and TensorBoard events go to its folder.
        record: called with the number and the entry of every episode that is over.
        address: of a Ray cluster; default: the one that this is a job of, else none.
        wait_for_nodes: seconds that a cluster has for becoming large enough.
        on_status: called a few times a second with what each env runner does, and how many
            episodes have failed.

    Raises:
        PlacementError: the cluster has no room for the env runners.
        EpisodeError: one episode after the other has failed, or every env runner has died.
    """
    settings = run.settings
    # It would announce, and advise on, what is meant to be so.
    logging.getLogger("ray.rllib").setLevel(logging.ERROR)
    with connected(address):
        runners, gpus = settings["env_runners"], settings["gpus_per_env_runner"]
        if runners:
            check_placement(runners, settings["cpus_per_env_runner"], gpus, wait_for_nodes)
        held = _Held(objective, runners > 0, gpus)
        if runners:
            _choose_remotely(objective, held, run)
        algorithm = _config(settings, held).build_algo()
        try:
            search = _Search(algorithm, objective, run, record)
            if on_status is not None:
                algorithm.on_wait = lambda: on_status(
                    algorithm.episodes.status(), len(run.journal.failures)
                )
            search.run_episodes()
        finally:
            algorithm.stop()


def check_agent(settings: dict) -> None:
    """Raise ``ValueError`` for a setting that the agent does not have."""
    if unknown := settings.keys() - AGENT_SETTINGS:
        known = ", ".join(sorted(AGENT_SETTINGS))
        raise ValueError(f"--agent {unknown.pop()!r} is no setting of it; known: {known}.")


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Connect to a cluster, or make one of this machine for as long as it is needed."""
    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS")
    where = {"address": address or "local"}
    if not address:
        where["include_dashboard"] = False
    ray.init(**where, logging_level="error", log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()


def _choose_remotely(objective: Objective, held: _Held, run: Run) -> None:
    """Let one env runner's share of the hardware decide how all of them evaluate."""

    def choose() -> tuple[Format, list[str]]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            form = held().choose(run.settings["precision"])
        return form, [str(warning.message) for warning in caught]

    if run.evaluation is None:
        share = {
            "num_cpus": run.settings["cpus_per_env_runner"],
            "num_gpus": run.settings["gpus_per_env_runner"],
        }
        form, messages = ray.get(ray.remote(**share)(choose).remote())
        for message in messages:
            warnings.warn(message, stacklevel=2)
        run.evaluate_with(asdict(form))
    held.form = objective.form = Format(**run.evaluation)


def _environment(settings: dict, objective: Callable[[], Objective]) -> dict:
    """Return the configuration of the environment."""
    names = ("fit", "on_timeout", "max_steps", "levels")
    return {"objective": objective} | {name: settings[name] for name in names}


def _config(settings: dict, held: _Held) -> DDPGConfig:
    faults = {name: settings[name] for name in ("episode_timeout", "max_retries")}
    return (
        DDPGConfig()
        .environment(PruningEnv, env_config=_environment(settings, held))
        .env_runners(
            num_env_runners=settings["env_runners"],
            num_cpus_per_env_runner=settings["cpus_per_env_runner"],
            num_gpus_per_env_runner=settings["gpus_per_env_runner"],
        )
        .training(**_AGENT | faults | settings["agent"])
        .debugging(seed=settings["seed"], log_level="ERROR")
    )


class _Search:
    """One agent at work on one run."""

    def __init__(
        self, algorithm: DDPG, objective: Objective, run: Run, record: Callable
    ) -> None:
        self._algorithm = algorithm
        self._objective = objective
        self._run = run
        self._record = record
        self._in_a_row = 0  # failed
        self._shared: tuple[int, ray.ObjectRef | None] = (-1, None)
        self._scratch = tempfile.TemporaryDirectory()
        local = run.folder.local
        self._events = (local or Path(self._scratch.name)) / "events"
        self._writer = SummaryWriter(str(self._events))
        environment = _environment(run.settings, lambda: objective)
        self._retelling = PruningEnv(environment)
        algorithm.on_episode = self._on_episode
        algorithm.recall = self._recall
        algorithm.options = self._options
        algorithm.episodes.limit = run.settings["episodes"]

    def run_episodes(self) -> None:
        """Run those that are left, and save the agent now and then.

        Saved between episodes only: what an interruption cuts short is not a state to go
        on from, and what came after the last checkpoint is told again from the journal.
        """
        with self._scratch, self._writer:
            algorithm, total = self._algorithm, self._run.settings["episodes"]
            self._restore()
            saved = algorithm.episodes_done
            while algorithm.episodes_done < total:
                algorithm.train()
                due = algorithm.episodes_done - saved >= _CHECKPOINT_EVERY
                if due or algorithm.episodes_done >= total:
                    self._save()
                    saved = algorithm.episodes_done

    def _on_episode(self, finished: Finished) -> None:
        number = finished.number
        if finished.failed is not None:
            self._in_a_row += number not in self._run.journal  # not what is told again
            self._record(number, Entry(failed=finished.failed))
            if self._in_a_row >= _HOPELESS:
                raise EpisodeError(
                    f"{_HOPELESS} episodes in a row have failed, the last one because: "
                    f"{finished.failed}. With --env-runners 0 the error is raised here."
                )
            return
        self._in_a_row = 0
        (episode,) = finished.episodes
        actions = [np.asarray(action).tolist() for action in episode.get_actions()]
        outcome = episode.get_infos(-1).get("outcome")
        if outcome is None:
            missed = f"the budget was not met in {len(episode)} steps"
            self._record(number, Entry(None, actions, missed))
            return
        self._objective.learn([outcome])
        self._record(number, Entry(outcome, actions))
        self._writer.add_scalar("accuracy", outcome.accuracy, number)
        self._writer.add_scalar("macs", outcome.macs, number)
        self._writer.add_scalar("steps", len(episode), number)

    def _options(self) -> ray.ObjectRef | None:
        """Return what is known already, so that no env runner scores it again."""
        known, ref = self._shared
        if known != len(self._run.journal):
            outcomes = [outcome for _, outcome in self._run.journal]
            ref = ray.put({"outcomes": outcomes})
            self._shared = len(self._run.journal), ref
        return ref

    def _recall(self, number: int) -> Finished | None:
        """Tell an episode again that the journal has and the agent does not."""
        entry = self._run.journal.entry(number)
        if entry is None:
            return None
        if entry.actions is None:
            # Older journals hold no actions; the candidate at least is known.
            return Finished(number, failed=entry.failed) if entry.failed else None
        environment, terminated, rewards, info = self._retelling, False, [], {}
        observations = [environment.reset()[0]]
        actions = [np.array(action, np.float32) for action in entry.actions]
        for action in actions:
            observation, reward, terminated, _, info = environment.step(action)
            observations.append(observation)
            rewards.append(reward)
        if not terminated or info.get("outcome") != entry.outcome:
            raise RunError(
                f"episode {number} in {self._run.folder}/journal.jsonl is not of this "
                "network: its actions lead elsewhere. Start a new run with --out."
            )
        return Finished(number, [SingleAgentEpisode(
            observations=observations, actions=actions, rewards=rewards,
            infos=[{}] * len(actions) + [info], terminated=True, len_lookback_buffer=0,
        )])  # fmt: skip

    def _restore(self) -> None:
        folder = self._run.folder
        if not folder.exists(_CHECKPOINT):
            return
        with tempfile.TemporaryDirectory() as scratch:
            archive = Path(scratch) / _CHECKPOINT
            archive.write_bytes(folder.read(_CHECKPOINT))
            shutil.unpack_archive(archive, f"{scratch}/checkpoint")
            self._algorithm.restore_from_path(f"{scratch}/checkpoint")

    def _save(self) -> None:
        """Replace the checkpoint, a single file so that there is always a whole one."""
        with tempfile.TemporaryDirectory() as scratch:
            self._algorithm.save_to_path(f"{scratch}/checkpoint")
            archive = shutil.make_archive(scratch, "zip", f"{scratch}/checkpoint")
            try:
                self._run.folder.write(_CHECKPOINT, Path(archive).read_bytes())
            finally:
                Path(archive).unlink()
        if self._run.folder.local is None:
            self._writer.flush()
            self._run.folder.copy(self._events, "events")
