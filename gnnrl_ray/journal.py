"""The append-only record of a search: one JSON object a line, synced before it is used."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gnnrl_ray.folder import Folder
from gnnrl_ray.objective import Outcome


class JournalError(ValueError):
    """A journal that is damaged elsewhere than in its last line."""


@dataclass(frozen=True)
class Entry:
    """What became of one episode.

    Attributes:
        outcome: of its candidate, if it came to one.
        actions: what the agent did, step by step, [T][G]; with it, an episode can be told
            again without scoring anything.
        failed: why it came to no outcome.
    """

    outcome: Outcome | None = None
    actions: list[list[float]] | None = None
    failed: str | None = None

    def to_dict(self) -> dict:
        """Return what is known, ready for JSON."""
        own = {"failed": self.failed, "actions": self.actions}
        scored = self.outcome.to_dict() if self.outcome else {}
        return scored | {name: value for name, value in own.items() if value is not None}

    @classmethod
    def from_dict(cls, fields: dict) -> "Entry":
        """Return the entry of a line; without a reason to fail it has an outcome."""
        failed = fields.get("failed")
        outcome = None if failed is not None else Outcome.from_dict(fields)
        return cls(outcome, fields.get("actions"), failed)


class Journal:
    """Entries by episode, in memory and in a file.

    A last line that was cut short by a crash is dropped; its episode is run again.

    Args:
        path: path or URI of the file; made when the first entry is added.

    Raises:
        JournalError: a line before the last is not an entry.
    """

    def __init__(self, path: Path | str) -> None:
        folder, _, self._name = str(path).rpartition("/")
        self._folder = Folder(folder or ".")
        self._entries: dict[int, Entry] = {}
        if self._folder.exists(self._name):
            self._read()

    def _read(self) -> None:
        content = self._folder.read(self._name)
        end = content.rfind(b"\n") + 1
        if end < len(content):
            self._folder.write(self._name, content[:end])
        for number, line in enumerate(content[:end].splitlines(), start=1):
            try:
                fields = json.loads(line)
                self._entries[fields["episode"]] = Entry.from_dict(fields)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise JournalError(
                    f"{self._folder}/{self._name}:{number} is not an outcome ({error}); "
                    "restore the file, or delete that line and its episode is run again."
                ) from error

    def __len__(self) -> int:
        """Return how many episodes are over, failed ones included."""
        return len(self._entries)

    def __contains__(self, episode: int) -> bool:
        return episode in self._entries

    def __iter__(self) -> Iterator[tuple[int, Outcome]]:
        """Yield (episode, outcome) in the order of episodes."""
        for episode, entry in sorted(self._entries.items()):
            if entry.outcome is not None:
                yield episode, entry.outcome

    def entry(self, episode: int) -> Entry | None:
        """Return what became of ``episode``, or None."""
        return self._entries.get(episode)

    @property
    def failures(self) -> dict[int, str]:
        """Why episodes failed that did."""
        return {e: entry.failed for e, entry in self._entries.items() if entry.failed}

    def append(self, episode: int, entry: Entry | Outcome) -> None:
        """Write what became of ``episode``, once: a second entry is not taken."""
        if episode in self:
            return
        if isinstance(entry, Outcome):
            entry = Entry(entry)
        line = json.dumps({"episode": episode} | entry.to_dict()) + "\n"
        self._folder.append(self._name, line.encode())
        self._entries[episode] = entry

    def best(self) -> tuple[int, Outcome] | None:
        """Return the episode of the highest reward, the first of equals, or None."""
        return max(self, key=lambda item: (item[1].reward, -item[0]), default=None)
