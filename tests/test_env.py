from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from gnnrl_ray import Budget, Data, PruningEnv, accuracy
from gnnrl_ray.errors import InputError
from gnnrl_ray.scoring.objective import Objective


@pytest.fixture
def make(objective):
    def make(**config):
        return PruningEnv({"objective": lambda: objective, **config})

    return make


def test_gymnasium_finds_no_fault(make):
    check_env(make(), skip_render_check=True)


def test_reset_is_the_dense_network(make, objective, groups):
    env = make()
    observation, _ = env.reset(seed=0)
    assert observation in env.observation_space
    env.step(np.full(6, 0.9))
    assert np.array_equal(env.reset()[0], observation)


def test_an_episode_takes_steps_until_the_budget_is_met(make, objective):
    env = make(fit=False)
    env.reset()
    rewards, steps = [], 0
    done = False
    while not done:
        _, reward, done, truncated, info = env.step(np.full(6, 0.1))
        rewards.append(reward)
        steps += 1
        assert not truncated
    outcome = info["outcome"]
    assert steps > 1
    assert rewards[:-1] == [0.0] * (steps - 1)
    assert rewards[-1] == outcome.reward == outcome.accuracy - 1
    # width * 0.9 rounded, step after step, and never a group below one channel
    assert all(w < d for w, d in zip(outcome.widths, objective.groups.widths, strict=True))


def test_fit_uses_the_budget(make, objective, costs, rng):
    env = make()
    for _ in range(20):
        env.reset()
        _, _, done, _, info = env.step(rng.uniform(0.5, 1, 6))
        assert done
        macs = info["outcome"].macs / costs.macs(objective.groups.widths)
        assert 0.45 < macs <= 0.5


def test_without_fit_the_action_is_taken_to_the_letter(make, objective):
    env = make(fit=False)
    env.reset()
    _, _, done, _, info = env.step(np.full(6, 0.75, np.float32))
    assert done
    assert info["outcome"].widths == (4, 4, 8, 8, 16, 16)


def test_widths_never_grow_and_keep_their_floor(make, objective, rng):
    env = make(fit=False, max_steps=3)
    env.reset()
    env.step(np.zeros(6))
    observation, *_ = env.step(np.zeros(6))
    assert np.array_equal(observation, env.reset()[0])
    env.reset()
    _, _, _, _, info = env.step(np.ones(6))
    assert info["outcome"].widths == tuple(objective.budget.min_widths)


def test_timeout_is_scaled_to_the_budget(make, objective):
    env = make(max_steps=2)
    env.reset()
    assert not env.step(np.zeros(6))[2]
    _, reward, done, _, info = env.step(np.zeros(6))
    assert done
    assert objective.budget.meets(np.array(info["outcome"].widths))
    assert reward == info["outcome"].reward


def test_timeout_with_penalty(make):
    env = make(max_steps=1, on_timeout="penalty")
    env.reset()
    _, reward, done, _, info = env.step(np.zeros(6))
    assert done
    assert reward == -1
    assert "outcome" not in info


def test_the_observation_is_the_pruned_networks_graph(make, objective):
    env = make(fit=False)
    dense, _ = env.reset()
    pruned, *_ = env.step(np.full(6, 0.1))
    assert (pruned != dense).any()
    assert pruned in env.observation_space


def test_two_rollouts_are_the_same(network, groups, digits):
    def rollout():
        objective = Objective(network, groups, digits, budget=0.5)
        env = PruningEnv({"objective": lambda: objective})
        env.reset(seed=1)
        env.action_space.seed(1)
        return env.step(env.action_space.sample())[1]

    assert rollout() == rollout()


def test_what_is_known_is_not_scored_again(objective, monkeypatch):
    """Others tell an environment of outcomes when it begins."""
    env = PruningEnv({"objective": lambda: objective})
    env.reset()
    action = np.full(env.action_space.shape, 0.4, np.float32)
    while not (result := env.step(action))[2]:
        pass
    outcome = replace(result[4]["outcome"], accuracy=0.125, reward=-0.875)
    monkeypatch.setattr(Objective, "build", lambda *_: pytest.fail("scored again"))
    objective._known.clear()
    env.reset(options={"outcomes": [outcome]})
    while not (result := env.step(action))[2]:
        pass
    assert result[4]["outcome"] == outcome
    assert result[1] == -0.875


