"""One process at a time works on a run."""

import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from gnnrl_ray.errors import InputError
from gnnrl_ray.storage import PARTIAL, Storage

_FILE = "lock"
_RENEWED, _EXPIRED = 15, 60  # seconds


class LockError(InputError):
    """A run that another process is at work on."""

    exit_code = 1


@contextmanager
def locked(storage: Storage) -> Iterator[None]:
    """Keep other processes from ``storage`` for as long as it is needed.

    In a local directory the kernel keeps the lock, and lets go of it when the process ends,
    however it ends; so it does on file systems that nodes share, as far as these know locks
    (NFS from version 4 on, Lustre, GPFS). Behind a URI, and where there are no locks, it is
    a lease: renewed every 15 seconds, and void after 60 in which it was not. Two processes
    that take a lease in the same second are told apart if the store shows what was written
    last, as S3 and GCS do.

    Raises:
        LockError: another process has it; names the process and its machine.
    """
    me = f"process {os.getpid()} on {socket.gethostname()}"
    if storage.local is None:
        with _lease(storage, me):
            yield
        return
    path = storage.local / _FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise _taken(storage, file.read()) from None
        except OSError:  # no locks on this file system
            with _lease(storage, me):
                yield
            return
        file.truncate(0)
        file.write(me)
        file.flush()
        for left in storage.local.glob(f"*{PARTIAL}"):  # by what was killed
            left.unlink(missing_ok=True)
        yield


def _taken(storage: Storage, who: str) -> LockError:
    return LockError(
        f"{storage} is being worked on by {who or 'another process'}; wait for it, or name "
        "another directory with --out."
    )


@contextmanager
def _lease(storage: Storage, me: str) -> Iterator[None]:
    name, mine = f"{_FILE}.json", f"{me} {uuid.uuid4()}"

    def holder() -> str | None:
        try:
            lease = json.loads(storage.read(name))
            return lease["owner"] if time.time() - lease["renewed"] < _EXPIRED else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def renew() -> None:
        lease = {"owner": mine, "renewed": time.time()}
        storage.write(name, json.dumps(lease).encode())

    if (owner := holder()) is not None:
        raise _taken(storage, owner.rpartition(" ")[0])
    renew()
    time.sleep(0.2)  # another may have seen none either; who wrote last has it
    if (owner := holder()) != mine:
        raise _taken(storage, (owner or "").rpartition(" ")[0])
    over = threading.Event()

    def keep() -> None:
        while not over.wait(_RENEWED):
            renew()

    keeper = threading.Thread(target=keep, daemon=True)
    keeper.start()
    try:
        yield
    finally:
        over.set()
        keeper.join()
        storage.remove(name)
