import numpy as np
import pytest
from helpers.networks import build

from gnnrl_ray import Budget, Objective, Outcome, trace
from gnnrl_ray.agent.layerwise import LayerwiseEnv


class Counting:
    """An objective that remembers what it was asked."""

    def __init__(self, budget):
        self.budget, self.asked = budget, []

    def remember(self, outcomes):
        pass

    def __call__(self, widths):
        self.asked.append(np.array(widths))
        return Outcome(tuple(widths.tolist()), 1, 1, 0.25, -0.75, 0.0)


def episode(env, actions):
    env.reset()
    for action in actions:
        observation, reward, done, _, info = env.step(np.array([action], np.float32))
        assert env.observation_space.contains(observation)
    assert done
    return reward, info["outcome"]


@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v2", "shufflenet_v1"])
@pytest.mark.parametrize("limits", [{"flops": 0.5}, {"flops": 0.4, "params": 0.3}])
def test_the_wall_meets_the_budget_to_a_channel(name, limits):
    groups = trace(*build(name), check=False)
    rng, budget = np.random.default_rng(0), Budget(groups, limits)
    env = LayerwiseEnv({"objective": lambda: Counting(budget)})
    objective = env.objective
    for number in range(1000 if name == "resnet20" else 60):
        # From policies that drop nothing, which meet the wall late, to those that drop all.
        actions = rng.random(len(groups.widths)) ** rng.choice([0.2, 1, 5])
        if number == 0:
            actions[:] = 0
        episode(env, actions)
        widths = groups.check_widths(objective.asked[-1])
        assert budget.meets(widths)
        assert (widths >= budget.min_widths).all()
        # What the wall cut it would cut with one step less, too: later ones at their least.
        for g, action in enumerate(actions):
            wanted = max(groups.widths[g] * (1 - action), budget.min_widths[g])
            if widths[g] + budget.multiple_of[g] <= wanted:
                wider = widths.copy()
                wider[g + 1 :] = budget.min_widths[g + 1 :]
                wider[g] = min(wider[g] + budget.multiple_of[g], groups.widths[g])
                assert not budget.meets(wider)


def test_features_are_those_of_a_table_by_hand(network, groups, digits):
    objective = Objective(network, groups, digits, budget=0.5, finetune="none")
    env = LayerwiseEnv({"objective": lambda: objective})
    first, _ = env.reset()
    # ResNet-8, its groups: the first stream and inner layer, then those of two more stages.
    names = ["conv1", "layer1.0.conv1", "layer2.0.conv1", "layer2.0.conv2",
             "layer3.0.conv1", "layer3.0.conv2"]  # fmt: skip
    assert list(groups.names) == names
    kernel = 9
    macs = [
        3 * 16 * kernel * 1024 + 16 * 16 * kernel * 1024,  # the stem, and what adds to it
        16 * 16 * kernel * 1024, 16 * 32 * kernel * 256, 32 * 32 * kernel * 256,
        32 * 64 * kernel * 64, 64 * 64 * kernel * 64,
    ]  # fmt: skip
    table = np.array(
        # t, channels out, in, side of the input, its stride
        [[1, 16, 3, 32, 1], [2, 16, 16, 32, 1], [3, 32, 16, 32, 2], [4, 32, 32, 16, 1],
         [5, 64, 32, 16, 2], [6, 64, 64, 8, 1]]
    )  # fmt: skip
    whole = sum(macs) + 64 * 10
    side = table[:, 3:4]
    static = np.hstack([table[:, :3], side, side, table[:, 4:], np.full((6, 1), 3),
                        np.array(macs)[:, None]])  # fmt: skip
    static = static / static.max(0)
    assert first == pytest.approx([*static[0], 0, sum(macs[1:]) / whole, 0])
    second, *_ = env.step(np.array([0.5], np.float32))
    halved = groups.widths.copy()
    halved[0] = 8
    saved = whole - objective.budget.costs.macs(halved)
    wanted = [*static[1], saved / whole, sum(macs[2:]) / whole, 0.5]
    assert second == pytest.approx(wanted, abs=1e-6)


def test_the_reward_is_that_of_the_candidate(network, groups, digits):
    objective = Objective(network, groups, digits, budget=0.5, finetune="none")
    env = LayerwiseEnv({"objective": lambda: objective})
    reward, outcome = episode(env, [0.3] * 6)
    assert reward == outcome.reward == objective(outcome.widths).reward
