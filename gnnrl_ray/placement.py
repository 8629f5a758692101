"""Whether a cluster has room for the env runners that are asked for."""

import time

import ray
from ray.util import get_current_placement_group

_ROUNDING = 1e-6  # shares such as 0.1 do not add up to 1 in binary


class PlacementError(ValueError):
    """More env runners than the cluster can hold."""


def capacity(resources: dict[str, float], cpus: float, gpus: float) -> int:
    """Return how many env runners fit on a node.

    Args:
        resources: of the node, as Ray counts them.
        cpus: that each needs.
        gpus: that each needs; a share below 1 is of one and the same GPU.
    """
    room = []
    if cpus > 0:
        room.append(int(resources.get("CPU", 0) / cpus + _ROUNDING))
    if gpus > 0:
        whole = int(resources.get("GPU", 0) + _ROUNDING)
        shared = int(1 / gpus + _ROUNDING)
        room.append(whole * shared if gpus < 1 else int(whole / gpus + _ROUNDING))
    return min(room, default=1_000_000)


def check_placement(runners: int, cpus: float, gpus: float, seconds: float = 0) -> None:
    """Raise if the cluster that Ray is connected to cannot place the env runners.

    Args:
        runners: how many.
        cpus: of each.
        gpus: of each.
        seconds: to wait for nodes that are still to come.

    Raises:
        PlacementError: with the arithmetic.
    """
    if get_current_placement_group() is not None:
        return  # room has been set aside for this trial of a sweep
    deadline = time.monotonic() + seconds
    while True:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        room = [capacity(resources, cpus, gpus) for resources in nodes]
        if sum(room) >= runners:
            break
        if time.monotonic() >= deadline:
            raise PlacementError(_arithmetic(runners, cpus, gpus, nodes, room))
        time.sleep(1)
    free = ray.available_resources()
    for kind, each in (("CPU", cpus), ("GPU", gpus)):
        if each * runners > free.get(kind, 0) + _ROUNDING:
            raise PlacementError(
                f"--env-runners {runners} need {runners} x {each:g} = {runners * each:g} "
                f"{kind}s, and {free.get(kind, 0):g} are free: others use the cluster. "
                "Wait for them, or ask for fewer env runners."
            )


def _arithmetic(
    runners: int, cpus: float, gpus: float, nodes: list[dict], room: list[int]
) -> str:
    kinds = [("CPU", cpus), *([("GPU", gpus)] if gpus else [])]
    needs = " and ".join(f"{each:g} {kind}s" for kind, each in kinds)
    have = "; ".join(
        ", ".join(f"{node.get(kind, 0):g} {kind}s" for kind, _ in kinds) + f": {fit}"
        for node, fit in zip(nodes, room, strict=True)
    )
    return (
        f"--env-runners {runners} of {needs} each do not fit: {len(nodes)} node(s) have "
        f"room for {sum(room)} ({have}). Ask for fewer --env-runners, lower "
        "--cpus-per-env-runner or --gpus-per-env-runner, or add nodes."
    )
