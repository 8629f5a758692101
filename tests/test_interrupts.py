import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from gnnrl_ray.interrupts import held

WAIT = """
import time
from gnnrl_ray.interrupts import stop_on_signals
stop_on_signals()
try:
    print("ready", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    print("saved", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_who_asks_to_end_interrupts(number):
    process = subprocess.Popen(
        [sys.executable, "-c", WAIT], stdout=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.communicate(timeout=30)[0] == "saved\n"
    assert process.returncode == 0


def test_what_was_started_to_ignore_it_does():
    process = subprocess.Popen(
        [sys.executable, "-c", WAIT.replace("60", "0.5")], stdout=subprocess.PIPE,
        text=True, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGHUP)
    assert process.communicate(timeout=30)[0] == ""
    assert process.returncode == 0


@pytest.mark.usefixtures("interrupts")
@pytest.mark.parametrize("error", [None, ZeroDivisionError])
def test_what_is_begun_is_done_before_an_interrupt(error):
    done = []

    def work():
        with held():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            done.append(1)
            if error is not None:
                raise error

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_in_other_threads_nothing_is_held():
    def done():
        with held():
            return 1

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(done).result() == 1
