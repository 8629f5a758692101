"""Storage of files by name: a local directory, or any URI that fsspec knows.

https://filesystem-spec.readthedocs.io: ``s3://``, ``gs://``, ``memory://`` and the like,
each with a package of its own.
"""

import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import fsspec
from fsspec.implementations.local import LocalFileSystem

from gnnrl_ray.errors import InputError

PARTIAL = ".partial"  # at the end of what is not whole yet


def storage_of(path: Path | str) -> tuple["Storage", str]:
    """Return where the file at ``path``, or behind a URI, is, and its name there."""
    where, _, name = str(path).rpartition("/")
    return Storage(where or "."), name


class Storage:
    """Writes files whole or not at all, and reads them.

    Args:
        where: path or URI.

    Attributes:
        local: the directory, or None behind a URI.

    Raises:
        InputError: a URI of a kind that is unknown, or whose package is not installed.
    """

    def __init__(self, where: "Storage | Path | str") -> None:
        self._where = str(where)
        try:
            self._files, self._root = fsspec.url_to_fs(self._where)
        except (ValueError, ImportError) as error:
            raise InputError(f"cannot use {self._where} as a folder: {error}") from None
        is_local = isinstance(self._files, LocalFileSystem)
        self.local = Path(self._root) if is_local else None
        if self.local is None:
            try:
                self._files.exists(self._root)
            except Exception as error:  # each kind has its own: no access, no such bucket
                raise InputError(
                    f"cannot use {self._where} as a folder: {error}"
                ) from error

    def __str__(self) -> str:
        return self._where.rstrip("/")

    def path(self, name: str) -> str:
        """Return the path or URI of a file, which holds wherever it is used."""
        return f"{self.local or self}/{name}"

    def exists(self, name: str = "") -> bool:
        """Say whether there is a file called ``name``; by default, whether anything is."""
        self._files.invalidate_cache()  # what others write is to be seen
        if name:
            return self._files.isfile(f"{self._root}/{name}")
        return self._files.exists(self._root) and bool(self._files.ls(self._root, False))

    def names(self) -> set[str]:
        """Return the names of the files and directories in it."""
        self._files.invalidate_cache()
        if not self._files.exists(self._root):
            return set()
        return {Path(path).name for path in self._files.ls(self._root, False)}

    def check_writable(self, remedy: str) -> None:
        """Write an empty file into a local directory, and delete what that took.

        Args:
            remedy: said where that fails.

        Raises:
            InputError: it does.
        """
        if self.local is None:
            return
        missing = [path for path in (self.local, *self.local.parents) if not path.exists()]
        try:
            self.local.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.local).close()
        except OSError as error:
            reason = os.strerror(error.errno or 0)
            raise InputError(f"cannot write to {self} ({reason}); {remedy}.") from error
        finally:
            for path in missing:
                with suppress(OSError):  # not made, or somebody has put something there
                    path.rmdir()

    def read(self, name: str) -> bytes:
        """Return what is in the file.

        Raises:
            FileNotFoundError: there is none.
        """
        return self._files.cat_file(f"{self._root}/{name}")

    def write(self, name: str, content: bytes) -> None:
        """Replace the file: whatever happens, the old one or the new one is there."""
        if self.local is None:
            self._files.pipe_file(f"{self._root}/{name}", content)
            return
        path = self.local / name
        if path.is_dir():
            raise InputError(f"{path} is a folder; name a file in it.")
        with written_whole(path) as file:
            file.write(content)

    def append(self, name: str, content: bytes) -> None:
        """Add to the end of the file; what is behind a URI is written anew."""
        if self.local is None:
            before = self.read(name) if self.exists(name) else b""
            self.write(name, before + content)
            return
        self.local.mkdir(parents=True, exist_ok=True)
        path = self.local / name
        with _named(path), path.open("ab") as file:
            file.write(content)
            _write_through(file)

    def copy(self, directory: Path, name: str) -> None:
        """Copy a local directory to ``name``."""
        self._files.put(f"{directory}/", f"{self._root}/{name}/", recursive=True)

    def move(self, name: str, to: str) -> None:
        """Give a file or directory another name, if there is one of this."""
        if self.local is not None:
            if (self.local / name).exists():
                (self.local / to).parent.mkdir(parents=True, exist_ok=True)
                (self.local / name).replace(self.local / to)
            return
        self._files.invalidate_cache()
        for path in self._files.find(f"{self._root}/{name}"):
            rest = path.rpartition(f"{self._root}/{name}")[2]
            # What every kind can do; few can rename, and old ones not even copy.
            self._files.pipe_file(f"{self._root}/{to}{rest}", self._files.cat_file(path))
        self.remove(name)

    def remove(self, name: str) -> None:
        """Delete a file, or a directory with all that is in it, if there is one."""
        self._files.invalidate_cache()
        if self._files.exists(f"{self._root}/{name}"):
            self._files.rm(f"{self._root}/{name}", recursive=True)


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """Open a file that is at ``path`` once it is whole, and not at all if that fails.

    Of several processes that write one at once, the last has it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}{PARTIAL}")
    try:
        with _named(path), partial.open("xb") as file:
            yield file
            _write_through(file)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _write_through(file: BinaryIO) -> None:
    """See to it that no power failure takes back what was written."""
    file.flush()
    os.fsync(file.fileno())


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Let what is wrong with a file say which."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
