"""The append-only record of a search: one JSON object a line, synced before it is used."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

from gnnrl_ray.objective import Outcome


class JournalError(ValueError):
    """A journal that is damaged elsewhere than in its last line."""


class Journal:
    """Outcomes by episode, in memory and on disk.

    A last line that was cut short by a crash is dropped; its episode is run again.

    Args:
        path: of the file; made when the first outcome is added.

    Raises:
        JournalError: a line before the last is not an outcome.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._outcomes: dict[int, Outcome] = {}
        if path.is_file():
            self._read()

    def _read(self) -> None:
        content = self._path.read_bytes()
        end = content.rfind(b"\n") + 1
        if end < len(content):
            with self._path.open("r+b") as file:
                file.truncate(end)
        for number, line in enumerate(content[:end].splitlines(), start=1):
            try:
                entry = json.loads(line)
                self._outcomes[entry["episode"]] = Outcome.from_dict(entry)
            except (ValueError, KeyError, TypeError) as error:
                raise JournalError(
                    f"{self._path}:{number} is not an outcome ({error}); restore the "
                    "file, or delete that line and its episode is run again."
                ) from error

    def __len__(self) -> int:
        return len(self._outcomes)

    def __contains__(self, episode: int) -> bool:
        return episode in self._outcomes

    def __iter__(self) -> Iterator[tuple[int, Outcome]]:
        """Yield (episode, outcome) in the order of episodes."""
        yield from sorted(self._outcomes.items(), key=lambda item: item[0])

    def append(self, episode: int, outcome: Outcome) -> None:
        """Write the outcome of ``episode``, once: a second one is not taken."""
        if episode in self:
            return
        line = json.dumps({"episode": episode} | outcome.to_dict()) + "\n"
        with self._path.open("a") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self._outcomes[episode] = outcome

    def best(self) -> tuple[int, Outcome] | None:
        """Return the episode of the highest reward, the first of equals, or None."""
        if not self._outcomes:
            return None
        return max(self, key=lambda item: (item[1].reward, -item[0]))
