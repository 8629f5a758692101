"""Numbered episodes on env runners that are slow, hang, fail and die.

RLlib's own sampling waits for the slowest runner, drops what comes late, and brings back
dead runners one probe at a time. Here every runner has one episode at a time; who is done
gets the next number; what is lost is run again elsewhere; and nobody waits for anybody.
"""

import heapq
import math
import time
import warnings
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorDiedError, RayError

from gnnrl_ray.errors import EpisodeError, Notice

_PING_SECONDS = 0.5  # between asking a runner that is gone whether it is back
_DEATHS = 10  # answers of Ray that it is dead, until that is believed


@dataclass
class Finished:
    """An episode that is over.

    Attributes:
        number: of the episode.
        result: what the runner returns of it, unless it failed.
        metrics: of the env runner.
        failed: why it was given up.
    """

    number: int
    result: Any = None
    metrics: dict = field(default_factory=dict)
    failed: str | None = None


@dataclass
class _Call:
    """A request to a runner: an episode, or, without a number, a sign of life."""

    runner: int
    number: int | None
    since: float


class Dispatcher:
    """Gives episodes to runners until each has succeeded or failed too often.

    Args:
        runners: actors by their index; none where episodes are run by the caller, who then
            only takes numbers.
        timeout: seconds that an episode may take before its runner is replaced; 0 for any.
        max_retries: how often an episode is run again before it is given up.

    Attributes:
        limit: numbers from here on are not given out.
    """

    limit: float = math.inf

    def __init__(
        self, runners: dict[int, ActorHandle], timeout: float = 0, max_retries: int = 0
    ) -> None:
        self._runners = dict(runners)
        self._timeout = timeout
        self._max_retries = max_retries
        self._next = 0
        self._lost: list[int] = []  # a heap: to be run again
        self._failures: Counter[int] = Counter()
        self._idle: set[int] = set()
        self._calls: dict[ray.ObjectRef, _Call] = {}
        # Runners by the time at which to ask for them; at first, all are still to come.
        self._gone = dict.fromkeys(runners, 0.0)
        self._deaths: Counter[int] = Counter()  # of each runner since it last answered
        self._given_up: list[Finished] = []

    @property
    def idle(self) -> list[int]:
        """Runners that wait for an episode."""
        return sorted(self._idle)

    @property
    def under_way(self) -> list[int]:
        """Numbers of the episodes that are being run."""
        return sorted(c.number for c in self._calls.values() if c.number is not None)

    @property
    def exhausted(self) -> bool:
        """Whether all episodes up to the limit are over."""
        return self.peek() >= self.limit and not self.under_way and not self._given_up

    def status(self) -> dict[int, tuple[str, float]]:
        """Return what each runner does, and for how many seconds it has.

        It is ``idle``, ``restarting`` or at ``episode 7``.
        """
        now = time.monotonic()
        status: dict[int, tuple[str, float]]
        status = dict.fromkeys(self._runners, ("idle", 0.0))
        status |= dict.fromkeys(self._gone, ("restarting", 0.0))
        for call in self._calls.values():
            what = "restarting" if call.number is None else f"episode {call.number}"
            status[call.runner] = (what, now - call.since)
        return status

    def peek(self) -> int:
        """Return the number that is to be run next; lost ones come first."""
        return self._lost[0] if self._lost else self._next

    def take(self) -> int:
        """Return that number, and count it as given out."""
        if self._lost:
            return heapq.heappop(self._lost)
        self._next += 1
        return self._next - 1

    def start(self, runner: int, **request: Any) -> None:
        """Let ``runner`` run the next episode."""
        number = self.take()
        self._idle.remove(runner)
        ref = self._runners[runner].attempt_episode.remote(number, **request)
        self._calls[ref] = _Call(runner, number, time.monotonic())

    def collect(self, seconds: float) -> list[Finished]:
        """Wait so long for the first episode to end; return all that have."""
        self._look_after_runners()
        if not self._calls and not self._given_up:
            time.sleep(min(seconds, _PING_SECONDS) if self._gone else 0)
            return []
        finished = []
        calls = list(self._calls)
        if calls:
            waited = 0 if self._given_up else seconds
            ready, _ = ray.wait(calls, num_returns=1, timeout=waited, fetch_local=False)
            if ready:
                ready, _ = ray.wait(
                    calls, num_returns=len(calls), timeout=0, fetch_local=False
                )
            finished = [f for ref in ready if (f := self._answer(ref)) is not None]
        finished += self._given_up
        self._given_up = []
        return finished

    def _answer(self, ref: ray.ObjectRef) -> Finished | None:
        """Take the answer to a call."""
        call = self._calls.pop(ref)
        try:
            result = ray.get(ref)
        except RayError as error:
            self._lose(call.runner, error)
            self._failed(call.number, _reason(error))
            return None
        self._deaths[call.runner] = 0
        self._idle.add(call.runner)
        if call.number is None:  # it is alive again
            return None
        if result.failed is not None:
            self._failed(call.number, result.failed)
            return None
        return result

    def _lose(self, runner: int, error: RayError) -> None:
        """Ask for ``runner`` again in a while, unless Ray has given it up."""
        self._deaths[runner] += isinstance(error, ActorDiedError)
        if self._deaths[runner] < _DEATHS:
            self._gone[runner] = time.monotonic() + _PING_SECONDS
            return
        del self._runners[runner]
        reason = _reason(error)
        warnings.warn(f"Actor {runner} is gone: {reason}", Notice, stacklevel=2)
        if not self._runners:
            raise EpisodeError(
                f"every env runner has died, the last one thus: {reason}. Run with "
                "0 env runners to see why in this process."
            )

    def _failed(self, number: int | None, reason: str) -> None:
        """Have an episode run again, unless that has been tried too often."""
        if number is None:
            return
        self._failures[number] += 1
        if self._failures[number] > self._max_retries:
            self._given_up.append(Finished(number, failed=reason))
        else:
            heapq.heappush(self._lost, number)

    def _look_after_runners(self) -> None:
        """Replace those that take too long; ask for those that are gone."""
        now = time.monotonic()
        for ref, call in list(self._calls.items()):
            late = self._timeout and now - call.since > self._timeout
            if late and call.number is not None:
                del self._calls[ref]
                # Ray starts it anew, elsewhere if need be.
                ray.kill(self._runners[call.runner], no_restart=False)
                self._gone[call.runner] = now + _PING_SECONDS
                self._failed(call.number, f"not done after {self._timeout:g} s")
        for runner in [r for r, due in self._gone.items() if due <= now]:
            del self._gone[runner]
            ref = self._runners[runner].ping.remote()
            self._calls[ref] = _Call(runner, None, now)

    # Checkpoints.

    def get_state(self) -> dict:
        """Return the numbers; those under way are lost with this process."""
        return {"next": self._next, "lost": sorted([*self._lost, *self.under_way])}

    def set_state(self, state: dict) -> None:
        """Take over what :meth:`get_state` returned."""
        self._next, self._lost = state["next"], list(state["lost"])


def _reason(error: RayError) -> str:
    """Say in a line why a call came to nothing."""
    lines = str(error).strip().splitlines() or [""]
    # The last line of a constructor's traceback; otherwise the first line says it.
    said = lines[-1 if "creation task" in lines[0] else 0]
    return f"the env runner was lost ({type(error).__name__}: {said.strip()})"
