"""The append-only record of a search: one JSON object a line, synced before it is used."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gnnrl_ray.errors import InputError
from gnnrl_ray.scoring.outcome import Outcome
from gnnrl_ray.storage import Storage


class JournalError(InputError):
    """A journal that is damaged elsewhere than in its last line."""

    exit_code = 1


@dataclass(frozen=True)
class EpisodeRecord:
    """What became of one episode.

    Attributes:
        outcome: of its candidate, if it came to one.
        actions: what the agent did, step by step, [T][G]; with it, an episode can be
            replayed without scoring anything.
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
    def from_dict(cls, fields: dict) -> "EpisodeRecord":
        """Return the record of a line; without a reason to fail it has an outcome."""
        failed = fields.get("failed")
        outcome = None if failed is not None else Outcome.from_dict(fields)
        return cls(outcome, fields.get("actions"), failed)


class Journal:
    """Entries by episode, in memory and in a file.

    A last line that was cut short by a crash is dropped; its episode is run again.

    Args:
        path: path or URI of the file; made when the first record is added.

    Raises:
        JournalError: a line before the last is not a record.
    """

    def __init__(self, path: Path | str) -> None:
        folder, _, self._name = str(path).rpartition("/")
        self._storage = Storage(folder or ".")
        self._records: dict[int, EpisodeRecord] = {}
        if self._storage.exists(self._name):
            self._read()

    def _read(self) -> None:
        content = self._storage.read(self._name)
        end = content.rfind(b"\n") + 1
        if end < len(content):
            self._storage.write(self._name, content[:end])
        for number, line in enumerate(content[:end].splitlines(), start=1):
            try:
                fields = json.loads(line)
                self._records[fields["episode"]] = EpisodeRecord.from_dict(fields)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise JournalError(
                    f"{self._storage}/{self._name}:{number} is not an outcome ({error}); "
                    "restore the file, or delete that line and its episode is run again."
                ) from error

    def __len__(self) -> int:
        """Return how many episodes are over, failed ones included."""
        return len(self._records)

    def __contains__(self, episode: int) -> bool:
        return episode in self._records

    def __iter__(self) -> Iterator[tuple[int, Outcome]]:
        """Yield (episode, outcome) in the order of episodes."""
        for episode, record in sorted(self._records.items()):
            if record.outcome is not None:
                yield episode, record.outcome

    def record(self, episode: int) -> EpisodeRecord | None:
        """Return what became of ``episode``, or None."""
        return self._records.get(episode)

    @property
    def failures(self) -> dict[int, str]:
        """Why episodes failed that did."""
        return {e: record.failed for e, record in self._records.items() if record.failed}

    def append(self, episode: int, record: EpisodeRecord | Outcome) -> None:
        """Write what became of ``episode``, once: a second record is not taken."""
        if episode in self:
            return
        if isinstance(record, Outcome):
            record = EpisodeRecord(record)
        line = json.dumps({"episode": episode} | record.to_dict()) + "\n"
        self._storage.append(self._name, line.encode())
        self._records[episode] = record

    def best(self) -> tuple[int, Outcome] | None:
        """Return the episode of the highest reward, the first of equals, or None."""
        return max(self, key=lambda item: (item[1].reward, -item[0]), default=None)
