import time

import pytest
import ray
from ray.util.placement_group import placement_group

from gnnrl_ray.actors.placement import PlacementError, check_placement


@pytest.mark.cluster
def test_what_does_not_fit_is_refused_with_the_arithmetic(cluster):
    cluster(num_cpus=3)
    cluster(num_cpus=2, num_gpus=1)
    ray.init(address=cluster.address, logging_level="error")
    check_placement(5, 1, 0)
    check_placement(2, 1, 0.5)
    with pytest.raises(PlacementError, match=r"4 of 1 CPUs and 0.5 GPUs each do not fit"):
        check_placement(4, 1, 0.5)  # two CPUs are where the GPU is
    # Five CPUs are there, but not so that three pairs can be made.
    with pytest.raises(PlacementError, match=r"3 x 2 = 6 CPUs, the nodes have [23] CPUs; "):
        check_placement(3, 2, 0)
    # Shares of one GPU cannot be taken from two.
    with pytest.raises(PlacementError, match=r"2 x 0.6 = 1.2 GPUs"):
        check_placement(2, 0, 0.6)
    assert placement_group([{"CPU": 2}]).wait(30)
    while ray.available_resources().get("CPU", 0) > 3:
        time.sleep(0.1)
    with pytest.raises(PlacementError, match=r"5 x 1 = 5 CPUs, .* and 3 CPUs are free"):
        check_placement(5, 1, 0)


@pytest.mark.slow
def test_nodes_that_are_to_come_are_waited_for(cluster):
    cluster(num_cpus=1)
    ray.init(address=cluster.address, logging_level="error")
    with pytest.raises(PlacementError):
        check_placement(2, 1, 0, seconds=1)
    cluster(num_cpus=1)
    check_placement(2, 1, 0, seconds=30)
