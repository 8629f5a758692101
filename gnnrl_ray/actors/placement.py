"""Whether a cluster has room for the env runners that are asked for."""

import time

import ray
from ray.util import (
    get_current_placement_group,
    placement_group,
    remove_placement_group,
)

from gnnrl_ray.errors import InputError

# That a cluster has at least for setting the room aside: what others have just given back
# takes a moment to be counted.
_SECONDS = 3.0


class PlacementError(InputError):
    """More env runners than the cluster can hold."""


def check_placement(runners: int, cpus: float, gpus: float, seconds: float = 0) -> None:
    """Raise if the cluster that Ray is connected to cannot place the env runners.

    Ray itself would wait for room in silence.

    Args:
        runners: how many.
        cpus: of each.
        gpus: of each.
        seconds: to wait for nodes that are still to come.

    Raises:
        PlacementError: with what is asked for, and what there is.
    """
    if get_current_placement_group() is not None:
        return  # room has been set aside for this trial of a sweep
    each = {kind: n for kind, n in (("CPU", cpus), ("GPU", gpus)) if n > 0}
    if not each:
        return
    room = placement_group([each] * runners, strategy="PACK")
    try:
        deadline = time.monotonic() + max(seconds, _SECONDS)
        while not room.wait(min(1.0, max(0.0, deadline - time.monotonic()))):
            if time.monotonic() >= deadline:
                raise PlacementError(_arithmetic(runners, each))
    finally:
        remove_placement_group(room)


def _arithmetic(runners: int, each: dict[str, float]) -> str:
    def listed(resources: dict[str, float]) -> str:
        return " and ".join(f"{resources.get(kind, 0):g} {kind}s" for kind in each)

    needed = " and ".join(
        f"{runners} x {n:g} = {runners * n:g} {k}s" for k, n in each.items()
    )
    nodes = "; ".join(listed(n["Resources"]) for n in ray.nodes() if n["Alive"])
    return (
        f"--env-runners {runners} of {listed(each)} each do not fit: they need {needed}, "
        f"the nodes have {nodes}, and {listed(ray.available_resources())} are free. Ask "
        "for fewer --env-runners, lower --cpus-per-env-runner or --gpus-per-env-runner, "
        "add nodes, or wait for others with --wait-for-nodes."
    )
