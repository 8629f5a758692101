"""The page of searches that go on, as a browser and a stranger see it."""

import http.client
import shutil
import subprocess
import sys
import threading
import urllib.request

import numpy as np
import pytest
from helpers.browser import CHROMIUM
from test_page import Page, runs  # noqa: F401

from gnnrl_ray import Outcome
from gnnrl_ray.commands.report import runs_in
from gnnrl_ray.display.dashboard import Dashboard
from gnnrl_ray.run.directory import Run


@pytest.fixture
def served(runs, tmp_path):  # noqa: F811
    """A dashboard of runs of its own; returns it and their folder."""
    root = tmp_path / "runs"
    shutil.copytree(runs, root)
    with Dashboard(lambda: runs_in([str(root)]), 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server, root
        server.shutdown()
        thread.join()


def read(server, path=""):
    with urllib.request.urlopen(server.url + path, timeout=60) as answer:
        return answer.read().decode()


def score(folder, accuracy):
    """Let a search come to one more candidate."""
    run = Run.open(folder)
    number, last = len(run.journal), run.journal.best()[1]
    run.journal.append(number, Outcome(last.widths, last.macs, last.params, accuracy,
                                       accuracy - 1, 1.0))  # fmt: skip


def test_it_shows_every_run_and_fetches_from_nowhere_else(served):
    server, root = served
    shown = Page()
    shown.feed(read(server))
    assert [what for what in shown.fetched if what != "script"] == []
    assert "6 searches" in shown.texts
    for folder in root.iterdir():
        assert str(folder) in shown.texts
    assert "3 of 180" in shown.texts
    assert "71.00%" in shown.texts


def test_what_goes_on_comes_first(served):
    server, root = served
    (root / "uniform-0").rename(root / "a-rule")
    shown = Page()
    shown.feed(read(server))
    places = [shown.texts.index(str(root / name)) for name in ("turbo-1", "a-rule")]
    assert places == sorted(places)


def test_it_follows_the_journals(served):
    server, root = served
    before, state = read(server), read(server, "state")
    assert read(server, "state") == state
    score(root / "random-0", 0.8765)
    assert read(server, "state") != state
    after = read(server)
    assert "87.65%" in after
    assert "87.65%" not in before
    assert "4 of 180" in after
    # A search that begins, and one that is no more.
    shutil.copytree(root / "turbo-0", root / "turbo-7")
    assert "7 searches" in read(server)
    shutil.rmtree(root / "turbo-7")
    assert "6 searches" in read(server)


def test_what_cannot_be_read_is_said_and_the_others_are_shown(served):
    server, root = served
    (root / "turbo-1/run.json").write_text("{")
    shown = Page()
    shown.feed(read(server))
    assert "6 searches" in shown.texts
    assert any("turbo-1" in text and "run.json" in text for text in shown.texts)
    assert "50.00%" in shown.texts


def test_it_writes_nothing(served):
    server, root = served
    (root / "random-1/journal.jsonl").open("a").write(
        '{"episode": 3, "wid'
    )  # being written
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    read(server)
    assert {p: p.read_bytes() for p in root.rglob("*") if p.is_file()} == before


def test_it_says_what_actors_do(served):
    server, root = served
    assert read(server, "actors") == ""
    state = read(server, "state")
    Run.open(root / "turbo-1").report_actors({1: ("episode 4", 2.6), 2: ("idle", 0.0)})
    (root / "random-1/actors.json").write_text('{"time": 0, "actors": [[1, "<b>", "x"]]}')
    for path in ("actors", ""):
        shown = Page()
        shown.feed(read(server, path))
        assert shown.texts.count(str(root / "turbo-1")) == (2 if path == "actors" else 3)
    # Pictures are not drawn again for it.
    assert read(server, "state") == state
    (root / "turbo-1/actors.json").write_text('{"time": 0, "actors": [[1, "<script>", 5]]}')
    assert "&lt;script&gt;" in read(server, "actors")
    Run.open(root / "turbo-1").report_actors({})
    assert read(server, "actors") == ""


@pytest.mark.parametrize(
    ("method", "path", "host", "status"),
    [("GET", "/", "evil.example", 403), ("GET", "/state", "evil.example:80", 403),
     ("GET", "/", "localhost", 200), ("GET", "/../../etc/passwd", None, 404),
     ("GET", "/run.json", None, 404), ("POST", "/", None, 501), ("DELETE", "/", None, 501)],
)  # fmt: skip
def test_strangers_learn_nothing(served, method, path, host, status):
    server, _ = served
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    address = f":{server.server_port}"
    name = host if host and ":" in host else (host or "127.0.0.1") + address
    connection.request(method, path, headers={"Host": name})
    assert connection.getresponse().status == status
    connection.close()


def test_it_listens_on_this_machine_alone(served):
    server, _ = served
    assert server.server_address[0] == "127.0.0.1"


def test_the_command_says_where_and_what_is_in_the_way(served, tmp_path):
    server, root = served
    words = [sys.executable, "-m", "gnnrl_ray", "dashboard"]

    def said(*more):
        done = subprocess.run([*words, *map(str, more)], capture_output=True, text=True)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        return done.stderr

    assert "name another" in said(root, "--port", server.server_port)
    assert "nowhere" in said(tmp_path / "nowhere")


@pytest.mark.cluster
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_a_browser_sees_a_search_go_on(served, tmp_path):
    """The page is loaded once; what is scored afterwards comes to it by itself."""
    server, root = served
    stopped, asked, page = threading.Event(), [], server.page

    def counted():
        asked.append(len(Run.open(root / "random-0").journal))
        return page()

    def go_on():
        for accuracy in np.linspace(0.8, 0.9, 200):
            if stopped.wait(0.5):
                return
            score(root / "random-0", float(accuracy))

    server.page = counted
    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        shown = subprocess.run(
            [*CHROMIUM, f"--user-data-dir={tmp_path / 'profile'}",
             "--window-size=1200,3000", "--virtual-time-budget=12000",
             f"--screenshot={tmp_path / 'page.png'}", "--dump-dom", server.url],
            capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip
    finally:
        stopped.set()
        thread.join()
    assert "6 searches" in shown.stdout
    done = [int(n.split()[0]) for n in _texts(shown.stdout) if n.endswith(" of 180")]
    assert len(asked) > 1
    assert max(done) > asked[0] + 1
    assert (tmp_path / "page.png").stat().st_size > 20_000


def _texts(text):
    shown = Page()
    shown.feed(text)
    return shown.texts
