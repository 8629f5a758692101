"""The Ray cluster that a search runs on: one that is there, or one of its own."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray


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
    ray.init(**where, logging_level="error", log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()
