import io

import pytest
from rich.console import Console

from gnnrl_ray.display.panel import Panel


def shown(quiet=False, terminal=False):
    """Show 20 episodes of 30; return what was printed."""
    out = io.StringIO()
    console = Console(file=out, width=100, force_terminal=terminal)
    with Panel("gnn-rl on resnet20", 30, console, quiet) as panel:
        panel.begin(5)
        for done in range(6, 21):
            panel.status({1: (f"episode {done}", 3.0), 2: ("restarting", 0.0)}, failed=1)
            panel.episode(done, 0.5 if done > 7 else None)
        rendered = console.render_lines(panel._render())
    text = "\n".join("".join(part.text for part in line) for line in rendered)
    return out.getvalue(), text


def test_lines_where_there_is_no_terminal():
    printed, _ = shown()
    lines = printed.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(
        "gnn-rl on resnet20 10/30 episodes, 1 running, 1 failed, best "
    )
    assert lines[1].startswith(
        "gnn-rl on resnet20 20/30 episodes, 1 running, 1 failed, best "
    )
    assert " per s, 0:00:0" in lines[1]


def test_the_panel_says_what_every_runner_does():
    _, text = shown()
    assert "20/30 episodes" in text
    assert "1  episode 20  0:00:03" in text
    assert "2  restarting" in text


@pytest.mark.parametrize("terminal", [False, True])
def test_quiet_is_quiet(terminal):
    assert shown(quiet=True, terminal=terminal)[0] == ""


def test_a_terminal_gets_the_panel():
    printed, _ = shown(terminal=True)
    assert "20/30 episodes" in printed


def test_what_comes_after_episodes_is_said():
    out = io.StringIO()
    console = Console(file=out, width=100)
    with Panel("compare", 4, console) as panel:
        panel.episode(4, 0.5)
        panel.finalist(1, 6, 0.625)
        for step in range(1, 251):
            panel.tuning("a-b", step, 250, 0.1)
        rendered = console.render_lines(panel._render())
        panel.episode(4, 0.5)
        assert "fine-tuning" not in panel._summary()
    assert out.getvalue().splitlines()[1:4] == [
        "compare finalists 1/6, the last 62.50%",
        "compare fine-tuning a-b 100/250, loss 0.100",
        "compare fine-tuning a-b 200/250, loss 0.100",
    ]
    text = "".join(part.text for line in rendered for part in line)
    assert "4/4 episodes, best 50.00%, fine-tuning a-b 250/250" in text


def test_what_comes_before_episodes_is_said():
    console = Console(file=io.StringIO(), width=100)
    with Panel("gnn-rl on resnet20", 4, console) as panel:
        panel.begin(0)
        panel.phase("starting Ray")
        assert panel._summary() == "0/4 episodes, starting Ray"
        panel.episode(1, 0.5)
        assert "starting" not in panel._summary()
