"""One process at a time, whatever has become of the one before."""

import json
import signal
import subprocess
import sys
import time

import pytest

from gnnrl_ray.run.lock import LockError, locked
from gnnrl_ray.storage import Storage

HOLD = """
import sys, time
from gnnrl_ray.run.lock import locked
from gnnrl_ray.storage import Storage
with locked(Storage(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock of ``tmp_path``."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "locked\n"
    yield process
    process.kill()
    process.wait()


def test_a_run_is_one_process_s(holder, tmp_path):
    taken = pytest.raises(LockError, match=f"by process {holder.pid} on ")
    with taken, locked(Storage(tmp_path)):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    for _ in range(2):
        with locked(Storage(tmp_path)):
            pass


def test_behind_a_uri_it_is_a_lease():
    storage = Storage("memory://leased")
    taken = pytest.raises(LockError, match="is being worked on by process ")
    with locked(storage), taken, locked(storage):
        pass
    assert not storage.exists("lock.json")
    # One that nobody renews is void; so is one that is damaged.
    for content in (json.dumps({"owner": "x", "renewed": time.time() - 61}), "{", "[]"):
        storage.write("lock.json", content.encode())
        with locked(storage):
            pass


def test_what_was_killed_leaves_nothing_unfinished(tmp_path):
    for name in ("checkpoint.zip.1234.partial", "journal.jsonl"):
        (tmp_path / name).touch()
    with locked(Storage(tmp_path)):
        assert Storage(tmp_path).names() == {"journal.jsonl", "lock"}
