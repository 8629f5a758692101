"""Pendulum-v1: the proof that the agent learns where learning is needed.

Trains until the mean return of 10 greedy episodes is above -250, at most for 20,000 steps.

    python tuned_examples/pendulum.py --env-runners 2 --seed 0
"""

import argparse
import json
import time

import gymnasium as gym
import numpy as np
import torch

from gnnrl_ray.agent.ddpg import DDPG, DDPGConfig

GOAL, STEPS, EPISODE = -250.0, 20_000, 200

config = (
    DDPGConfig()
    .environment("Pendulum-v1")
    .training(
        gamma=0.98,
        actor_lr=1e-3,
        critic_lr=1e-3,
        warmup_episodes=5,
        noise=0.2,
        noise_decay=0.99,
        noise_floor=0.02,
        hidden=(256, 256),
        replay_capacity=STEPS,
    )
    .debugging(log_level="ERROR")
)


def greedy_return(algorithm: DDPG, episodes: int = 10) -> float:
    """Return the mean return without noise, from starts that training never saw."""
    env = gym.make("Pendulum-v1")
    returns = []
    for seed in range(episodes):
        observation, _ = env.reset(seed=10_000 + seed)
        total, done = 0.0, False
        while not done:
            action = algorithm.act(observation)
            observation, reward, _, done, _ = env.step(action)
            total += float(reward)
        returns.append(total)
    return float(np.mean(returns))


def run(env_runners: int, seed: int) -> dict:
    """Train and return the steps taken, the last greedy return and the seconds."""
    settings = config.copy(copy_frozen=False).debugging(seed=seed)
    settings.env_runners(num_env_runners=env_runners, num_cpus_per_env_runner=0.5)
    torch.set_num_threads(1)
    algorithm, start, score = settings.build_algo(), time.perf_counter(), -np.inf
    try:
        while score <= GOAL and algorithm.episodes_done * EPISODE < STEPS:
            algorithm.train()
            if algorithm.episodes_done >= 10 and algorithm.episodes_done % 5 == 0:
                score = greedy_return(algorithm)
    finally:
        algorithm.stop()
    assert score > GOAL, f"greedy return {score:.0f} after {STEPS} steps"
    return {
        "env_runners": env_runners,
        "seed": seed,
        "steps": algorithm.episodes_done * EPISODE,
        "greedy_return": round(score, 1),
        "seconds": round(time.perf_counter() - start),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--env-runners", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(json.dumps(run(arguments.env_runners, arguments.seed)))
