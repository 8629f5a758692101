"""Channel groups: which channels of a network live and die together.

Channels that the same operations make and read are one group. No names of networks or
layers are looked at: what is tied follows from one trace and the labels sent through it.

Axis letters: G prunable groups, C channels of one group or operation.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import regex
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import fx, nn

from gnnrl_ray.data.loader import InputShape, shapes_of
from gnnrl_ray.errors import InputError
from gnnrl_ray.process import taking_turns, torch_as_it_starts
from gnnrl_ray.settings import parse_pattern
from gnnrl_ray.tracing.check import Reference
from gnnrl_ray.tracing.effects import follow
from gnnrl_ray.tracing.labels import Labelled, Labels
from gnnrl_ray.tracing.network import get_tensor, unwrapped
from gnnrl_ray.tracing.operations import FIXED, Layout, Operation
from gnnrl_ray.tracing.symbolic import closed_in, symbolic

_PATTERN_SECONDS = 1  # for one name; some patterns need ages


@dataclass(frozen=True, eq=False)
class ChannelGroups:
    """The pruning space of a network; pickled, it holds no tensor of it.

    A channel is what is kept or dropped: filters that are tied to each other are one.

    Attributes:
        names: of the G groups in trace order, after the module that first makes them.
        widths: int64 [G], channels of each group in the dense network.
        multiple_of: int64 [G], what widths are multiples of: a convolution in groups
            keeps equally many channels in each.
        operations: the whole dataflow, in execution order.
        input_shapes: (C, H, W) of each image that the network takes at once.
        layouts: where the channels are in parameters and buffers, by their names.
        fixed_params: parameters that have no channels, which no candidate is without; what
            is there for training alone, as an auxiliary classifier, is not counted.
        fixed_macs: multiply-accumulates of what is left whole because it was not
            understood.
        parts: of each group, int [C] for every division that its widths must respect.
        whole: layers whose channels all stay, and why.
        left: operations that were not understood and are left whole.
        closed: modules that could not be traced and are one operation each.
    """

    names: tuple[str, ...]
    widths: np.ndarray
    multiple_of: np.ndarray
    operations: tuple[Operation, ...]
    input_shapes: tuple[tuple[int, ...], ...]
    layouts: Mapping[str, Layout]
    fixed_params: int
    fixed_macs: int
    parts: tuple[tuple[np.ndarray, ...], ...]
    whole: Mapping[str, str] = field(default_factory=dict)
    left: tuple[str, ...] = ()
    closed: tuple[str, ...] = ()
    _graph: fx.GraphModule | None = field(default=None, repr=False)

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_graph": None}

    def graph_of(self, network: nn.Module) -> fx.GraphModule:
        """Return the graph of ``network``, as it was traced if it still is that one.

        It shares modules and weights with ``network``.
        """
        network = unwrapped(network)
        if self._graph is not None and _shares_weights(self._graph, network):
            return self._graph
        return symbolic(network, self.input_shapes, self.closed)

    @property
    def input_size(self) -> int:
        """Pixels of the largest image that the network takes."""
        return max(int(np.prod(shape[1:])) for shape in self.input_shapes)

    @cached_property
    def offsets(self) -> np.ndarray:
        """int64 [G + 1]: where each group's channel numbers begin."""
        return np.concatenate([[0], np.cumsum(self.widths)])

    @property
    def layers(self) -> tuple[Operation, ...]:
        """The convolutions and linear layers: what has multiply-accumulates."""
        return tuple(op for op in self.operations if op.kind in ("conv", "linear"))

    def group_of(self, channels: np.ndarray) -> np.ndarray:
        """Map channel numbers int [C] to group indices int [C]; -1 for none."""
        group = np.searchsorted(self.offsets, channels, side="right") - 1
        return np.where(channels >= 0, group, -1)

    def check_widths(self, widths: np.ndarray) -> np.ndarray:
        """Return ``widths`` as int64 [..., G].

        Raises:
            InputError: wrong number of groups, a width outside 1 .. dense, or one that is
                not of the group's multiples.
        """
        given, count = widths, len(self.widths)
        try:
            widths = np.asarray(given)
        except ValueError:  # lists of different lengths
            widths = np.asarray(None)
        if widths.shape[-1:] != (count,) or widths.dtype.kind not in "iuf":
            raise InputError(f"`widths` are {count} numbers of channels, got {given!r}.")
        wrong = (widths < 1) | (widths > self.widths) | (widths % self.multiple_of != 0)
        if wrong.any():
            g = int(np.argwhere(wrong)[0, -1])
            kind = (
                "an integer"
                if self.multiple_of[g] == 1
                else f"a multiple of {self.multiple_of[g]}"
            )
            raise InputError(
                f"width of {self.names[g]!r} must be {kind} in 1..{self.widths[g]}, "
                f"got {widths[..., g].ravel()[wrong[..., g].ravel().argmax()]}."
            )
        return widths.astype(np.int64)


