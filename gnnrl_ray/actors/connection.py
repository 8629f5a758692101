"""The Ray cluster that a search runs on: one that is there, or one of its own."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from gnnrl_ray.errors import GnnrlError
from gnnrl_ray.interrupts import handlers_kept


class RayError(GnnrlError):
    """Ray that does not start, or cannot be reached."""

    exit_code = 1


def _why(address: str | None, error: Exception) -> str:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    if address:
        return f"--address {address}: no Ray cluster can be reached there: {reason}"
    return (
        f"Ray does not start on this machine: {reason}. It needs some GB of memory and of "
        "/tmp; try again, or with --env-runners 0 and --method random, which do without."
    )


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Connect to a cluster, or make one of this machine for as long as it is needed.

    Args:
        address: of the cluster; default: the one that this is a job of, else none.
    """
    # It would announce, and advise on, what is meant to be so.
    logging.getLogger("ray.rllib").setLevel(logging.ERROR)
    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS")
    where = {"address": address or "local"}
    if not address:
        where["include_dashboard"] = False
    for attempt in (1, 2):
        try:
            with handlers_kept():
                ray.init(**where, logging_level="error", log_to_driver=False)
            break
        except Exception as error:
            ray.shutdown()
            if attempt == 2 or isinstance(error, ValueError):
                raise RayError(_why(address, error)) from error
    try:
        yield
    finally:
        ray.shutdown()
