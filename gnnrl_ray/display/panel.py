"""How a search, or training, goes, for people: live on a terminal, lines elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

_LINE_EVERY, _LINE_EVERY_STEPS = 10, 100  # episodes; steps of training


class Panel:
    """Shows a search until it is left.

    Args:
        title: of the search.
        total: how many episodes it has.
        console: where to.
        quiet: show nothing.
    """

    def __init__(
        self, title: str, total: int, console: Console, quiet: bool = False
    ) -> None:
        self._title = title
        self._total = total
        self._console = console
        self._quiet = quiet
        self._done = self._before = self._failed = 0
        self._best: float | None = None
        self._phase = ""  # what comes after episodes, and how far it is
        self._runners: dict[int, tuple[str, float]] = {}
        self._seen = self._start = time.monotonic()
        live = console.is_terminal and not quiet
        self._live = Live(
            get_renderable=self._render, console=console, refresh_per_second=2
        ) if live else None  # fmt: skip

    def __enter__(self) -> "Panel":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._runners = {}
            self._live.stop()

    def begin(self, done: int) -> None:
        """Say how many episodes an earlier session has left behind."""
        self._done = self._before = done
        self._start = time.monotonic()

    def episode(self, done: int, best: float | None) -> None:
        """Take note of an episode that is over.

        Args:
            done: how many are.
            best: accuracy in [0, 1] so far, if there is one.
        """
        self._done, self._best, self._phase = done, best, ""
        due = done % _LINE_EVERY == 0 or done == self._total
        if self._live is None and not self._quiet and due:
            self._console.print(f"{self._title} {self._summary()}", highlight=False)

    def status(self, runners: dict[int, tuple[str, float]], failed: int) -> None:
        """Take note of what each env runner does, for how many seconds, and of failures."""
        self._runners, self._failed = runners, failed
        self._seen = time.monotonic()

    def finalist(self, done: int, total: int, accuracy: float) -> None:
        """Take note of a finalist that has been trained, one of ``total`` trainings."""
        self._enter(f"finalists {done}/{total}, the last {accuracy:.2%}", True)

    def tuning(self, name: str, done: int, total: int, loss: float) -> None:
        """Take note of a step of fine-tuning the winner of ``name``."""
        due = done % _LINE_EVERY_STEPS == 0 or done == total
        self._enter(f"fine-tuning {name} {done}/{total}, loss {loss:.3f}", due)

    def phase(self, what: str) -> None:
        """Take note of what is being done before there are episodes."""
        self._enter(what, False)

    def _enter(self, phase: str, due: bool) -> None:
        self._phase = phase
        if self._live is None and not self._quiet and due:
            self._console.print(f"{self._title} {phase}", highlight=False)

    def _summary(self) -> str:
        seconds = time.monotonic() - self._start
        new = self._done - self._before
        running = sum(what.startswith("episode") for what, _ in self._runners.values())
        parts = [f"{self._done}/{self._total} episodes"]
        parts += [f"{running} running"] if running else []
        parts += [f"{self._failed} failed"] if self._failed else []
        parts += [f"best {self._best:.2%}"] if self._best is not None else []
        if self._phase:
            return ", ".join([*parts, self._phase])
        if new > 0 and seconds > 0:
            left = seconds / new * (self._total - self._done)
            parts += [f"{new / seconds:.3g} per s", f"{_clock(left)} left"]
        return ", ".join(parts)

    def _render(self) -> RenderableType:
        since = _clock(time.monotonic() - self._start)
        heading = Text(f"{self._title}: {self._summary()}, {since} so far")
        bar = ProgressBar(total=self._total, completed=self._done, width=60)
        if not self._runners:
            return Group(heading, bar)
        table = Table(box=None, padding=(0, 2), show_header=False)
        passed = time.monotonic() - self._seen
        columns = max(1, self._console.width // 34)
        cells = [
            f"{runner:>3}  {what}" + (f"  {_clock(age + passed)}" if age else "")
            for runner, (what, age) in sorted(self._runners.items())
        ]
        for start in range(0, len(cells), columns):
            table.add_row(*cells[start : start + columns])
        return Group(heading, bar, table)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


@contextmanager
def progress(
    console: Console, title: str, total: int, every: int
) -> Iterator[Callable[[int, float], None]]:
    """Show a bar on a terminal, else a line every ``every`` steps, once there are any."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"), TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=total, note="", visible=False)

        def advance(done: int, loss: float) -> None:
            note = f"loss {loss:.3f}"
            bar.update(task, completed=done, note=note, visible=True)
            if not console.is_terminal and (done % every == 0 or done == total):
                console.print(f"{title} {done}/{total} {note}")

        yield advance