@pytest.mark.parametrize("limits", [{"params": 0.4}, {"flops": 0.7, "activations": 9000}])
def test_any_budget_ends_an_episode(network, groups, digits, rng, limits):
    budget = Budget(groups, limits)
    objective = Objective(network, groups, digits, budget=budget, finetune="none")
    env = PruningEnv({"objective": lambda: objective})
    for _ in range(3):
        env.reset()
        done = False
        while not done:
            _, _, done, _, info = env.step(rng.random(len(groups.widths)))
        widths = np.array(info["outcome"].widths)
        assert budget.meets(widths)
        used = max(u["cost"] / u["allowed"] for u in budget.usage(widths).values())
        assert used > 0.85


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"objective": None}, "needs `objective`, an Objective or a function"),
        ({"max_step": 3}, "no setting of the environment; did you mean max_steps"),
        ({"max_steps": 0}, "max-steps 0 must be at least 1"),
        ({"max_steps": 1.5}, "max-steps 1.5 is not a whole number"),
        ({"fit": "no"}, "fit 'no' is not true or false"),
        ({"on_timeout": "stop"}, "on-timeout 'stop' is not one of 'fit', 'penalty'"),
        ({"levels": 4}, "levels 4 must be less than 4"),
    ],
)
def test_settings_that_cannot_be_are_named(make, config, message):
    with pytest.raises(InputError, match=message):
        make(**config)


@pytest.mark.parametrize(
    "action", [np.zeros(5), np.zeros(7), 0.5, [0.1] * 5 + [np.nan], "x"]
)
def test_actions_that_are_none_are_named(make, action):
    env = make()
    env.reset()
    with pytest.raises(InputError, match="an action is 6 shares"):
        env.step(action)


def test_no_step_is_taken_outside_of_an_episode(make):
    env = make()
    for _ in range(2):
        with pytest.raises(gym.error.ResetNeeded, match="call `reset` first"):
            env.step(np.full(6, 0.9))
        env.reset()
        *_, over, _, _ = env.step(np.full(6, 0.9))
        assert over


def test_it_takes_the_objective_itself_with_loaders_of_ones_own(network, groups, digits):
    """Nobody has chosen how to evaluate: it is right all the same."""
    loaders = [
        list(split.take(torch.arange(60)).batches(20))
        for split in (digits.train, digits.validation)
    ]
    objective = Objective(network, groups, Data.of(*loaders), budget=0.5)
    env = PruningEnv({"objective": objective})
    env.reset()
    *_, info = env.step(np.full(6, 0.9))
    outcome = info["outcome"]
    assert outcome.accuracy == accuracy(objective.build(outcome.widths), loaders[1])


def test_infos_say_what_was_done(make, objective, rng):
    env = make()
    for _ in range(5):
        env.reset()
        widths, over = objective.groups.widths, False
        while not over:
            _, _, over, _, info = env.step(rng.random(6) * 0.4)
            widths = np.rint(widths * (1 - info["done"]))
        assert tuple(widths) == info["outcome"].widths


def test_gymnasium_knows_it_by_name(objective):
    name = "gnnrl_ray.agent.env:gnnrl_ray/Pruning-v0"
    env = gym.make(name, config={"objective": lambda: objective})
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    *_, terminated, _, info = env.step(env.action_space.sample())
    assert terminated is ("outcome" in info)


def test_agents_of_others_act_in_it(make, objective):
    """stable-baselines3: what it checks of an environment, and some episodes of PPO."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_checker import check_env as check

    env, outcomes = make(), []
    check(env)
    step = env.step

    def watched(action):
        *answer, info = step(action)
        if "outcome" in info:
            outcomes.append(info["outcome"])
        return (*answer, info)

    env.step = watched
    agent = PPO("MlpPolicy", env, n_steps=8, batch_size=8, n_epochs=1, device="cpu", seed=0)
    agent.learn(16)
    assert len(outcomes) >= 8
    dense = objective.budget.costs.dense
    assert all(outcome.macs <= 0.5 * dense for outcome in outcomes)
    action, _ = agent.predict(env.reset(seed=1)[0], deterministic=True)
    assert env.action_space.contains(action)