@taking_turns
@torch_as_it_starts()
def trace(
    network: nn.Module,
    input_shape: InputShape,
    *,
    keep: str | None = None,
    skip_untraceable: bool = False,
    check: bool = True,
) -> ChannelGroups:
    """Find the channel groups of ``network``.

    Args:
        network: any CNN that ``torch.fx`` can trace, or its graph (see
            :func:`~gnnrl_ray.tracing.symbolic.symbolic`); left as it is.
        input_shape: (C, H, W) of one image; of a network that takes several at once, one
            such for each.
        keep: regular expression; groups with a layer whose name it matches stay whole.
        skip_untraceable: leave whole what cannot be traced or is not understood.
        check: whether the graph returns what the network does, on random images, and as
            many multiply-accumulates have been counted as torch counts.

    Raises:
        TraceError: names the module, the operation and the line that is not understood.
        DataError: ``input_shape`` is no shape.
        InputError: ``keep`` is no regular expression, matches no layer, or takes ages.
    """
    input_shape, network = shapes_of(input_shape), unwrapped(network)
    reference = Reference.of(network, input_shape)
    graph = symbolic(network, input_shape, skip=skip_untraceable)
    labels, left = follow(graph, input_shape, skip_untraceable)
    if keep:
        _keep(labels, keep)
    groups = _Grouping(labels).groups()
    laid = (name for name, layout in groups.layouts.items() if layout.trained)
    fixed = sum(p.numel() for p in graph.parameters())
    fixed -= sum(get_tensor(graph, name).numel() for name in laid)
    if check:
        reference.check(graph, "the traced graph")
    fixed_macs, once = labels.macs_alone()
    groups = replace(
        groups, fixed_macs=fixed_macs, fixed_params=fixed, left=tuple(left),
        closed=closed_in(graph), _graph=graph,
    )  # fmt: skip
    if check and not groups.closed:  # what is in those may depend on the image
        reference.check_macs(sum(op.macs for op in groups.layers) + fixed_macs, once)
    return groups


def _shares_weights(graph: fx.GraphModule, network: nn.Module) -> bool:
    """Say whether all tensors of ``graph`` are those of ``network``."""
    if graph is network:
        return True
    there = dict(network.named_parameters(remove_duplicate=False))
    there |= network.named_buffers(remove_duplicate=False)
    here = dict(graph.named_parameters(remove_duplicate=False))
    here |= graph.named_buffers(remove_duplicate=False)
    constants = graph._non_persistent_buffers_set
    return all(
        there.get(name) is tensor for name, tensor in here.items() if name not in constants
    )


