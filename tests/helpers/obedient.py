"""An env runner that does as it is told, and imports nothing that takes long."""

import os
import time
from types import SimpleNamespace

import ray


@ray.remote(num_cpus=0, max_restarts=-1)
class Obedient:
    def __init__(self, broken=False):
        if broken:
            raise ValueError("no such thing")

    def ping(self):
        return "pong"

    def attempt_episode(self, number, what="go"):
        if what == "die":
            os._exit(1)
        if what == "hang":
            time.sleep(1000)
        failed = "ValueError: no" if what == "raise" else None
        return SimpleNamespace(number=number, episodes=[], metrics={}, failed=failed)
