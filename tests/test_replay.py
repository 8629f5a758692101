import numpy as np
import pytest
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from gnnrl_ray.agent.replay import Replay


def episode(number, length, terminated=True):
    """Observations tell the episode and the step."""
    return SingleAgentEpisode(
        observations=[np.array([number, t], np.float32) for t in range(length + 1)],
        actions=[np.array([10 * number + t], np.float32) for t in range(length)],
        rewards=[float(100 * number + t) for t in range(length)],
        terminated=terminated,
        truncated=not terminated,
        len_lookback_buffer=0,
    )


def test_a_batch_is_made_of_transitions():
    replay = Replay(100, seed=0)
    replay.add([episode(0, 3), episode(1, 2, terminated=False)])
    assert len(replay) == 5
    batch = replay.sample(500)
    number, step = batch[Columns.OBS].T
    assert {(int(n), int(t)) for n, t in batch[Columns.OBS]} == {
        (0, 0), (0, 1), (0, 2), (1, 0), (1, 1),
    }  # fmt: skip
    assert (batch[Columns.ACTIONS][:, 0] == 10 * number + step).all()
    assert (batch[Columns.REWARDS] == 100 * number + step).all()
    goes_on = ~batch[Columns.TERMINATEDS]
    assert (batch[Columns.NEXT_OBS][goes_on, 1] == step[goes_on] + 1).all()
    assert (batch[Columns.NEXT_OBS][goes_on, 0] == number[goes_on]).all()
    assert batch[Columns.REWARDS].dtype == torch.float32
    # Cut off is not ended: what would follow still counts.
    assert (batch[Columns.TERMINATEDS] == ((number == 0) & (step == 2))).all()


def test_drawing_is_uniform():
    replay = Replay(100, seed=0)
    replay.add([episode(i, 2) for i in range(5)])
    drawn = replay.sample(20_000)[Columns.ACTIONS][:, 0].long()
    counts = np.unique(drawn.numpy(), return_counts=True)[1]
    assert len(counts) == 10
    assert np.abs(counts - 2000).max() < 200


def test_batches_drawn_together_are_those_drawn_apart():
    one, other = Replay(100, seed=3), Replay(100, seed=3)
    for replay in (one, other):
        replay.add([episode(i, 3) for i in range(9)])
    together = one.sample(64)[Columns.ACTIONS].flatten().tolist()
    assert together == [
        a for _ in range(4) for a in other.sample(16)[Columns.ACTIONS].flatten().tolist()
    ]


def test_whole_episodes_go_when_there_is_no_room():
    replay = Replay(5, seed=0)
    replay.add([episode(0, 2), episode(1, 2), episode(2, 3)])
    assert len(replay) == 5
    assert set(replay.sample(200)[Columns.OBS][:, 0].tolist()) == {1.0, 2.0}
    replay.add([episode(3, 9)])
    assert len(replay) == 9


@pytest.mark.parametrize("drawn", [0, 7])
def test_state_goes_on_where_it_was(drawn):
    replay = Replay(100, seed=0)
    replay.add([episode(i, 3) for i in range(4)])
    if drawn:
        replay.sample(drawn)
    again = Replay(100, seed=9)
    again.set_state(replay.get_state())
    first, second = replay.sample(32), again.sample(32)
    assert all((first[name] == second[name]).all() for name in first)
    again.add([episode(5, 1)])
    assert len(again) == len(replay) + 1


def test_equal_beginnings_are_kept_once():
    replay = Replay(100, seed=0)
    starts = [np.zeros(2, np.float32), np.zeros(2, np.float32), np.ones(2, np.float32)]
    for start in starts:
        replay.add([SingleAgentEpisode(
            observations=[start, start + 5], actions=[start], rewards=[0.0],
            terminated=True, len_lookback_buffer=0,
        )])  # fmt: skip
    kept = [step[0] for step in replay.get_state()["steps"]]
    assert kept[0] is kept[1]
    assert [k.tolist() for k in kept] == [s.tolist() for s in starts]


def test_in_hindsight_it_remembers_what_was_done_and_what_came_of_it():
    replay = Replay(100, seed=0, hindsight=True)
    outcomes = [-0.2, -0.8, -0.4, -0.1]
    for number, reward in enumerate(outcomes):
        replay.add([SingleAgentEpisode(
            observations=[np.zeros(1, np.float32)] * 3,
            actions=[np.array([0.5], np.float32)] * 2, rewards=[0.0, reward],
            infos=[{}, {"done": np.array([number / 8], np.float32)}, {}],
            terminated=True, len_lookback_buffer=0,
        )])  # fmt: skip
    history = replay.history()
    assert history.ratios[:, 0].tolist() == [0, 0.5, 0.125, 0.5, 0.25, 0.5, 0.375, 0.5]
    assert history.scores.tolist() == np.float32(np.repeat(outcomes, 2)).tolist()
    batch = replay.sample(400)
    scores = {}
    for action, score in zip(batch[Columns.ACTIONS][:, 0], batch[Columns.REWARDS],
                             strict=True):  # fmt: skip
        if action != 0.5:
            scores[round(8 * action.item())] = score.item()
    assert sorted(scores, key=scores.get) == [1, 2, 0, 3]
    assert sum(scores.values()) == pytest.approx(0, abs=1e-6)
    # Half the error is one step, wherever that is.
    steps = np.diff([scores[i] for i in (1, 2, 0, 3)])
    assert steps == pytest.approx(steps[0], rel=1e-5)
    again = Replay(100, seed=5, hindsight=True)
    again.set_state(replay.get_state())
    assert torch.equal(
        again.sample(20)[Columns.REWARDS], replay.sample(20)[Columns.REWARDS]
    )
    assert Replay(100).history() is None