def _keep(labels: Labels, pattern: str) -> None:
    """Freeze what layers with a name that ``pattern`` matches make."""
    try:
        expression = regex.compile(parse_pattern(pattern))
    except regex.error as error:  # what Python's own took
        raise InputError(f"--keep {pattern!r} is not understood: {error}.") from error
    found = False
    for labelled in labels.operations:
        op = labelled.operation
        if op.weight and not op.depthwise and _matches(expression, op.module or op.name):
            found = True
            for label in labelled.made[labelled.made != FIXED].tolist():
                labels.frozen.setdefault(label, f"--keep {pattern}")
    if not found:
        raise InputError(f"--keep {pattern!r} matches no layer; `inspect` lists them.")


def _matches(expression: regex.Pattern, name: str) -> bool:
    try:
        return expression.search(name, timeout=_PATTERN_SECONDS) is not None
    except TimeoutError:
        raise InputError(
            f"--keep {expression.pattern!r} takes over {_PATTERN_SECONDS} s to match "
            f"{name!r}; repetitions within repetitions do."
        ) from None


class _Grouping:
    """Turns labels into groups, and everything's labels into channel numbers."""

    def __init__(self, labels: Labels) -> None:
        self._labels = labels
        self._makers = [
            labelled
            for labelled in labels.operations
            if labelled.operation.weight and not labelled.operation.depthwise
        ]
        # The channel of each label, and one more for those that are fixed from the start.
        channel = _components(labels.minted, labels.ties)
        self._channel = np.append(channel, channel.max(initial=-1) + 1)
        self._reasons: dict[int, str] = {}
        for label, reason in labels.frozen.items():
            self._reasons.setdefault(int(self._channel[label]), reason)
        self._signature = self._signatures(labels.operations, ("read", "made"))

    def groups(self) -> ChannelGroups:
        """Number the channels; freeze groups that cannot be pruned evenly, and repeat."""
        self._freeze_mixtures()
        while True:
            groups = self._number()
            parts, multiples, uneven = [], [], {}
            for g in range(len(groups.names)):
                divisions = _divisions(groups, g)
                balanced = _balanced(divisions)
                parts.append(balanced or ())
                multiples.append(balanced[0].max() + 1 if balanced else 1)
                if balanced is None:
                    uneven[g] = "divided in ways that no choice of channels can balance"
                elif multiples[g] == groups.widths[g]:
                    uneven[g] = "nothing smaller is possible"
            if not uneven:
                multiple_of = np.array(multiples, int)
                return replace(groups, parts=tuple(parts), multiple_of=multiple_of)
            for g, reason in uneven.items():
                members = np.unique(self._channel[self._group == g])
                self._reasons.update(dict.fromkeys(members.tolist(), reason))

    def _signatures(self, operations: list[Labelled], ends: tuple[str, ...]) -> np.ndarray:
        """uint64 per channel: how often it is at which ends of which operations."""
        signature = np.zeros(self._channel[-1] + 1, np.uint64)
        random = np.random.default_rng(0)
        for labelled in operations:
            for end in ends:
                mix = random.integers(2**63, dtype=np.uint64) * 2 + 1
                np.add.at(signature, self._channel[getattr(labelled, end)], mix)
        return signature

    def _freeze_mixtures(self) -> None:
        """Freeze what is divided by position together with what other layers make.

        The parts of a shuffle or a convolution in groups are of equal size; groups of
        independent widths would shift their borders. Those of a split may have any size.
        """
        makers = self._signatures(self._makers, ("made",))
        fixed = np.zeros(len(self._signature), bool)
        fixed[[*self._reasons, self._channel[FIXED]]] = True
        for labelled in self._labels.operations:
            op, divided, signature = labelled.operation, [], self._signature
            if op.groups > 1 and not op.depthwise:
                divided = [labelled.read, labelled.made]
            elif op.kind == "select" and _moved(labelled):
                divided, signature = [labelled.read], makers
            for channels in divided:
                members = np.unique(self._channel[channels])
                if len(np.unique(np.where(fixed[members], 0, signature[members]))) > 1:
                    reason = f"{op.module or op.name} divides channels of several layers"
                    for member in members[~fixed[members]].tolist():
                        self._reasons.setdefault(member, reason)

    def _number(self) -> ChannelGroups:
        channel, labels = self._channel, self._labels
        free = np.ones(len(self._signature), bool)
        free[[*self._reasons, channel[FIXED]]] = False
        number = np.full(len(channel), FIXED)
        self._group = np.full(len(channel), FIXED)
        names: list[str] = []
        widths: list[int] = []
        whole = dict(labels.whole_layers)
        for labelled in self._makers:
            name = labelled.operation.module or labelled.operation.name
            made = channel[labelled.made]
            for signature in dict.fromkeys(self._signature[made[free[made]]].tolist()):
                members = np.flatnonzero(
                    (self._signature[channel] == signature) & free[channel]
                )
                if number[members[0]] != FIXED:
                    continue
                _, position = np.unique(channel[members], return_inverse=True)
                number[members] = sum(widths) + position
                self._group[members] = len(names)
                repeated = sum(n.split(":")[0] == name for n in names)
                names.append(f"{name}:{repeated}" if repeated else name)
                widths.append(int(position.max()) + 1)
            frozen = made[~free[made]]
            if len(frozen):
                whole[name] = self._reasons.get(int(frozen[0]), "fixed")
        return ChannelGroups(
            tuple(names),
            np.array(widths, int),
            np.ones(len(widths), int),
            tuple(labelled.numbered(number) for labelled in labels.operations),
            shapes_of(labels.input_shape),
            {name: layout.numbered(number) for name, layout in labels.layouts.items()},
            0,
            0,
            ((),) * len(widths),
            whole,
        )


