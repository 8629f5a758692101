"""What a network is worth and costs, as numbers."""

from collections.abc import Sequence

from torch import nn

from gnnrl_ray.data import Data
from gnnrl_ray.pruning.costs import Costs
from gnnrl_ray.scoring.training import accuracy


def measure(
    network: nn.Module, data: Data, costs: Costs, widths: Sequence[int] | None = None
) -> dict[str, float]:
    """Return accuracy in [0, 1] on each split that is not trained on, and costs.

    ``test`` is all test images, ``holdout`` those that no search has seen, where there are
    any; ``macs`` of one image; ``params`` trainable parameters.

    Args:
        network: dense or pruned.
        data: set.
        costs: of the dense network.
        widths: [G], that ``network`` keeps; default: all.
    """
    now = costs.groups.check_widths(costs.groups.widths if widths is None else widths)
    found = {"validation": accuracy(network, data.validation)}
    if data.holdout is not None:
        found["holdout"] = found["test"] = accuracy(network, data.holdout)
    if data.protocol.startswith("test"):  # then the two are the test set
        assert data.test is not None
        share = len(data.validation) / len(data.test)
        found["test"] = share * found["validation"] + (1 - share) * found["holdout"]
    return found | {
        "macs": int(costs.macs(now)),
        "params": int(costs.params(now)),
    }
