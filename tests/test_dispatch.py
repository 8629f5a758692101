import time

import pytest
import ray
from helpers.obedient import Obedient

from gnnrl_ray.actors.dispatch import Dispatcher
from gnnrl_ray.errors import EpisodeError

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture
def make():
    made = []

    def make(count, **settings):
        runners = {i: Obedient.remote() for i in range(1, count + 1)}
        made.extend(runners.values())
        episodes = Dispatcher(runners, **settings)
        assert episodes.idle == []
        until_idle(episodes, count)
        return episodes

    yield make
    for runner in made:
        ray.kill(runner)


def until(episodes, count, seconds=30):
    """Collect ``count`` episodes that are over."""
    finished, deadline = [], time.monotonic() + seconds
    while len(finished) < count:
        assert time.monotonic() < deadline, episodes.status()
        finished += episodes.collect(0.1)
    return finished


def until_idle(episodes, count):
    deadline = time.monotonic() + 30
    while len(episodes.idle) < count:
        assert time.monotonic() < deadline, episodes.status()
        episodes.collect(0.1)


def test_numbers_are_given_out_in_order(make):
    episodes = make(2)
    assert episodes.idle == [1, 2]
    for runner in (1, 2):
        episodes.start(runner)
    assert episodes.idle == []
    assert episodes.under_way == [0, 1]
    assert sorted(f.number for f in until(episodes, 2)) == [0, 1]
    assert episodes.peek() == 2


def test_whoever_is_done_is_heard_at_once(make):
    episodes = make(2)
    episodes.start(1, what="hang")
    episodes.start(2)
    start = time.monotonic()
    assert [f.number for f in until(episodes, 1)] == [1]
    assert time.monotonic() - start < 5
    assert episodes.status()[1][0] == "episode 0"
    assert episodes.status()[2][0] == "idle"


def test_what_a_dead_runner_was_at_is_run_again(make):
    episodes = make(1, max_retries=1)
    episodes.start(1, what="die")
    until_idle(episodes, 1)  # it comes back
    assert episodes.peek() == 0
    episodes.start(1)
    assert [(f.number, f.failed) for f in until(episodes, 1)] == [(0, None)]


def test_what_takes_too_long_is_run_again_elsewhere(make):
    episodes = make(2, timeout=0.5, max_retries=1)
    episodes.start(1, what="hang")
    while episodes.peek() != 0:
        episodes.collect(0.1)
    assert episodes.status()[1][0] == "restarting"
    episodes.start(2)
    assert [f.number for f in until(episodes, 1)] == [0]
    until_idle(episodes, 2)


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("raise", "ValueError: no"),
        ("die", "the env runner was lost"),
        ("hang", "not done after 1 s"),
    ],
)
def test_what_fails_too_often_is_given_up(make, what, reason):
    episodes = make(1, timeout=1 if what == "hang" else 0, max_retries=1)
    for _ in range(2):
        until_idle(episodes, 1)
        assert episodes.peek() == 0
        episodes.start(1, what=what)
        finished = []
        while episodes.under_way and not finished:
            finished = episodes.collect(0.1)
    finished = finished or until(episodes, 1)
    assert finished[0].number == 0
    assert reason in finished[0].failed
    assert episodes.peek() == 1


def test_a_limit_exhausts(make):
    episodes = make(1)
    episodes.limit = 1
    assert not episodes.exhausted
    episodes.start(1)
    assert not episodes.exhausted
    until(episodes, 1)
    assert episodes.exhausted


def test_a_restart_of_the_driver_loses_no_number(make):
    before, after = make(2), make(1)
    before.start(1, what="hang")
    before.start(2)
    until(before, 1)
    after.set_state(before.get_state())
    assert [after.take() for _ in range(3)] == [0, 2, 3]


def test_runners_that_never_come_up_are_said():
    broken = {1: Obedient.remote(broken=True), 2: Obedient.remote(broken=True)}
    episodes = Dispatcher(broken)
    with pytest.raises(EpisodeError, match=r"every env runner has died.*no such"):
        until(episodes, 1, 60)


def test_one_that_never_comes_up_holds_up_nobody():
    episodes = Dispatcher({1: Obedient.remote(broken=True), 2: Obedient.remote()})
    until_idle(episodes, 1)
    episodes.start(2)
    assert [f.number for f in until(episodes, 1)] == [0]
    while 1 in episodes.status():
        episodes.collect(0.1)
