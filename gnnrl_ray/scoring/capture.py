"""The same work on the same memory, again and again: on a GPU, a CUDA graph.

https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs: launching the kernels of a
small network one by one takes a GPU longer than running them.
"""

import warnings
from collections.abc import Callable

import torch

from gnnrl_ray.errors import Notice

_WARM_UP = 3  # calls in which libraries choose their algorithms and take their memory


class Captured:
    """Does what ``function`` does, and on a GPU, after a few calls, without its Python.

    The first calls are as good as the later ones, so that steps of training count from
    the first on. What cannot be captured, because it waits for the GPU, goes on as it is,
    with a warning.

    Args:
        function: reads and writes tensors that stay where they are; returns nothing.
        device: of these tensors; on a CPU, nothing is captured.
    """

    def __init__(self, function: Callable[[], None], device: torch.device) -> None:
        self._run = function
        on_gpu = device.type == "cuda"
        # Of this work alone, and so is the memory that libraries keep for a stream: graphs
        # captured on different ones can be replayed side by side.
        self._stream = torch.cuda.Stream(device) if on_gpu else None
        self._calls_left = _WARM_UP if on_gpu else -1

    def __call__(self) -> None:
        """Do it once."""
        if self._calls_left > 0:
            self._warm_up()
        elif self._calls_left == 0:
            self._run = self._capture()
            self._run()
        else:
            self._run()
        self._calls_left -= 1

    def _warm_up(self) -> None:
        """Run on the stream of the capture."""
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            self._run()
        current.wait_stream(self._stream)

    def _capture(self) -> Callable[[], None]:
        """Record the function without running it."""
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self._stream):
                self._run()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            torch.cuda.synchronize()
            reason = str(error).split("\n")[0]
            warnings.warn(f"no CUDA graph, so slower: {reason}", Notice, stacklevel=3)
            return self._run
        return graph.replay
