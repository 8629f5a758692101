"""Actions of any shape, type and bounds, and spaces that the agent cannot act or see in."""

import gymnasium as gym
import numpy as np
import pytest
import torch

from gnnrl_ray.agent.ddpg import DDPG, DDPGConfig
from gnnrl_ray.agent.spaces import bounds_of, shaped
from gnnrl_ray.errors import InputError

Box = gym.spaces.Box
PLAIN = Box(-1, 1, (3,), np.float32)


class Strict(gym.Env):
    """Takes nothing but actions of its space, and wants to be near 0.3 of each range."""

    def __init__(self, config):
        self.action_space, self.observation_space = config["act"], config["see"]
        self.t = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        space = self.action_space
        missed = (action - space.low) / (space.high - space.low) - 0.3
        self.t += 1
        return (
            self.observation_space.sample(),
            -float(abs(missed).mean()),
            self.t > 3,
            False,
            {},
        )


@pytest.mark.parametrize(
    ("algorithm", "act", "see"),
    [
        ("ddpg", Box(-0.7, 0.1, (2, 2), np.float64), Box(0, 255, (6, 5, 3), np.uint8)),
        ("ddpg", Box(-1, 1, (), np.float32), Box(-np.inf, np.inf, (3,), np.float64)),
        ("sac", Box(np.float32([[0, -5]]), np.float32([[10, 0.1]])), PLAIN),
    ],
)
def test_any_box_is_acted_in(algorithm, act, see):
    settings = (
        DDPGConfig()
        .environment(Strict, env_config={"act": act, "see": see})
        .training(algorithm=algorithm, warmup_episodes=2, hidden=(8,))
        .debugging(seed=1, log_level="ERROR")
    )
    agent = DDPG(settings)
    while agent.episodes_done < 5:
        agent.train()
    action = agent.act(see.sample())
    agent.stop()
    assert act.contains(action)


@pytest.mark.parametrize(
    ("act", "see", "message"),
    [
        (gym.spaces.Discrete(3), PLAIN, "acts in a Box of real numbers, not in Discrete"),
        (Box(0, 5, (2,), np.int64), PLAIN, "acts in a Box of real numbers"),
        (Box(-np.inf, np.inf, (2,)), PLAIN, "two finite bounds"),
        (Box(0.5, 0.5, (2,)), PLAIN, "two finite bounds that differ"),
        (Box(0, 1, (2,)), gym.spaces.Discrete(4), "observations of a Box, not of Discrete"),
        (Box(0, 1, (2,)), gym.spaces.Dict(a=PLAIN), "FlattenObservation"),
    ],
)
def test_spaces_that_it_cannot_act_or_see_in_are_named(act, see, message):
    with pytest.raises(InputError, match=message):
        DDPG(DDPGConfig().environment(Strict, env_config={"act": act, "see": see}))


def test_rounding_leaves_no_action_outside():
    for seed in range(20):
        draw = np.random.default_rng(seed)
        low = draw.normal(size=50)
        space = Box(
            low, low + draw.random(50) + 1e-3, dtype=[np.float32, np.float64][seed % 2]
        )
        least, largest = bounds_of(space, PLAIN)
        for share in (0.0, 1 - 1e-7, 1.0):
            actions = least + (largest - least) * torch.tensor(share)
            (action,) = shaped(actions[None], space).numpy()
            assert space.contains(action)
