"""Searches as they go, on a page that this machine alone can look at.

It only reads: run directories are opened as ``gnnrl-ray report`` opens them, whenever a
journal has grown.
"""

import hashlib
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from gnnrl_ray.display.page import (
    Curve,
    as_table,
    draw_costs,
    draw_curves,
    draw_widths,
    page,
    sheets_of,
)
from gnnrl_ray.display.paper import Sheet
from gnnrl_ray.display.report import budget_used
from gnnrl_ray.errors import GnnrlError
from gnnrl_ray.methods import method_of
from gnnrl_ray.run.directory import Run

_HEADS = ("run", "method", "seed", "candidates", "best", "used", "last candidate")
_ACTOR_HEADS = ("run", "actor", "does", "for", "said")
_FILES = ("journal.jsonl", "best.json", "measures.json")
# Replaces what has changed, and leaves where one has scrolled to.
_SCRIPT = """
let shown = "%s";
const read = async (where) => (await fetch(where)).text();
setInterval(async () => {
  document.getElementById("actors").innerHTML = await read("/actors");
  const state = await read("/state");
  if (state === shown) return;
  const text = await read("/");
  const now = new DOMParser().parseFromString(text, "text/html");
  document.body.innerHTML = now.body.innerHTML;
  shown = state;
}, 2000);
"""


class Dashboard(ThreadingHTTPServer):
    """Serves the page on the loopback address.

    Args:
        find: returns the run directories there are.
        port: to listen on; 0 for any.

    Attributes:
        url: of the page.

    Raises:
        OSError: the port is taken.
    """

    daemon_threads = True

    def __init__(self, find: Callable[[], Sequence[str]], port: int) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/"
        self._find, self._lock = find, threading.Lock()
        self._known: tuple[str, str, str] = ("", "", "")

    def state(self) -> str:
        """Return what changes whenever the page would."""
        digest = hashlib.sha256()
        for folder in self._find():
            for name in _FILES:
                path = Path(folder) / name
                if path.exists():
                    about = path.stat()
                    digest.update(f"{path} {about.st_size} {about.st_mtime_ns}".encode())
        return digest.hexdigest()[:16]

    def actors(self) -> str:
        """Return what the actors of searches do at the moment: a table, or nothing."""
        return _actors(self._find())

    def page(self) -> tuple[str, str]:
        """Return the page as it is now, and the nonce of its script."""
        with self._lock:  # pictures are drawn once for all who look
            state = self.state()
            if self._known[0] != state:
                nonce = secrets.token_urlsafe(16)
                self._known = (state, _drawn(self._find(), state, nonce), nonce)
            return self._known[1:]


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Dashboard)
        # What another site's name leads here is not for that site to read.
        host = self.headers.get("Host", "").rpartition(":")[0]
        if host not in ("127.0.0.1", "localhost"):
            self.send_error(HTTPStatus.FORBIDDEN)
        elif self.path == "/":
            text, nonce = self.server.page()
            self._send(text, "text/html", nonce)
        elif self.path == "/actors":
            self._send(self.server.actors(), "text/html")
        elif self.path == "/state":
            self._send(self.server.state(), "text/plain")
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    def _send(self, text: str, kind: str, nonce: str = "") -> None:
        content = text.encode()
        policy = f"script-src 'nonce-{nonce}'; " if nonce else ""
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header(
            "Content-Security-Policy",
            f"default-src 'none'; {policy}style-src 'unsafe-inline'; connect-src 'self'",
        )
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing of every request."""


def _drawn(folders: Sequence[str], state: str, nonce: str) -> str:
    rows, curves = [], []
    for folder in folders:
        try:
            run = Run.open(folder)
            rows.append(_row(folder, run))
            if run.journal.best() is not None:
                curves.append(Curve.of(run))
        except (GnnrlError, OSError) as error:
            rows.append((folder, str(error), *[""] * (len(_HEADS) - 2)))
    rows.sort(key=lambda row: row[-1] == "done")  # what goes on comes first
    note = "Of searches that go on, too; the page follows them."
    sheets, figures = [Sheet("Searches", _HEADS, rows, note)], {}
    if curves:
        sheets += sheets_of(curves)[1:]  # the first says which runs there are
        figures = draw_curves(curves) | draw_widths(curves) | {"costs": draw_costs(curves)}
    live = f'<section id="actors">{_actors(folders)}</section>\n'
    return page(sheets, figures, (_SCRIPT % state, nonce), live)


def _actors(folders: Sequence[str]) -> str:
    rows = []
    for folder in folders:
        with suppress(GnnrlError, OSError):
            said = Run.open(folder).actors()
            if said is not None:
                ago = f"{max(0.0, time.time() - said[0]):.0f} s ago"
                rows += [(folder, str(actor), what, f"{age:.0f} s" if age else "", ago)
                         for actor, what, age in said[1]]  # fmt: skip
    note = "What was said long ago is of a search that was killed."
    return as_table(Sheet("Actors", _ACTOR_HEADS, rows, note)) if rows else ""


def _row(folder: str, run: Run) -> tuple[str, ...]:
    settings, done = run.settings, len(run.journal)
    total = method_of(settings.method).candidates(settings)
    best, journal = run.journal.best(), Path(folder) / "journal.jsonl"
    about = (folder, settings.manner, str(settings.seed), f"{done} of {total}")
    if best is None:
        return *about, "", "", ""
    ago = time.time() - journal.stat().st_mtime
    last = "done" if done >= total else f"{ago:.0f} s ago"
    return *about, f"{best[1].accuracy:.2%}", budget_used(run.best()), last
