"""Warm-up and noise schedules of the agent on ResNet-20, CIFAR-10, half the MACs.

    python tuned_examples/sweep_warmup_noise.py --at-once 2

The same as ``gnnrl-ray sweep tuned_examples/sweep_warmup_noise.toml``: 72 searches; ASHA
stops two thirds of them after the 60th episode.
"""

import argparse
from pathlib import Path

from gnnrl_ray.jobs.sweep import Sweep, over_seeds, run_sweep

sweep = Sweep.read(Path(__file__).with_suffix(".toml"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="sweeps/warmup-noise")
    parser.add_argument("--gpus", type=float, default=0)
    parser.add_argument("--at-once", type=int)
    parser.add_argument("--address")
    parser.add_argument("--resume", action="store_true")
    table = run_sweep(sweep, **vars(parser.parse_args()))
    print(over_seeds(sweep, table).to_string(index=False))


if __name__ == "__main__":
    main()
