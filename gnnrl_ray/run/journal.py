"""The append-only record of a search: one JSON object a line, synced before it is used."""

import json
import math
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from gnnrl_ray.errors import InputError
from gnnrl_ray.scoring.outcome import Outcome
from gnnrl_ray.storage import storage_of

_SUM = b', "crc32": "'  # of all that stands before it in the line


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
        """Return the record of a line; without a reason to fail it has an outcome.

        Raises:
            ValueError: a field is missing, unknown, of another kind, or cannot be.
        """
        own = {"failed", "actions", "episode"}
        if unknown := fields.keys() - own - Outcome.__dataclass_fields__.keys():
            raise ValueError(f"{unknown.pop()!r} is unknown")
        failed, actions = fields.get("failed"), fields.get("actions")
        if failed is not None and not isinstance(failed, str):
            raise ValueError(f"failed is {failed!r}")
        if actions is not None and not _are_actions(actions):
            raise ValueError("actions are not lists of numbers in [0, 1]")
        outcome = None if failed is not None else Outcome.from_dict(fields)
        return cls(outcome, actions, failed)


@dataclass(frozen=True)
class FinalistRecord:
    """What a candidate scored after more training than others had.

    Attributes:
        finalist: its episode.
        steps: of training.
        accuracy: top-1 on the validation split after them, in [0, 1].
        seconds: that it took.
    """

    finalist: int
    steps: int
    accuracy: float
    seconds: float

    @classmethod
    def from_dict(cls, fields: dict) -> "FinalistRecord":
        """Return the record of a line.

        Raises:
            ValueError: a field is missing, unknown, of another kind, or cannot be.
        """
        if fields.keys() != cls.__dataclass_fields__.keys():
            raise ValueError(f"a finalist has {', '.join(cls.__dataclass_fields__)}")
        for name, least, most, kinds in (
            ("finalist", 0, math.inf, int), ("steps", 1, math.inf, int),
            ("accuracy", 0, 1, int | float), ("seconds", 0, math.inf, int | float),
        ):  # fmt: skip
            value = fields[name]
            number = isinstance(value, kinds) and not isinstance(value, bool)
            if not number or not least <= value <= most or math.isinf(value):
                raise ValueError(f"{name} is {value!r}")
        return cls(**fields)


def _are_actions(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(step, list)
        and all(isinstance(a, int | float) and -1e-6 <= a <= 1 + 1e-6 for a in step)
        for step in value
    )


class Journal:
    """Entries by episode, in memory and in a file.

    Every line ends with a checksum of itself. A last line that was cut short by a crash is
    left out, and overwritten by the next; its episode is run again. Lines of older versions
    have no checksum, and stand before all that have.

    Args:
        path: path or URI of the file; made when the first record is added.

    Raises:
        JournalError: a line before the last is not a record.
    """

    def __init__(self, path: Path | str) -> None:
        self._storage, self._name = storage_of(path)
        self._records: dict[int, EpisodeRecord] = {}
        self._finalists: dict[tuple[int, int], FinalistRecord] = {}
        self._torn: bytes | None = None  # what the file is to be before anything is added
        if self._storage.exists(self._name):
            self._read()

    def _read(self) -> None:
        content = self._storage.read(self._name)
        *lines, last = content.split(b"\n")
        checked = False
        for number, line in enumerate(lines, start=1):
            try:
                checked = self._take(line, checked)
            except ValueError as error:
                raise JournalError(
                    f"{self._storage}/{self._name}:{number} is not an outcome ({error}); "
                    "restore the file, or delete that line and its episode is run again."
                ) from error
        if not last:
            return
        whole = content[: len(content) - len(last)]
        try:
            self._take(last, checked)
        except ValueError:
            if b"\r" in last or b"\0" in last:  # no crash writes such a line
                raise JournalError(
                    f"{self._storage}/{self._name} does not end its lines as it should "
                    "(\\n alone); restore the file."
                ) from None
            self._torn = whole
        else:
            self._torn = content + b"\n"  # it lacks only that

    def _take(self, line: bytes, checked: bool) -> bool:
        """Read a line; returns whether it had a checksum, as it must if ``checked``."""
        text, found, sum_ = line.rpartition(_SUM)
        if found and sum_ != _checksum(text):
            raise ValueError("its checksum is another")
        if checked and not found:
            raise ValueError("it has no checksum")
        fields = json.loads(text + b"}" if found else line, parse_constant=_refuse)
        if not isinstance(fields, dict):
            raise ValueError("it is no object")
        if "finalist" in fields:
            self._take_finalist(FinalistRecord.from_dict(fields))
            return bool(found)
        episode = fields.get("episode")
        if not isinstance(episode, int) or isinstance(episode, bool) or episode < 0:
            raise ValueError(f"episode is {episode!r}")
        record = EpisodeRecord.from_dict(fields)
        if found and episode in self._records:
            raise ValueError(f"episode {episode} is there already")
        self._records.setdefault(episode, record)
        return bool(found)

    def _take_finalist(self, record: FinalistRecord) -> None:
        known = self._records.get(record.finalist)
        if known is None or known.outcome is None:
            raise ValueError(f"episode {record.finalist} has no candidate")
        if (record.finalist, record.steps) in self._finalists:
            raise ValueError(f"finalist {record.finalist} is there already")
        self._finalists[record.finalist, record.steps] = record

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
        self._write({"episode": episode} | record.to_dict())
        self._records[episode] = record

    def append_finalist(self, record: FinalistRecord) -> None:
        """Write what a finalist scored, once for so many steps.

        Raises:
            ValueError: its episode has no candidate.
        """
        if self.finalist(record.finalist, record.steps) is None:
            self._take_finalist(record)
            self._write(asdict(record))

    def _write(self, fields: dict) -> None:
        text = json.dumps(fields, allow_nan=False).encode()[:-1]
        if self._torn is not None:
            self._storage.write(self._name, self._torn)
            self._torn = None
        self._storage.append(self._name, text + _SUM + _checksum(text) + b"\n")

    def finalist(self, episode: int, steps: int) -> FinalistRecord | None:
        """Return what the candidate of ``episode`` scored after ``steps``, or None."""
        return self._finalists.get((episode, steps))

    def best(self) -> tuple[int, Outcome] | None:
        """Return the episode of the highest reward, the first of equals, or None."""
        return max(self, key=lambda item: (item[1].reward, -item[0]), default=None)

    def winner(self) -> tuple[int, Outcome, FinalistRecord | None] | None:
        """Return the episode that wins: of the finalists trained longest, the best.

        Without finalists it is the :meth:`best`. The record is that of the finalist.
        """
        longest = max((steps for _, steps in self._finalists), default=None)
        if longest is None:
            best = self.best()
            return best and (*best, None)
        last = [r for r in self._finalists.values() if r.steps == longest]
        record = max(last, key=lambda r: (r.accuracy, -r.finalist))
        outcome = self._records[record.finalist].outcome
        assert outcome is not None, "finalists have candidates"
        return record.finalist, outcome, record


def _checksum(text: bytes) -> bytes:
    return f'{zlib.crc32(text):08x}"}}'.encode()


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")
