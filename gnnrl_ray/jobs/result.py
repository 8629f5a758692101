"""What a search returns."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from torch import nn

from gnnrl_ray.display.report import search_figure
from gnnrl_ray.errors import InputError
from gnnrl_ray.run.directory import Run
from gnnrl_ray.run.winner import rebuild
from gnnrl_ray.scoring.outcome import Outcome
from gnnrl_ray.tracing.groups import ChannelGroups
from gnnrl_ray.zoo.weights import save_weights


@dataclass(frozen=True, eq=False)
class Result:
    """What a search has found, and the run directory with all of it.

    Attributes:
        run: the directory.
        best: what the winner scored.
        groups: of the dense network; ``best.widths`` are theirs.
    """

    run: Run
    best: Outcome
    groups: ChannelGroups
    _dense: nn.Module = field(repr=False)

    @cached_property
    def network(self) -> nn.Module:
        """The winner as it was scored, or as it was fine-tuned since; on the CPU.

        A module of the network's own class wherever its code works with fewer channels,
        else a graph that needs torch alone.
        """
        return rebuild(self.run.storage, self._dense, self.groups)

    @cached_property
    def history(self) -> pd.DataFrame:
        """A row for each candidate, in order: what it scored, and the best until then.

        Columns are ``episode``, ``accuracy``, ``best``, ``macs``, ``params``, ``seconds``,
        what a score of one's own returned, and the width of each group by its name.
        """
        rows = [
            {
                "episode": episode, "accuracy": outcome.accuracy, "macs": outcome.macs,
                "params": outcome.params, "seconds": outcome.seconds,
                **(outcome.measured or {}),
                **dict(zip(self.groups.names, outcome.widths, strict=True)),
            }
            for episode, outcome in self.run.journal
        ]  # fmt: skip
        table = pd.DataFrame(rows)
        table.insert(2, "best", table["accuracy"].cummax())
        return table

    def save(self, path: Path | str) -> None:
        """Write the weights of :attr:`network` to ``path`` (.safetensors), whole.

        :func:`gnnrl_ray.load_pruned` builds the network from the run directory.

        Raises:
            InputError: ``path`` ends otherwise, and would be read as something else.
        """
        if Path(path).suffix != ".safetensors":
            raise InputError(
                f"{path} has to end in .safetensors; for other formats there is "
                f"`gnnrl-ray export {self.run.storage}`."
            )
        save_weights(self.network, path)

    def plot(self) -> Figure:
        """Draw accuracy by episode, and what the winner keeps of every group."""
        return search_figure(self.run)
