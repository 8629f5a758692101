"""A method, an objective and a number of episodes -> the best outcome."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import nn

from gnnrl_ray.baselines import rules
from gnnrl_ray.costs import BudgetError
from gnnrl_ray.data import Data
from gnnrl_ray.evaluation import PRECISIONS, Format
from gnnrl_ray.groups import trace
from gnnrl_ray.journal import Entry
from gnnrl_ray.objective import Objective, Outcome
from gnnrl_ray.run import Run

RULES = {"uniform": rules.uniform, "random": rules.random}
METHODS = ("gnn-rl", *RULES)

Progress = Callable[[int, Outcome | None], None]


def search(
    network: nn.Module,
    data: Data,
    *,
    flops: float = 0.5,
    episodes: int = 180,
    method: str = "gnn-rl",
    finetune: str | int = "recalibrate",
    importance: str = "l2",
    min_keep: float = 0.1,
    round_to: int = 1,
    keep: str | None = None,
    skip_untraceable: bool = False,
    levels: int = 2,
    fit: bool = True,
    on_timeout: str = "fit",
    max_steps: int = 8,
    seed: int = 0,
    precision: str = "auto",
    early_stop: bool = False,
    env_runners: int = 0,
    cpus_per_env_runner: float = 1.0,
    gpus_per_env_runner: float = 0.0,
    episode_timeout: float = 3600.0,
    max_retries: int = 3,
    device: str | None = None,
    agent: dict | None = None,
    name: str | None = None,
    weights: Path | str | None = None,
    data_dir: Path | str | None = None,
    out: Path | str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    address: str | None = None,
    wait_for_nodes: float = 0.0,
    on_episode: Progress | None = None,
    on_status: Callable | None = None,
) -> Outcome:
    """Find how many channels each group of ``network`` keeps within a budget.

    Args:
        network: a trained CNN.
        data: what it is fine-tuned and scored on.
        flops: allowed share of its multiply-accumulates, in (0, 1).
        episodes: candidates to score (``uniform`` has only one).
        method: one of ``METHODS``.
        finetune: before scoring: ``none``, ``recalibrate``, ``epoch`` or steps.
        importance: which channels of a group are kept.
        min_keep: smallest share of a group's channels that may be kept.
        round_to: widths are multiples of it, unless a group stays whole.
        keep: regular expression; groups with a layer whose name it matches stay whole.
        skip_untraceable: leave whole what cannot be traced or is not understood.
        levels: of the graph that the agent sees, see :class:`HierarchicalGraph`.
        fit: scale the last step of an episode back to use the whole budget.
        on_timeout: ``fit`` or ``penalty``, after ``max_steps`` without the budget.
        max_steps: of one episode.
        seed: of everything random.
        precision: how candidates are evaluated: ``plain``, ``float32``, ``bfloat16`` or,
            with ``auto``, what proves to be fastest and right.
        early_stop: stop scoring candidates that cannot be among the best few.
        env_runners: 0 runs all in this process; N starts N Ray actors.
        cpus_per_env_runner: for each actor, which runs as many threads.
        gpus_per_env_runner: share of a GPU for each actor, which is kept to that share of
            its memory.
        episode_timeout: seconds after which an episode's actor is replaced; 0 for never.
        max_retries: how often an episode is run again that was lost or raised an error,
            before it is recorded as failed.
        device: of network and data where no actors are asked for; default: a GPU if
            there is one.
        agent: settings for :meth:`gnnrl_ray.ddpg.DDPGConfig.training`.
        name: of the network in the zoo, if it is from there; like the next two, written
            to the run so that later commands find what it was about.
        weights: file that the network was loaded from, if not the published one.
        data_dir: folder that the data was loaded from, if not the usual one.
        out: run directory, or a URI that fsspec knows; default ``runs/METHOD``.
        resume: continue the run in ``out``.
        overwrite: replace a run in ``out``.
        address: of the Ray cluster to run on, ``auto`` for that of this machine; default:
            the one that this is a job of, else one that ends with the search.
        wait_for_nodes: seconds that the cluster has for becoming large enough.
        on_episode: called with the number of episodes that are over, and the best outcome
            so far, if there is one.
        on_status: called a few times a second with what each actor does and for how many
            seconds, ``{1: ("episode 17", 2.5)}``, and how many episodes have failed.

    Returns:
        The best outcome; everything else is in the run directory.

    Raises:
        BudgetError: the budget is out of reach, or was reached by no episode.
        RunError: ``out`` holds another run.
        PlacementError: the Ray cluster has no room for the env runners.
        EpisodeError: one episode after the other failed; what there was has been saved.
        KeyboardInterrupt: after what there is has been saved.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; known: {', '.join(METHODS)}.")
    if precision not in (known := ("auto", *PRECISIONS)):
        raise ValueError(f"--precision {precision!r} is not one of {', '.join(known)}.")
    if method == "gnn-rl":
        # Ray takes seconds to import, and rules do without.
        from gnnrl_ray.agent import check_agent

        check_agent(agent or {})
    settings = {
        "flops": flops, "episodes": episodes, "method": method, "finetune": finetune,
        "importance": importance, "min_keep": min_keep, "round_to": round_to,
        "keep": keep, "skip_untraceable": skip_untraceable, "levels": levels, "fit": fit,
        "on_timeout": on_timeout, "max_steps": max_steps, "seed": seed,
        "precision": precision, "early_stop": early_stop,
        "env_runners": env_runners, "cpus_per_env_runner": cpus_per_env_runner,
        "gpus_per_env_runner": gpus_per_env_runner, "episode_timeout": episode_timeout,
        "max_retries": max_retries, "device": device, "agent": agent or {}, "name": name,
        "weights": str(weights) if weights else None,
        "data_dir": str(data_dir) if data_dir else None,
    }  # fmt: skip
    settings = json.loads(json.dumps(settings))  # as the run directory holds them
    how = {"keep": keep, "skip_untraceable": skip_untraceable}
    groups = trace(network, data.input_shape, **how)
    objective = Objective(
        network, groups, data, budget=flops, finetune=finetune, min_keep=min_keep,
        round_to=round_to, importance=importance, seed=seed, early_stop=early_stop,
    )  # fmt: skip
    folder = str(out or f"runs/{method}")
    about = {"dataset": data.name, "classes": data.classes, "validation": data.protocol}
    if resume:
        run = Run.open(folder)
        run.continue_with(settings, about)
    else:
        run = Run.create(folder, settings, about, overwrite)
    objective.learn(outcome for _, outcome in run.journal)
    facts = about | {
        "network": name, "method": method, "seed": seed, "finetune": finetune,
        "budget": flops, "trace": how,
    }  # fmt: skip

    def record(episode: int, entry: Entry) -> None:
        run.journal.append(episode, entry)
        best = run.journal.best()
        if best is not None and best[0] == episode:
            run.write_best(groups, objective.kept(np.array(best[1].widths)), facts)
        if on_episode is not None:
            on_episode(len(run.journal), best[1] if best else None)

    try:
        if env_runners == 0 or method in RULES:
            objective.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
            if run.evaluation is None:
                run.evaluate_with(asdict(objective.choose(precision)))
            objective.form = Format(**run.evaluation)
        if method == "gnn-rl":
            from gnnrl_ray.agent import run_agent

            run_agent(
                objective, run, record, address=address, wait_for_nodes=wait_for_nodes,
                on_status=on_status,
            )  # fmt: skip
        else:
            _apply_rule(objective, run, record)
    finally:
        _save_winner(run, objective)
    best = run.journal.best()
    if best is None:
        reason = run.journal.failures[max(run.journal.failures)]
        raise BudgetError(
            f"no episode came to a candidate, the last one because: {reason}. Where the "
            "budget is missed, raise --max-steps or let --on-timeout fit scale down to it."
        )
    return best[1]


def _apply_rule(objective: Objective, run: Run, record: Callable) -> None:
    settings = run.settings
    rule = RULES[settings["method"]]
    # Without randomness every episode would be the same one.
    episodes = settings["episodes"] if rule is rules.random else 1
    for episode in range(episodes):
        if episode in run.journal:
            continue
        generator = np.random.default_rng([settings["seed"], episode])
        widths = rule(objective.costs, objective.floor, objective.budget, generator)
        record(episode, Entry(objective(widths)))


def _save_winner(run: Run, objective: Objective) -> None:
    best = run.journal.best()
    if best is not None:
        run.save_network("pruned", objective.build(np.array(best[1].widths)))