def _components(count: int, pairs: list[np.ndarray]) -> np.ndarray:
    """Return int [count]: the connected component of each label."""
    rows, columns = np.concatenate([np.empty((0, 2), int), *pairs]).T
    graph = coo_array((np.ones(len(rows)), (rows, columns)), shape=(count, count))
    return connected_components(graph, directed=False)[1]


def _moved(labelled: Labelled) -> bool:
    """Say whether a selection changes the order of what it takes."""
    taken = labelled.operation.taken
    assert taken is not None
    return not labelled.operation.padded and bool((np.diff(taken) != 1).any())


def _divisions(groups: ChannelGroups, g: int) -> list[np.ndarray]:
    """How convolutions in groups divide group ``g``: int [C], the part of each channel."""
    found: dict[bytes, np.ndarray] = {}
    for op in groups.layers:
        if op.groups == 1 or op.depthwise:
            continue
        for channels in (op.inputs, op.outputs):
            (at,) = np.nonzero(groups.group_of(channels) == g)
            if not len(at):
                continue
            counts = np.zeros((groups.widths[g], op.groups), int)
            part = at * op.groups // len(channels)
            np.add.at(counts, (channels[at] - groups.offsets[g], part), 1)
            # Channels that are counted alike are interchangeable.
            _, division = np.unique(counts, axis=0, return_inverse=True)
            if division.any():
                found[division.tobytes()] = division.ravel()
    return list(found.values())


def _balanced(divisions: list[np.ndarray]) -> tuple[np.ndarray, ...] | None:
    """Return the divisions that matter, at most two into equally many equal parts.

    Keeping equally many channels of each part of a finer division does so for a coarser
    one, too. ``None`` if what remains is more than a perfect matching can balance.
    """
    if any(np.ptp(np.bincount(division)) for division in divisions):
        return None
    finest: list[np.ndarray] = []
    for division in sorted(divisions, key=lambda d: -d.max()):
        if not any(_refines(finer, division) for finer in finest):
            finest.append(division)
    if len(finest) > 2 or len({division.max() for division in finest}) > 1:
        return None
    return tuple(finest)


def _refines(finer: np.ndarray, coarser: np.ndarray) -> bool:
    pairs = np.unique(np.stack([finer, coarser], 1), axis=0)
    return len(pairs) == finer.max() + 1
