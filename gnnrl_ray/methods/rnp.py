"""The method ``rnp``."""

from collections.abc import Sequence

import numpy as np

from gnnrl_ray.methods.proposer import Proposer
from gnnrl_ray.scoring.outcome import Outcome

_PARTS = 4  # a group keeps 1 .. 4 quarters of its channels
_RATE, _SWEEPS = 0.2, 5  # of learning; how often the history is gone through
_RANDOM, _LEAST = 30, 0.1  # candidates until chance is at its least, and that


class RNP(Proposer):
    """Runtime neural pruning (Lin et al., NeurIPS 2017), deployed statically.

    Q-learning goes through the network and decides how many quarters of each group stay.
    The original decides anew for each image, from its features; a network that is smaller
    has to decide once, so the state is the group, and what was decided for the one before
    it. The budget takes the place of the original's penalty on what is kept.
    """

    def propose(  # noqa: D102
        self, history: Sequence[Outcome], generator: np.random.Generator
    ) -> np.ndarray:
        table = self._learnt(history)
        chance = max(_LEAST, 1 - len(history) / _RANDOM)
        kept, before = np.empty(len(table)), _PARTS - 1
        for g, values in enumerate(table):
            worth = values[before]
            before = int(generator.choice(np.flatnonzero(worth == worth.max())))
            if generator.random() < chance:
                before = int(generator.integers(_PARTS))
            kept[g] = (before + 1) / _PARTS
        return self.budget.reach(1 - kept)

    def _learnt(self, history: Sequence[Outcome]) -> np.ndarray:
        """Return Q [G, quarters of the group before, quarters], from all candidates."""
        table = np.zeros((len(self.budget.groups.widths), _PARTS, _PARTS))
        chosen = np.clip(np.ceil((1 - self.ratios(history)) * _PARTS - 0.5), 1, _PARTS)
        chosen = chosen.astype(int) - 1
        for _ in range(_SWEEPS):
            for outcome, actions in zip(history, chosen, strict=True):
                value = outcome.accuracy
                before = np.concatenate([[_PARTS - 1], actions[:-1]])
                for g in reversed(range(len(actions))):
                    place = g, before[g], actions[g]
                    table[place] += _RATE * (value - table[place])
                    value = table[g, before[g]].max()
        return table
