import errno
import os
import resource
import subprocess
import sys

import pytest

from gnnrl_ray.errors import InputError
from gnnrl_ray.storage import Storage


@pytest.fixture(params=["local", "memory", "s3"])
def where(request, tmp_path):
    if request.param == "local":
        return str(tmp_path / "a/run")
    if request.param == "memory":
        return f"memory://{tmp_path.name}/run"
    return f"{request.getfixturevalue('s3')}/{tmp_path.name}/run"


def test_what_is_written_is_read(where):
    folder = Storage(where)
    assert str(folder) == where
    assert not folder.exists()
    assert not folder.exists("a")
    folder.write("a", b"first")
    folder.write("a", b"second")
    assert Storage(where).exists()
    assert Storage(where).exists("a")
    assert Storage(where).read("a") == b"second"


def test_lines_are_added(where):
    for line in (b"one\n", b"two\n"):
        Storage(where).append("log", line)
    assert Storage(where).read("log") == b"one\ntwo\n"


def test_what_is_not_there_is_said(where):
    with pytest.raises(FileNotFoundError):
        Storage(where).read("nothing")


def test_directories_are_copied(where, tmp_path):
    (tmp_path / "events/deeper").mkdir(parents=True)
    (tmp_path / "events/deeper/x").write_bytes(b"x")
    folder = Storage(where)
    for _ in range(2):
        folder.copy(tmp_path / "events", "events")
        assert folder.read("events/deeper/x") == b"x"


def test_files_and_directories_are_moved_and_removed(where, tmp_path):
    folder = Storage(where)
    (tmp_path / "events").mkdir()
    (tmp_path / "events/x").write_text("x")
    folder.write("a", b"x")
    folder.copy(tmp_path / "events", "events")
    for name in ("a", "events", "nothing"):
        folder.move(name, f"aside/{name}")
    assert folder.names() == {"aside"}
    assert folder.read("aside/a") == folder.read("aside/events/x") == b"x"
    folder.move("aside/a", "a")
    for name in ("aside", "nothing"):
        folder.remove(name)
    assert folder.names() == {"a"}


def test_only_local_ones_have_a_path(tmp_path):
    assert Storage(tmp_path).local == tmp_path
    assert Storage("memory://x").local is None


@pytest.mark.parametrize("where", ["nonsense://x", "gs://bucket/x"])
def test_unusable_uris_are_refused(where):
    with pytest.raises(ValueError, match=f"cannot use {where} as a folder: "):
        Storage(where)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_disk_is_named_and_harms_nothing(tmp_path):
    folder = Storage(tmp_path)
    folder.write("a", b"as it was")
    (tmp_path / "log").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left on device: '.*/log'") as caught:
        folder.append("log", b"line\n")
    assert caught.value.errno == errno.ENOSPC

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"File too large: '.*/a'"):
            folder.write("a", bytes(20_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert folder.read("a") == b"as it was"
    assert folder.names() == {"a", "log"}  # nothing half done


_WRITES = """
import sys
from gnnrl_ray.storage import Storage
folder, mine = Storage(sys.argv[1]), sys.argv[2].encode() * 100_000
for _ in range(100):
    folder.write("a", mine)
    found = folder.read("a")
    assert (len(found), len(set(found))) == (100_000, 1), "torn"
"""


def test_many_processes_write_one_file_at_once(tmp_path):
    """Two first searches train and keep the same weights, for one."""
    writers = [
        subprocess.Popen([sys.executable, "-c", _WRITES, tmp_path, letter],
                         stderr=subprocess.PIPE, text=True)
        for letter in "abc"
    ]  # fmt: skip
    for writer in writers:
        assert not writer.wait(60), writer.stderr.read()
    assert Storage(tmp_path).names() == {"a"}
    mask = os.umask(0)
    os.umask(mask)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_folder_is_no_file(tmp_path):
    (tmp_path / "a/b").mkdir(parents=True)
    with pytest.raises(InputError, match="/a is a folder; name a file in it"):
        Storage(tmp_path).write("a", b"x")
    assert Storage(tmp_path).names() == {"a"}


def test_that_it_can_be_written_is_tried_and_leaves_nothing(where, tmp_path):
    Storage(where).check_writable("try another")
    assert not Storage(where).exists()
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    for below in ("file", "file/a", "file/a/b"):
        with pytest.raises(InputError, match=r"file.* \(.*\); try another\."):
            Storage(tmp_path / below).check_writable("try another")
    (tmp_path / "full").mkdir()
    Storage(tmp_path / "full").check_writable("try another")
    assert {path.name for path in tmp_path.iterdir()} == {"file", "full"}
