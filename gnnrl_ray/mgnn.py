"""The multi-stage GNN (GNN-RL section 3.2) with the actor and critic on top of it.

Axis letters: B batch, G actions, N nodes and E edges of one graph, F features,
D embedding dimension, M graphs of one level, S distinct states.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch_geometric.nn import MessagePassing

from gnnrl_ray.graph import Motif


class MotifConv(MessagePassing):
    r"""Edge-featured message passing, GNN-RL Eq. 4.

    .. math:: h_i' = \\sum_{j \\in N_i} \\frac{1}{c_i} W (h_j \\circ e_{ij})

    with :math:`c_i = |N_i|`.

    **Shapes:** node states [S, N, D]; edge index [2, E]; edge states [S, E, D]; output
    [S, N, D].
    """

    def __init__(self, dim: int) -> None:
        super().__init__(aggr="mean", node_dim=-2)
        self.weight = nn.Linear(dim, dim, bias=False)

    def forward(self, h: Tensor, edge_index: Tensor, e: Tensor) -> Tensor:
        """Return the next node states."""
        return self.weight(self.propagate(edge_index, h=h, e=e))

    def message(self, h_j: Tensor, e: Tensor) -> Tensor:
        """``h_j o e_ij``; W is linear, so it can wait until after the sum."""
        return h_j * e


class LevelEncoder(nn.Module):
    """``EncoderGNN_t`` of Eq. 1: embeds every graph of one level.

    Graphs of the level share W; each has pooling weights alpha of its own (Eq. 5), one
    for each node.

    Args:
        motifs: the graphs of the level.
        features: F, of what the edges are at the level below.
        dim: D.
        layers: rounds of message passing.
    """

    def __init__(
        self, motifs: Sequence[Motif], features: int, dim: int, layers: int
    ) -> None:
        super().__init__()
        self.project = nn.Linear(features, dim)
        self.convolutions = nn.ModuleList(MotifConv(dim) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)
        self.alpha = nn.ParameterList(
            torch.full((motif.nodes,), 1 / motif.nodes) for motif in motifs
        )
        for i, motif in enumerate(motifs):
            # Neighbours are those before and behind: information flows both ways.
            both = np.concatenate([motif.edges, motif.edges[::-1]], 1)
            self._constant(f"edges{i}", both)
            self._constant(f"children{i}", motif.children)

    def _constant(self, name: str, value: np.ndarray) -> None:
        # Not saved: target networks average every entry of the state dict.
        self.register_buffer(name, torch.tensor(value), persistent=False)

    def embed(self, motif: int, edges: Tensor) -> Tensor:
        """Embed S states of one motif: edge states [S, E, F] -> [S, D]."""
        e = self.project(edges)
        e = torch.cat([e, e], -2)
        alpha = self.alpha[motif]
        h = e.new_ones(len(e), len(alpha), e.shape[-1])
        for convolution in self.convolutions:
            h = torch.relu(convolution(h, self.get_buffer(f"edges{motif}"), e))
        return self.norm(torch.einsum("n,snd->sd", alpha, h))

    def forward(self, states: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        """Embed all graphs of the level, each distinct state once.

        Args:
            states: [S, F], distinct states of the level below.
            which: int64 [B, M_below], the state of each of its graphs.

        Returns:
            The same for this level: [S', D] and int64 [B, M].
        """
        embedded, index, start = [], [], 0
        for i in range(len(self.alpha)):
            children = which[:, self.get_buffer(f"children{i}")]  # [B, I, E]
            rows, inverse = distinct(children.flatten(0, 1))
            embedded.append(self.embed(i, states[children.flatten(0, 1)[rows]]))
            index.append(start + inverse.view(children.shape[:2]))
            start += len(rows)
        return torch.cat(embedded), torch.cat(index, 1)


def distinct(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Find the distinct rows of ``rows`` [R, K], int64 or float32.

    Returns:
        int64 [S], a row for each distinct one, and int64 [R], which of them each row is.
    """
    bits = rows.contiguous().view(torch.int32) if rows.is_floating_point() else rows
    # A 64-bit fingerprint sorts far faster than rows do.
    generator = torch.Generator().manual_seed(0)
    mix = torch.randint(-(2**62), 2**62, (rows.shape[1],), generator=generator)
    fingerprint = (bits.long() * (2 * mix + 1).to(rows.device)).sum(1)
    values, inverse = fingerprint.unique(return_inverse=True)
    first = torch.empty_like(values)
    first[inverse] = torch.arange(len(rows), device=rows.device)
    return first, inverse


class GraphEncoder(nn.Module):
    """The m-GNN: features of primitive edges -> embedding g of the network (Eqs. 1, 2, 6).

    Args:
        levels: of a :class:`~gnnrl_ray.graph.HierarchicalGraph`.
        features: F of the primitive edges.
        dim: D.
        layers: rounds of message passing at each level.
    """

    def __init__(
        self,
        levels: Sequence[Sequence[Motif]],
        features: int,
        dim: int = 64,
        layers: int = 2,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.stages = nn.ModuleList(
            LevelEncoder(motifs, features if t == 0 else dim, dim, layers)
            for t, motifs in enumerate(levels)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Map ``features`` float32 [B, E, F] to g [B, D]."""
        batch, edges, width = features.shape
        rows, which = distinct(features.reshape(-1, width))
        states, which = features.reshape(-1, width)[rows], which.view(batch, edges)
        for stage in self.stages:
            states, which = stage(states, which)
        return states[which[:, 0]]


class VectorEncoder(nn.Module):
    """Observations that are plain vectors stand for themselves.

    Args:
        dim: D, length of an observation.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, features: Tensor) -> Tensor:
        """Map ``features`` float32 [B, ...] to [B, D]."""
        return features.flatten(1)


class Actor(nn.Module):
    """Observation -> action, Eq. 7 with a sigmoid onto [low, high].

    Args:
        encoder: with ``dim``, the length of its embedding.
        low: float32 [G].
        high: float32 [G].
        hidden: widths of the hidden layers.
    """

    def __init__(
        self, encoder: nn.Module, low: Tensor, high: Tensor, hidden: Sequence[int]
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.mlp = _mlp(encoder.dim, hidden, len(low))
        self.register_buffer("low", low, persistent=False)
        self.register_buffer("span", high - low, persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """Map observations [B, ...] to actions [B, G]."""
        return self.low + self.span * self.mlp(self.encoder(features)).sigmoid()


class Critic(nn.Module):
    """Observation and action -> value.

    Args:
        encoder: with ``dim``, the length of its embedding.
        actions: G.
        hidden: widths of the hidden layers.
    """

    def __init__(self, encoder: nn.Module, actions: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.encoder = encoder
        self.mlp = _mlp(encoder.dim + actions, hidden, 1)

    def forward(self, features: Tensor, actions: Tensor) -> Tensor:
        """Map observations [B, ...] and actions [B, G] to values [B]."""
        return self.mlp(torch.cat([self.encoder(features), actions], 1)).squeeze(1)


def _mlp(inputs: int, hidden: Sequence[int], outputs: int) -> nn.Sequential:
    sizes = [inputs, *hidden]
    layers: list[nn.Module] = []
    for before, after in zip(sizes, hidden, strict=False):
        layers += [nn.Linear(before, after), nn.ReLU()]
    last = nn.Linear(sizes[-1], outputs)
    # Small, so that the first actions are near the middle (Lillicrap et al., section 7).
    nn.init.uniform_(last.weight, -3e-3, 3e-3)
    nn.init.uniform_(last.bias, -3e-3, 3e-3)
    return nn.Sequential(*layers, last)
