"""What a process has set in torch and drawn at random, put aside while ours is done."""

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch


@contextmanager
def torch_as_it_starts() -> Iterator[None]:
    """Work with torch as a new process has it; what was set comes back at the end.

    That is float32 and the CPU for what is made without saying where, gradients, and no
    autocast. Decorates functions, too.
    """
    dtype = torch.get_default_dtype()
    with ExitStack() as stack:
        for setting in (
            torch.device("cpu"), torch.inference_mode(False), torch.enable_grad(),
            torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False),
        ):  # fmt: skip
            stack.enter_context(setting)
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
