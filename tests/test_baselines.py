import numpy as np
import pytest

from gnnrl_ray import PruningEnv
from gnnrl_ray.baselines import rules


def test_uniform_keeps_the_same_share_everywhere(costs, groups):
    widths = rules.uniform(costs, costs.floor(0.0), 0.5, np.random.default_rng(0))
    shares = widths / groups.widths
    assert np.ptp(shares) < 1 / 16 + 1e-9
    assert costs.macs(widths) <= 0.5 * costs.macs(groups.widths)


@pytest.mark.parametrize("budget", [0.3, 0.5, 0.9])
def test_random_meets_the_budget_and_covers_the_space(costs, groups, budget):
    floor = costs.floor(0.1)
    seen = np.array(
        [rules.random(costs, floor, budget, np.random.default_rng(i)) for i in range(200)]
    )
    macs = costs.macs(seen) / costs.macs(groups.widths)
    assert (macs <= budget).all()
    assert (macs > 0.85 * budget).all()
    assert (seen >= floor).all()
    assert (np.ptp(seen, 0) >= 0.5 * groups.widths * (1 - budget)).all()


def test_random_is_the_environment_under_a_random_action(objective, costs):
    action = np.random.default_rng(5).random(6)
    env = PruningEnv({"objective": lambda: objective})
    env.reset()
    _, _, done, _, info = env.step(action)
    assert done
    proposed = rules.random(costs, objective.floor, 0.5, np.random.default_rng(5))
    assert tuple(proposed) == info["outcome"].widths
