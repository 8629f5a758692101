"""Lets the DDPG agent search: objective, run directory -> episodes, checkpoints, events."""

import logging
import shutil
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import ray
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from tensorboardX import SummaryWriter

from gnnrl_ray.ddpg import DDPG, DDPGConfig
from gnnrl_ray.env import PruningEnv
from gnnrl_ray.evaluation import Format
from gnnrl_ray.objective import Objective, Outcome
from gnnrl_ray.run import Run

_CHECKPOINT_EVERY = 10
# One gradient step for each layer that AMC visits would be one for each group; an episode
# here is only a step or two, and costs far more than they do.
_AGENT = {"updates_per_step": 32, "gamma": 1.0}


class _Held:
    """Hands an objective to environments without copying it into every configuration.

    Remote environments fetch it from Ray's object store; a local one gets the thing
    itself. A pickled copy (configurations end up in checkpoints) holds no local objective.
    """

    def __init__(self, objective: Objective, remote: bool, device: str) -> None:
        self._value = ray.put(objective) if remote else objective
        self._device = device if remote else None
        self.form = objective.form

    def __call__(self) -> Objective:
        if isinstance(self._value, Objective):
            return self._value
        objective = ray.get(self._value).to(self._device)
        objective.form = self.form
        return objective

    def __deepcopy__(self, memo: dict) -> "_Held":
        return self

    def __getstate__(self) -> dict:
        return self.__dict__ if self._device else {}


def _choose_remotely(objective: Objective, held: _Held, run: Run) -> None:
    """Let one env runner's share of the hardware decide how all of them evaluate."""

    def choose() -> tuple[Format, list[str]]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            form = held().choose(run.settings["precision"])
        return form, [str(warning.message) for warning in caught]

    if run.evaluation is None:
        share = run.settings["gpus_per_env_runner"]
        form, messages = ray.get(ray.remote(num_gpus=share)(choose).remote())
        for message in messages:
            warnings.warn(message, stacklevel=2)
        run.evaluate_with(asdict(form))
    held.form = objective.form = Format(**run.evaluation)


def run_agent(
    objective: Objective,
    run: Run,
    record: Callable[[int, Outcome], None],
) -> None:
    """Run the episodes that ``run`` still lacks, from its newest checkpoint on.

    Args:
        objective: scores the candidates.
        run: its settings say how; checkpoints and TensorBoard events go to its folder.
        record: called with the number and the outcome of every episode that has one.
    """
    settings = run.settings
    # It would announce, and advise on, what is meant to be so.
    logging.getLogger("ray.rllib").setLevel(logging.ERROR)
    started_here = not ray.is_initialized()
    if started_here:
        ray.init(include_dashboard=False, logging_level="error", log_to_driver=False)
    remote = settings["env_runners"] > 0
    device = "cuda" if settings["gpus_per_env_runner"] else "cpu"
    held = _Held(objective, remote, device)
    if remote:
        _choose_remotely(objective, held, run)
    config = (
        DDPGConfig()
        .environment(
            PruningEnv,
            env_config={
                "objective": held,
                "fit": settings["fit"],
                "on_timeout": settings["on_timeout"],
                "max_steps": settings["max_steps"],
                "levels": settings["levels"],
            },
        )
        .env_runners(
            num_env_runners=settings["env_runners"],
            num_gpus_per_env_runner=settings["gpus_per_env_runner"],
        )
        .training(**_AGENT | settings["agent"])
        .debugging(seed=settings["seed"], log_level="ERROR")
    )
    algorithm = config.build_algo()
    try:
        with SummaryWriter(str(run.folder / "events")) as events:
            _run_episodes(algorithm, run, record, events)
    finally:
        algorithm.stop()
        if started_here:
            ray.shutdown()


def _run_episodes(
    algorithm: DDPG, run: Run, record: Callable, events: SummaryWriter
) -> None:
    checkpoint = run.folder / "checkpoint"
    for there in (checkpoint, _previous(checkpoint)):
        if there.exists():
            algorithm.restore_from_path(there.resolve())
            break

    def on_episode(index: int, episode: SingleAgentEpisode) -> None:
        outcome: Outcome | None = episode.get_infos(-1).get("outcome")
        if outcome is None:  # timed out, with the penalty
            return
        record(index, outcome)
        events.add_scalar("accuracy", outcome.accuracy, index)
        events.add_scalar("macs", outcome.macs, index)
        events.add_scalar("steps", len(episode), index)

    algorithm.on_episode = on_episode
    saved = algorithm.episodes_done
    # Saved between episodes only: what an interruption cuts short is not a state to go on
    # from, and what came after the last checkpoint is answered from the journal.
    while algorithm.episodes_done < run.settings["episodes"]:
        algorithm.train()
        due = algorithm.episodes_done - saved >= _CHECKPOINT_EVERY
        if due or algorithm.episodes_done >= run.settings["episodes"]:
            _save(algorithm, checkpoint)
            saved = algorithm.episodes_done


def _save(algorithm: DDPG, checkpoint: Path) -> None:
    """Replace the checkpoint; there is a whole one, or its predecessor, at any moment."""
    partial, previous = checkpoint.with_suffix(".partial"), _previous(checkpoint)
    shutil.rmtree(partial, ignore_errors=True)
    algorithm.save_to_path(partial.resolve())
    if checkpoint.exists():
        shutil.rmtree(previous, ignore_errors=True)
        checkpoint.rename(previous)
    partial.rename(checkpoint)
    shutil.rmtree(previous, ignore_errors=True)


def _previous(checkpoint: Path) -> Path:
    return checkpoint.with_suffix(".previous")
