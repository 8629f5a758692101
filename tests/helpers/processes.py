"""The processes that this run of the tests has started, and no others of the machine."""

import os

import psutil

# Every process inherits it from the one that started it.
MARK = "GNNRL_TESTS"


def mark():
    """Mark this process, and with it all that it starts from now on."""
    os.environ[MARK] = str(os.getpid())


def ours(*words):
    """Return our processes with one of ``words`` in their command line."""
    found, own = [], os.environ[MARK]
    for process in psutil.process_iter(["cmdline", "status"]):
        command = " ".join(process.info["cmdline"] or [])
        if process.info["status"] == psutil.STATUS_ZOMBIE or process.pid == os.getpid():
            continue
        try:
            named = any(word in command for word in words)
            if named and process.environ().get(MARK) == own:
                found.append(process)
        except psutil.Error:  # it is over, or somebody else's
            continue
    return found


def env_runners():
    """Return our env runners."""
    return ours("DDPGEnvRunner")


def ray_processes():
    """Return the numbers of all our processes of Ray."""
    names = ("raylet", "gcs_server", "ray::", "default_worker.py")
    return {process.pid for process in ours(*names)}
