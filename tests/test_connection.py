import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
import ray
from helpers.processes import ours
from ray._raylet import AuthenticationMode, get_authentication_mode

from gnnrl_ray.actors.connection import RayError, connected

HELD = """
import sys, time
from gnnrl_ray.actors.connection import connected
with connected(None):
    print("up", flush=True)
    time.sleep(600)
"""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PROCESSES = (
    "raylet",
    "gcs_server",
    "ray::",
    "ray/dashboard",
    "log_monitor.py",
    "monitor.py",
)


@pytest.fixture
def root(monkeypatch):
    """A folder for what Ray writes, with a short name; and no Ray of other tests."""
    ray.shutdown()
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as root:
        monkeypatch.setenv("RAY_TMPDIR", root)
        yield Path(root)


def folders(root):
    return sorted(root.glob("gnnrl-*"))


def test_a_ray_of_ones_own_is_reached_from_this_machine_by_its_user_alone(root):
    before = {process.pid for process in ours(*PROCESSES)}
    handlers = [signal.getsignal(number) for number in SIGNALS]
    with connected(None):
        assert [signal.getsignal(number) for number in SIGNALS] == handlers
        (folder,) = folders(root)
        assert folder.stat().st_mode & 0o077 == 0
        assert list(folder.glob("*/session_*"))
        processes = [p for p in ours(*PROCESSES) if p.pid not in before]
        assert len(processes) > 3
        sockets = [c for p in (*processes, psutil.Process()) for c in p.net_connections()]
        heard = {c.laddr.ip for c in sockets if c.status == psutil.CONN_LISTEN}
        assert heard
        assert all(ip.removeprefix("::ffff:").startswith("127.") for ip in heard)
        assert get_authentication_mode() == AuthenticationMode.TOKEN
        token = Path.home() / ".ray/auth_token"
        assert not token.exists() or token.stat().st_mode & 0o077 == 0
        # What searches in tasks write is as what they write here.
        assert ray.get(ray.remote(lambda: os.umask(0o022)).remote()) == os.umask(0o022)
    assert folders(root) == []


@pytest.mark.usefixtures("interrupts")
def test_an_interrupt_waits_until_it_has_started(root, monkeypatch):
    started = []

    def init(**_):
        signal.raise_signal(signal.SIGINT)
        started.append(1)

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(KeyboardInterrupt), connected(None):
        raise AssertionError
    assert started


@pytest.mark.cluster
def test_what_a_killed_process_left_goes_with_the_next(root):
    held = subprocess.Popen([sys.executable, "-c", HELD], stdout=subprocess.PIPE)
    assert held.stdout.readline() == b"up\n"
    (left,) = folders(root)
    with connected(None):
        assert left in folders(root)  # while it is at work
    held.send_signal(signal.SIGKILL)
    held.wait()
    time.sleep(1)
    assert folders(root) == [left]
    with connected(None):
        assert left not in folders(root)


@pytest.mark.parametrize("address", ["127.0.0.1:9", "127.0.0.1:many", "nowhere.invalid:1"])
def test_an_address_where_nothing_is(root, address):
    wanted = pytest.raises(RayError, match=f"--address {address}: no Ray cluster")
    with wanted, connected(address):
        pass
    assert folders(root) == []


@pytest.mark.cluster
@pytest.mark.parametrize(
    "kind", ["raylet", pytest.param("gcs_server", marks=pytest.mark.slow)]
)
def test_a_part_of_ray_that_dies_is_said_and_interrupts(root, kind):
    """Ray itself would end the process a while later, without a word."""
    held = subprocess.Popen(
        [sys.executable, "-c", HELD], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        # What a shell starts in the background ignores Ctrl-C, and so would this.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert held.stdout.readline() == b"up\n"
    (process,) = [p for p in psutil.Process(held.pid).children() if p.name() == kind]
    process.kill()
    _, said = held.communicate(timeout=60)
    assert held.returncode
    assert f"Ray's {kind} on this machine has ended" in said.decode()
    assert "go on with --resume" in said.decode()
