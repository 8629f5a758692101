"""The multi-stage GNN (GNN-RL section 3.2) with the actor and critic on top of it.

Axis letters: B batch, G actions, N nodes and E edges of one graph, F features,
D embedding dimension, M graphs of one level, S distinct states.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnnrl_ray.graph.hierarchy import KEPT, Motif

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # of what it calls when it is imported
    from torch_geometric.utils import scatter


@dataclass(frozen=True, eq=False)
class LevelPlan:
    """The distinct states of all graphs of a level as one graph without links between.

    Attributes:
        arcs: int64 [2, A], from and to node; both directions of each edge.
        children: int64 [A], the state of the level below that each arc is.
        shares: float32 [N, 1], 1 / c, one over the number of arcs that reach a node.
        owners: int64 [N], the state that each node is of.
        places: int64 [N], of each node in its motif; where its pooling weight is.
        states: S, how many there are.
        around: float32 [N, F] of the lowest level: :meth:`mean` of the observed features,
            which no weights have changed.
    """

    arcs: Tensor
    children: Tensor
    shares: Tensor
    owners: Tensor
    places: Tensor
    states: int
    around: Tensor | None = None

    def mean(self, below: Tensor) -> Tensor:
        """Average ``below`` [S', F] over the arcs that reach each node, [N, F]."""
        heard = below.index_select(0, self.children)
        total = heard.new_zeros(len(self.owners), heard.shape[1])
        return total.index_add(0, self.arcs[1], heard) * self.shares


@dataclass(frozen=True, eq=False)
class Plan:
    """Observations taken apart, for any number of encoders of the same graph.

    Attributes:
        observations: float32 [S, ...], the distinct ones.
        features: float32 [S', F], the distinct states of primitive edges.
        levels: lowest first; the highest has the S states of the network.
        which: int64 [B], the state of the network that each observation is.
        instances: int64 [S, I], the state of each instance of a motif of level 1.
    """

    observations: Tensor
    features: Tensor
    levels: tuple[LevelPlan, ...]
    which: Tensor
    instances: Tensor | None = None


class MotifConv(nn.Module):
    r"""Edge-featured message passing, GNN-RL Eq. 4.

    .. math:: h_i' = \\sum_{j \\in N_i} \\frac{1}{c_i} W (h_j \\circ e_{ij})

    with :math:`c_i = |N_i|`.

    **Shapes:** node states [N, D]; arcs [2, A]; their states [A, D]; shares [N, 1], the
    :math:`1 / c_i`; output [N, D].
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Linear(dim, dim, bias=False)

    def forward(self, h: Tensor, arcs: Tensor, e: Tensor, shares: Tensor) -> Tensor:
        """Return the next node states; W is linear, so it can wait until after the sum."""
        sources, targets = arcs
        heard = scatter(h.index_select(0, sources) * e, targets, dim_size=len(shares))
        return self.weight(heard * shares)

    def begin(self, around: Tensor, project: nn.Linear) -> Tensor:
        """Return the node states [N, D] after a round in which all of them were ones.

        What is heard is the mean of the projected edges, so that the projection can wait
        as well, and the two matrices be one.

        Args:
            around: float32 [N, F], the mean of the edges before their projection.
            project: to [D].
        """
        weight = self.weight.weight
        return F.linear(around, weight @ project.weight, weight @ project.bias)


class LevelEncoder(nn.Module):
    """``EncoderGNN_t`` of Eq. 1: embeds every graph of one level.

    Graphs of the level share W; each has pooling weights alpha of its own (Eq. 5), one
    for each node.

    Args:
        motifs: the graphs of the level.
        features: F, of what the edges are at the level below.
        dim: D.
        layers: rounds of message passing.
        pooling: ``learned`` weights, or the ``mean``.
    """

    _arcs: Tensor
    _edges: Tensor
    _shares: Tensor
    _sizes: Tensor
    _starts: Tensor
    _children: Tensor
    _instances: Tensor

    def __init__(
        self,
        motifs: Sequence[Motif],
        features: int,
        dim: int,
        layers: int,
        pooling: str = "learned",
    ) -> None:
        super().__init__()
        self.project = nn.Linear(features, dim)
        self.convolutions = nn.ModuleList(MotifConv(dim) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)
        nodes = np.array([motif.nodes for motif in motifs])
        edges = np.array([motif.edges.shape[1] for motif in motifs])
        mean = torch.tensor(1 / np.repeat(nodes, nodes)).float()
        if pooling == "learned":
            self.alpha = nn.Parameter(mean)
        else:
            self.register_buffer("alpha", mean, persistent=False)
        # Neighbours are those before and behind: information flows both ways.
        both = [np.concatenate([m.edges, m.edges[::-1]], 1) for m in motifs]
        numbers = [np.tile(np.arange(count), 2) for count in edges]
        degrees = np.concatenate([np.bincount(arcs[1]) for arcs in both])
        # Motif after motif: its arcs, their edges, its nodes; and how many of each.
        sizes = np.stack([nodes, 2 * edges])
        self._constant("_arcs", np.concatenate(both, 1))
        self._constant("_edges", np.concatenate(numbers))
        self._constant("_shares", (1 / degrees).astype(np.float32))
        self._constant("_sizes", sizes)
        self._constant("_starts", sizes.cumsum(1) - sizes)
        # Instance after instance: its motif, and its edges, as many as the most have.
        children = np.full((sum(len(m.children) for m in motifs), edges.max()), -1)
        instances = np.repeat(np.arange(len(motifs)), [len(m.children) for m in motifs])
        for i, motif in enumerate(motifs):
            children[instances == i, : edges[i]] = motif.children
        self._constant("_children", children)
        self._constant("_instances", instances)

    def _constant(self, name: str, value: np.ndarray) -> None:
        # Not saved: target networks average every entry of the state dict.
        self.register_buffer(name, torch.tensor(value), persistent=False)

    def plan(self, which: Tensor) -> tuple[LevelPlan, Tensor]:
        """Find the distinct states of the level.

        Args:
            which: int64 [B, M_below], the state of each graph of the level below.

        Returns:
            Their plan, and int64 [B, M], the state of each graph of this level.
        """
        children = which[:, self._children]  # [B, M, E]
        children = torch.where(self._children < 0, -1, children)
        motif = self._instances.expand(len(which), -1)
        told_apart = torch.cat([children, motif[..., None]], 2).flatten(0, 1)
        first, inverse = distinct(told_apart)
        children, motif = told_apart[first, :-1], told_apart[first, -1]
        nodes, node_owners, places = self._lay_out(0, motif)
        _, arc_owners, sources = self._lay_out(1, motif)
        return (
            LevelPlan(
                self._arcs.index_select(1, sources) + nodes.index_select(0, arc_owners),
                children.flatten().index_select(
                    0, arc_owners * children.shape[1] + self._edges.index_select(0, sources)
                ),
                self._shares[places][:, None],
                node_owners,
                places,
                len(first),
            ),
            inverse.view(len(which), -1),
        )

    def _lay_out(self, kind: int, motif: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Put the nodes (0) or arcs (1) of states of motifs ``motif`` [S] in a row.

        Returns:
            int64 [S], where those of each state begin; of each, the state that it is of;
            and which of the motif's it is.
        """
        sizes, starts = self._sizes[kind][motif], self._starts[kind][motif]
        begins = sizes.cumsum(0) - sizes
        owners = torch.repeat_interleave(sizes)
        numbers = torch.arange(len(owners), device=owners.device)
        return begins, owners, numbers + (starts - begins).index_select(0, owners)

    def forward(self, states: Tensor, plan: LevelPlan) -> Tensor:
        """Embed the distinct states of the level, [S, D], from those below, [S', F]."""
        around = plan.mean(states) if plan.around is None else plan.around
        first, *others = self.convolutions
        h = torch.relu(first.begin(around, self.project))
        e = self.project(states).index_select(0, plan.children) if others else None
        for convolution in others:
            h = torch.relu(convolution(h, plan.arcs, e, plan.shares))
        weighted = h * self.alpha.index_select(0, plan.places)[:, None]
        pooled = weighted.new_zeros(plan.states, weighted.shape[1])
        return self.norm(pooled.index_add(0, plan.owners, weighted))


def distinct(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Find the distinct rows of ``rows`` [R, K], int64 or float32.

    Returns:
        int64 [S], a row for each distinct one, and int64 [R], which of them each row is.
    """
    rows = rows.contiguous()
    if rows.is_floating_point():
        rows = rows.view(torch.int32 if rows.shape[1] % 2 else torch.int64).long()
    # A 64-bit fingerprint sorts far faster than rows do.
    fingerprint = (rows * _factors(rows.shape[1]).to(rows.device)).sum(1)
    values, inverse = fingerprint.unique(return_inverse=True)
    first = torch.empty_like(values)
    first[inverse] = torch.arange(len(rows), device=rows.device)
    return first, inverse


def _all_are(one: Tensor, many: Tensor) -> bool:
    return one.device == many.device and bool((many == one).all())


@lru_cache
def _factors(count: int) -> Tensor:
    """Return odd random int64 [count]."""
    generator = torch.Generator().manual_seed(0)
    return 2 * torch.randint(-(2**62), 2**62, (count,), generator=generator) + 1


class GraphEncoder(nn.Module):
    """The m-GNN: features of primitive edges -> embedding g of the network (Eqs. 1, 2, 6).

    Args:
        levels: of a :class:`~gnnrl_ray.graph.hierarchy.HierarchicalGraph`.
        features: F of the primitive edges.
        dim: D.
        layers: rounds of message passing at each level.
        pooling: see :class:`LevelEncoder`.
    """

    def __init__(
        self,
        levels: Sequence[Sequence[Motif]],
        features: int,
        dim: int = 64,
        layers: int = 2,
        pooling: str = "learned",
    ) -> None:
        super().__init__()
        self.dim = dim
        self._last: Plan | None = None  # of a single observation
        self.stages = nn.ModuleList(
            LevelEncoder(motifs, features if t == 0 else dim, dim, layers, pooling)
            for t, motifs in enumerate(levels)
        )

    def plan(self, features: Tensor) -> Plan:
        """Take observations float32 [B, E, F] apart; their values matter, weights not."""
        # All episodes begin with the same one, and many also end with the next.
        last = self._last
        if last is not None and _all_are(last.observations, features):
            return replace(last, which=last.which.expand(len(features)))
        first, observation = distinct(features.flatten(1))
        plan = self._plan(features[first])
        if len(first) == 1:
            self._last = plan
        return replace(plan, which=plan.which[observation])

    def _plan(self, features: Tensor) -> Plan:
        """Take distinct observations [S, E, F] apart."""
        _, edges, width = features.shape
        rows = features.reshape(-1, width)
        distinct_rows, which = distinct(rows)
        which, levels, found = which.view(-1, edges), [], []
        for stage in self.stages:
            level, which = stage.plan(which)
            levels.append(level)
            found.append(which)
        levels[0] = replace(levels[0], around=levels[0].mean(rows[distinct_rows]))
        return Plan(features, rows[distinct_rows], tuple(levels), which[:, 0], found[0])

    def forward(self, plan: Plan) -> Tensor:
        """Return g of the distinct states of the network, [S, D]."""
        return self.levels(plan)[1]

    def levels(self, plan: Plan) -> tuple[Tensor, Tensor]:
        """Return the embeddings of the distinct motifs of level 1, [S', D], and g."""
        found = [plan.features]
        for stage, level in zip(self.stages, plan.levels, strict=True):
            found.append(stage(found[-1], level))
        return found[1], found[-1]


class VectorEncoder(nn.Module):
    """Observations that are plain vectors stand for themselves.

    Args:
        dim: D, length of an observation.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def plan(self, features: Tensor) -> Plan:
        """Take all observations [B, ...] for distinct ones."""
        which = torch.arange(len(features), device=features.device)
        return Plan(features, features.float().flatten(1), (), which)

    def forward(self, plan: Plan) -> Tensor:
        """Return the observations, [B, D]."""
        return plan.features


class WidthEncoder(VectorEncoder):
    """What is left of the channels behind every edge, and nothing of the graph.

    Args:
        edges: E, the length of an embedding.
    """

    def plan(self, features: Tensor) -> Plan:
        """Take observations float32 [B, E, F] for distinct ones."""
        return super().plan(features[..., KEPT])


def encoder_of(space: gym.spaces.Box, settings: Mapping[str, Any]) -> nn.Module:
    """Return the encoder of observations: the m-GNN where ``space`` has a graph.

    Args:
        space: of the observations.
        settings: ``encoder``, ``graph_dim``, ``graph_layers`` and ``pooling`` of
            :class:`~gnnrl_ray.agent.settings.AgentSettings`.
    """
    if not hasattr(space, "levels"):
        return VectorEncoder(int(np.prod(space.shape)))
    if settings["encoder"] == "mlp":
        return WidthEncoder(space.shape[0])
    return GraphEncoder(
        space.levels,
        space.shape[1],
        settings["graph_dim"],
        settings["graph_layers"],
        settings["pooling"],
    )


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
        self.mlp = perceptron(encoder.dim, hidden, len(low))
        self.register_buffer("low", low, persistent=False)
        self.register_buffer("span", high - low, persistent=False)

    def forward(self, plan: Plan) -> Tensor:
        """Return the actions in the distinct states, [S, G]."""
        return self.low + self.span * self.mlp(self.encoder(plan)).sigmoid()


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
        self.mlp = perceptron(encoder.dim + actions, hidden, 1)

    def forward(self, embedding: Tensor, actions: Tensor) -> Tensor:
        """Map embeddings [B, D], the encoder's, and actions [B, G] to values [B]."""
        return self.mlp(torch.cat([embedding, actions], 1)).squeeze(1)


def perceptron(inputs: int, hidden: Sequence[int], outputs: int) -> nn.Sequential:
    """Return linear layers of widths ``inputs``, ``hidden`` and ``outputs``, with ReLU."""
    sizes = [inputs, *hidden]
    layers: list[nn.Module] = []
    for before, after in zip(sizes, hidden, strict=False):
        layers += [nn.Linear(before, after), nn.ReLU()]
    last = nn.Linear(sizes[-1], outputs)
    # Small, so that the first actions are near the middle (Lillicrap et al., section 7).
    nn.init.uniform_(last.weight, -3e-3, 3e-3)
    nn.init.uniform_(last.bias, -3e-3, 3e-3)
    return nn.Sequential(*layers, last)
