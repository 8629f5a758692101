"""The Ray cluster that a search runs on: one that is there, or one of its own."""

import fcntl
import logging
import os
import shutil
import socket
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants, utils, worker

from gnnrl_ray.errors import GnnrlError, Notice
from gnnrl_ray.interrupts import held, interrupt

_PREFIX = "gnnrl-"  # short: the paths of sockets must be


class RayError(GnnrlError):
    """Ray that does not start, or cannot be reached."""

    exit_code = 1


_LOOK_EVERY = 0.5  # seconds
_VITAL = ("raylet", "gcs_server")
_LOST = (
    "Ray's {} on this machine has ended: killed, or out of memory. What was scored is in "
    "the journal; go on with --resume."
)
_PATIENCE = 10  # seconds, for a port that nobody may be listening on


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

    One of our own listens to this machine alone, and to nobody without its token, which
    Ray keeps in ``~/.ray``.

    Args:
        address: of the cluster; default: the one that this is a job of, else none.
    """
    # It would announce, and advise on, what is meant to be so.
    logging.getLogger("ray.rllib").setLevel(logging.ERROR)
    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS")
    with ExitStack() as stack:
        where: dict[str, Any] = {"address": address or "local"}
        if not address:
            folder = stack.enter_context(_folder())
            where |= {"include_dashboard": False, "_temp_dir": folder}
        stack.callback(ray.shutdown)
        _start(where, address)
        if not address:
            stack.enter_context(_watched())
        yield


def _start(where: dict, address: str | None) -> None:
    """Connect; or start, once more if that fails, as it does on busy machines."""
    attempts = 1 if address else 2
    for attempt in range(1, attempts + 1):
        try:
            _knock(address or "")
            with _own_handlers(), nullcontext() if address else _of_this_machine():
                ray.init(**where, logging_level="error", log_to_driver=False)
            return
        except Exception as error:
            ray.shutdown()
            if attempt == attempts or isinstance(error, ValueError):
                raise RayError(_why(address, error)) from error


def _knock(address: str) -> None:
    """Raise ``OSError`` where ``address`` is HOST:PORT and nobody is there.

    Ray would try for minutes.
    """
    host, colon, port = address.rpartition(":")
    if colon and "/" not in address:
        socket.create_connection((host, int(port)), _PATIENCE).close()


@contextmanager
def _own_handlers() -> Iterator[None]:
    """Keep Ray's handler of SIGTERM out, whose exit is lost where it meets a callback."""
    before = utils.set_sigterm_handler
    utils.set_sigterm_handler = lambda handler: None
    try:
        yield
    finally:
        utils.set_sigterm_handler = before


@contextmanager
def _of_this_machine() -> Iterator[None]:
    """Let what Ray starts listen on the loopback address, and keep its token for the user.

    Half of it would be of no use, so Ctrl-C waits.

    Ray decides between loopback and network by a variable named after the systems whose
    firewalls made it necessary, and has read it when it was imported.
    """
    name = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR
    networks = ray_constants.ENABLE_RAY_CLUSTER
    before = os.environ.get(name)
    os.environ[name], ray_constants.ENABLE_RAY_CLUSTER = "0", False
    try:
        with held():
            yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = networks
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before
        with suppress(OSError):
            (Path.home() / ".ray/auth_token").chmod(0o600)


@contextmanager
def _watched() -> Iterator[None]:
    """Say so if one of Ray's own processes ends, and interrupt: Ray ends us in silence."""
    over, lost = threading.Event(), []

    def watch() -> None:
        node = worker._global_node
        while not (lost or over.wait(_LOOK_EVERY)):
            lost.extend(kind for kind, _ in node.dead_processes() if kind in _VITAL)
        if lost:
            warnings.warn(_LOST.format(lost[0]).split(":")[0] + ".", Notice, stacklevel=1)
            interrupt()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    except KeyboardInterrupt:
        if lost:
            raise RayError(_LOST.format(lost[0])) from None
        raise
    finally:
        over.set()
        watcher.join()


@contextmanager
def _folder() -> Iterator[str]:
    """Make a folder for Ray's sockets and logs; what killed processes left of theirs goes.

    The kernel lets go of a lock when its process ends, however it ends. After an error the
    folder stays, for who wants to look, until the next one is made.
    """
    root = Path(os.environ.get("RAY_TMPDIR", "/tmp"))  # as Ray does
    for lock in root.glob(f"{_PREFIX}*/lock"):
        with suppress(OSError), lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.parent, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=root))
    with (folder / "new").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        (folder / "new").rename(folder / "lock")
        yield str(folder / "r")  # Ray opens its own to everybody
    shutil.rmtree(folder, ignore_errors=True)
