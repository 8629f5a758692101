"""What all of a process share: torch's settings, what is drawn at random, and threads.

Settings and generators are put aside while ours is done.
"""

import functools
import random
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import ParamSpec, TypeVar

import numpy as np
import torch

from gnnrl_ray.errors import Notice

_Given = ParamSpec("_Given")
_Returned = TypeVar("_Returned")

_PATIENCE = 2.0  # seconds


@contextmanager
def torch_as_it_starts() -> Iterator[None]:
    """Work with torch as a new process has it; what was set comes back at the end.

    That is float32 and the CPU for what is made without saying where, gradients, and no
    autocast. Decorates functions, too.
    """
    dtype = torch.get_default_dtype()
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        if torch.get_default_device().type != "cpu":  # which would slow every call down
            stack.enter_context(torch.device("cpu"))
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)


@contextmanager
def generators_kept() -> Iterator[None]:
    """Keep what Python, NumPy and torch draw next, whatever is seeded meanwhile."""
    python, cpu = random.getstate(), torch.get_rng_state()
    numpy = np.random.get_state()  # noqa: NPY002 - of the process, which others draw from
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_rng_state(cpu)
        for number, state in enumerate(gpus):
            torch.cuda.set_rng_state(state, number)


def taking_turns(function: Callable[_Given, _Returned]) -> Callable[_Given, _Returned]:
    """Let threads that call ``function`` wait for each other; a long wait is said.

    ``torch.fx`` and Ray are of a process, and not of a thread.
    """
    lock = threading.RLock()

    @functools.wraps(function)
    def alone(*args: _Given.args, **kwargs: _Given.kwargs) -> _Returned:
        if not lock.acquire(timeout=_PATIENCE):
            warnings.warn(
                f"{function.__name__} of another thread goes on; this one waits for it. "
                "Processes do not wait for each other.",
                Notice,
                stacklevel=2,
            )
            lock.acquire()
        try:
            return function(*args, **kwargs)
        finally:
            lock.release()

    return alone
