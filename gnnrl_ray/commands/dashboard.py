"""The command ``dashboard``."""

from contextlib import suppress
from functools import partial
from typing import Annotated

import typer

from gnnrl_ray.errors import InputError


def dashboard_command(
    runs: Annotated[
        list[str],
        typer.Argument(help="Run directories, or folders that hold some, now or later."),
    ],
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any.")] = 8266,
) -> None:
    """Look at searches as they go, in a browser on this machine.

    Candidates, the best so far, what each actor does, methods beside each other, learning
    curves, what every group loses, accuracy against cost: the page of `gnnrl-ray report`,
    which follows the journals. It reads and never writes, and listens on 127.0.0.1 alone;
    from elsewhere: ssh -L 8266:127.0.0.1:8266 HOST.
    """
    from gnnrl_ray.commands.report import runs_in
    from gnnrl_ray.display.dashboard import Dashboard

    runs_in(runs)  # or there is nothing to look at
    try:
        server = Dashboard(partial(runs_in, runs), port)
    except OSError as error:
        raise InputError(f"--port {port}: {error.strerror}; name another.") from error
    print(f"{server.url} (Ctrl-C ends it)", flush=True)
    with server, suppress(KeyboardInterrupt):
        server.serve_forever()
