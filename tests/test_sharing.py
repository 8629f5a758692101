import pytest
import ray

from gnnrl_ray.actors.sharing import SharedObjective
from gnnrl_ray.errors import InputError


def test_what_cannot_be_sent_is_said_with_a_remedy(objective, tmp_path, monkeypatch):
    monkeypatch.setattr(ray, "put", ray.cloudpickle.dumps)  # what it does first
    SharedObjective(objective, remote=True)
    with (tmp_path / "log").open("w") as file:
        objective.log = file
        with pytest.raises(InputError, match=r"Error: .*file.*--env-runners 0"):
            SharedObjective(objective, remote=True)

    def full(value):
        raise ray.exceptions.ObjectStoreFullError("full")

    monkeypatch.setattr(ray, "put", full)
    with pytest.raises(ray.exceptions.ObjectStoreFullError):
        SharedObjective(objective, remote=True)
