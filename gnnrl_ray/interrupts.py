"""Signals that ask a process to end, taken as Ctrl-C is: what there is has been saved."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# What cluster managers, and sessions that are lost, send.
_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


def stop_on_signals() -> None:
    """Let these signals interrupt the program, unless it was started to ignore them."""
    for number in _SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)


def interrupt() -> None:
    """Interrupt the main thread, from another one.

    What a shell starts in the background ignores Ctrl-C: any signal that is taken will do.
    """
    for number in (signal.SIGINT, *_SIGNALS):
        if callable(signal.getsignal(number)):
            signal.pthread_kill(threading.main_thread().ident, number)
            return


@contextmanager
def held() -> Iterator[None]:
    """Let what would interrupt the main thread wait until this is left.

    What is begun within is then done as a whole.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[tuple[int, FrameType | None]] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, *_SIGNALS)}
    taken = {number: handler for number, handler in before.items() if callable(handler)}
    try:
        for number in taken:
            signal.signal(number, lambda *given: came.append(given))
        yield
    finally:
        for number, handler in taken.items():
            signal.signal(number, handler)
        for number, frame in came[:1]:
            taken[number](number, frame)
