import time

import pytest
import ray

from gnnrl_ray.placement import PlacementError, capacity, check_placement


@pytest.mark.parametrize(
    ("resources", "cpus", "gpus", "room"),
    [
        ({"CPU": 8}, 1, 0, 8),
        ({"CPU": 8}, 0.5, 0, 16),
        ({"CPU": 8}, 3, 0, 2),
        ({"CPU": 8}, 1, 0.25, 0),
        ({"CPU": 8, "GPU": 1}, 1, 0.25, 4),
        ({"CPU": 2, "GPU": 1}, 1, 0.25, 2),
        # Shares of one GPU cannot be taken from two: 0.4 fits twice on each.
        ({"CPU": 64, "GPU": 4}, 1, 0.4, 8),
        ({"CPU": 64, "GPU": 4}, 1, 0.1, 40),
        ({"CPU": 64, "GPU": 4}, 1, 2, 2),
        ({}, 1, 0, 0),
    ],
)
def test_room_on_a_node(resources, cpus, gpus, room):
    assert capacity(resources, cpus, gpus) == room


def test_what_does_not_fit_is_refused_with_the_arithmetic(cluster):
    cluster(num_cpus=3)
    cluster(num_cpus=2, num_gpus=1)
    ray.init(address=cluster.address, logging_level="error")
    check_placement(5, 1, 0)
    check_placement(2, 1, 0.5)
    with pytest.raises(PlacementError, match=r"--env-runners 4 of 1 CPUs and 0.5 GPUs"):
        check_placement(4, 1, 0.5)
    with pytest.raises(PlacementError, match=r"have room for 2 \([23] CPUs: 1; "):
        check_placement(3, 2, 0)
    taken = ray.remote(num_cpus=2)(lambda: time.sleep(60)).remote()
    while ray.available_resources().get("CPU", 0) > 3:
        time.sleep(0.1)
    with pytest.raises(PlacementError, match="5 x 1 = 5 CPUs, and 3 are free"):
        check_placement(5, 1, 0)
    ray.cancel(taken, force=True)


def test_nodes_that_are_to_come_are_waited_for(cluster):
    cluster(num_cpus=1)
    ray.init(address=cluster.address, logging_level="error")
    with pytest.raises(PlacementError):
        check_placement(2, 1, 0, seconds=1)
    cluster(num_cpus=1)
    check_placement(2, 1, 0, seconds=30)
