"""One objective for all actors of a node.

The objective travels through Ray's object store, where each node has it once;
configurations and checkpoints hold no data.
"""

import warnings
from collections.abc import Sequence

import ray
import torch
from torch import Tensor

from gnnrl_ray.actors.connection import connected
from gnnrl_ray.actors.placement import check_placement
from gnnrl_ray.errors import GnnrlError, InputError, Notice
from gnnrl_ray.run.task import Task
from gnnrl_ray.scoring.evaluation import EvaluationMode
from gnnrl_ray.scoring.objective import Objective


class SharedObjective:
    """Hands an objective to whoever scores with it, here or in an actor.

    A pickled copy of one that is not for actors holds nothing.

    Args:
        objective: what is handed out.
        remote: whether it is for actors.
        gpus: that each actor has.
    """

    def __init__(self, objective: Objective, remote: bool, gpus: float = 0.0) -> None:
        self._value = _put(objective) if remote else objective
        self._remote = remote
        self._gpus = gpus
        self.mode = objective.mode

    def __call__(self) -> Objective:
        """Return the objective; in an actor, on its device."""
        if isinstance(self._value, Objective):
            return self._value
        if 0 < self._gpus < 1:
            # Ray gives out shares of a GPU, and nothing keeps an actor to its own.
            torch.cuda.set_per_process_memory_fraction(self._gpus)
        objective = ray.get(self._value).to("cuda" if self._gpus else "cpu")
        objective.mode = self.mode
        return objective

    def __deepcopy__(self, memo: dict) -> "SharedObjective":
        return self

    def __getstate__(self) -> dict:
        return self.__dict__ if self._remote else {}


def _put(objective: Objective) -> ray.ObjectRef:
    try:
        return ray.put(objective)
    except ray.exceptions.RayError:
        raise
    except Exception as error:  # whatever that of the user's own says, who is asked
        reason = str(error).strip().split("\n")[0]
        raise InputError(
            "network, data or functions of your own cannot be sent to actors: "
            f"{type(error).__name__}: {reason}. Leave out what is open or under way, such "
            "as files, threads and generators, or use --env-runners 0."
        ) from error


def share(task: Task) -> SharedObjective:
    """Return the objective of ``task``, for here or for the actors of its settings.

    Raises:
        PlacementError: the cluster has no room for the actors.
        InputError: something of the user's own cannot be sent to them.
    """
    settings, objective, run = task.settings, task.objective, task.run
    if not settings.env_runners:
        return SharedObjective(objective, remote=False)
    cpus, gpus = settings.cpus_per_env_runner, settings.gpus_per_env_runner
    check_placement(settings.env_runners, cpus, gpus, settings.wait_for_nodes)
    shared = SharedObjective(objective, remote=True, gpus=gpus)
    if run.mode is None:
        # One actor's share of the hardware decides how all of them evaluate.
        remote = ray.remote(num_cpus=cpus, num_gpus=gpus)(_choose)
        mode, messages = ray.get(remote.remote(shared, settings.precision))
        for message in messages:
            warnings.warn(message, Notice, stacklevel=2)
        run.evaluate_with(mode)
    shared.mode = objective.mode = run.mode
    return shared


def _choose(shared: SharedObjective, precision: str) -> tuple[EvaluationMode, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", Notice)
        mode = shared().choose(precision)
    return mode, [str(w.message) for w in caught if w.category is Notice]


def bring_back(task: Task, widths: Sequence[int]) -> None:
    """Have the candidate of ``widths`` [G] trained once more, with one actor's hardware.

    The actors that scored it are gone by then, and with them its weights. Where no room is
    left, or no Ray, a notice says so, and it will be trained here.
    """
    settings, objective = task.settings, task.objective
    cpus, gpus = settings.cpus_per_env_runner, settings.gpus_per_env_runner
    try:
        with connected(settings.address):
            check_placement(1, cpus, gpus)
            shared = SharedObjective(objective, remote=True, gpus=gpus)
            remote = ray.remote(num_cpus=cpus, num_gpus=gpus)(_state)
            state = ray.get(remote.remote(shared, tuple(widths)))
    except (GnnrlError, ray.exceptions.RayError) as error:
        reason = str(error).splitlines()[0]
        warnings.warn(
            f"the winner is trained once more in this process, as no actor could: {reason}",
            Notice,
            stacklevel=2,
        )
    else:
        objective.take_over(widths, state)


def _state(shared: SharedObjective, widths: tuple[int, ...]) -> dict[str, Tensor]:
    state = shared().build(widths).state_dict()
    return {name: tensor.cpu() for name, tensor in state.items()}
