"""``python -m gnnrl_ray`` is the command ``gnnrl-ray``."""

from gnnrl_ray.cli import main

main()
