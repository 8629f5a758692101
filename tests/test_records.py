"""Networks that return their tensors in something: it is the same after pruning."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass, is_dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnnrl_ray import mask, prune, search, trace
from gnnrl_ray.data.loader import Loader
from gnnrl_ray.data.records import all_in, has_records, mapped
from gnnrl_ray.jobs.exporting import export
from gnnrl_ray.pruning.removal import standing_alone
from gnnrl_ray.tracing.network import TraceError
from gnnrl_ray.tracing.proxies import tensors_in

SHAPE = (3, 8, 8)
Named = namedtuple("Named", "logits features")


@dataclass
class Output:
    logits: Tensor
    features: Tensor | None = None


@dataclass(frozen=True)
class Frozen:
    logits: Tensor
    features: Tensor


class Bag(dict):
    """As many a package has: what is in it are attributes."""

    __getattr__ = dict.__getitem__


@dataclass
class Both(OrderedDict):
    """As Hugging Face has: a dataclass, and a dictionary of what is not None."""

    logits: Tensor | None = None
    features: Tensor | None = None

    def __post_init__(self):
        self.update({k: v for k, v in vars(self).items() if v is not None})


RECORDS = {
    "named tuple": lambda a, b: Named(a, b),
    "dataclass": lambda a, b: Output(a, b),
    "one of two": lambda a, b: Output(a),
    "frozen": lambda a, b: Frozen(a, b),
    "bag": lambda a, b: Bag(logits=a, features=b),
    "both": lambda a, b: Both(logits=a),
    "ordered": lambda a, b: OrderedDict(logits=a, features=b),
    "namespace": lambda a, b: SimpleNamespace(logits=a, features=b),
    "one in another": lambda a, b: {"first": Output(a, Named(b, [b])), "rest": [Bag(c=a)]},
}


class Returning(nn.Module):
    def __init__(self, record):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3)
        self.classifier = nn.Linear(6, 5)
        self.record = record

    def forward(self, x):
        features = F.relu(self.second(F.relu(self.first(x))))
        return self.record(self.classifier(features.mean((2, 3))), features)


def kinds(value):
    """Say of what classes ``value`` is made."""
    inside = value
    if is_dataclass(value) or isinstance(value, SimpleNamespace):
        inside = vars(value)
    if isinstance(inside, dict):
        return type(value), {name: kinds(each) for name, each in inside.items()}
    if isinstance(inside, tuple | list):
        return type(value), [kinds(each) for each in inside]
    return type(value)


@pytest.mark.parametrize("record", RECORDS.values(), ids=list(RECORDS))
def test_what_is_returned_is_of_the_same_classes_and_whole(record):
    torch.manual_seed(0)
    network, x = Returning(record).double().eval(), torch.rand(2, *SHAPE).double()
    groups = trace(network, SHAPE)
    made = network(x)
    assert "classifier" not in groups.names
    assert ("second" in groups.names) == (len(tensors_in(made)) == 1)
    widths = groups.widths // 2
    smaller, masked = prune(network, groups, widths), mask(network, groups, widths)
    for other in (smaller, masked):
        found = other(x)
        assert kinds(found) == kinds(made)
        assert [t.shape for t in tensors_in(found)] == [t.shape for t in tensors_in(made)]
        for ours, theirs in zip(tensors_in(found), tensors_in(masked(x)), strict=True):
            assert torch.allclose(ours, theirs, atol=1e-12)
    assert trace(smaller, SHAPE).widths.tolist() == widths.tolist()


@pytest.mark.parametrize("record", RECORDS.values(), ids=list(RECORDS))
def test_tensors_are_replaced_where_they_are(record):
    made = record(torch.ones(2), torch.zeros(3))
    twice = mapped(lambda tensor: tensor + 1, made)
    assert kinds(twice) == kinds(made)
    for before, after in zip(tensors_in(made), tensors_in(twice), strict=True):
        assert torch.equal(after, before + 1)
    assert has_records(made)
    assert not has_records({"a": [torch.ones(1), (None, "b")]})


@pytest.mark.parametrize("record", RECORDS.values(), ids=list(RECORDS))
def test_alone_it_returns_what_torch_knows(record):
    network, x = Returning(record).eval(), torch.rand(2, *SHAPE)
    graph = standing_alone(network, SHAPE)
    assert not has_records(graph(x))
    for ours, theirs in zip(tensors_in(graph(x)), tensors_in(network(x)), strict=True):
        assert torch.equal(ours, theirs)


def test_files_are_written_of_them(tmp_path):
    images = torch.rand(4, *SHAPE)
    split = Loader([(images, torch.zeros(4, dtype=torch.long))])
    network = Returning(RECORDS["dataclass"]).eval()
    for end in ("onnx", "pt2", "pt"):
        assert export(network, split, tmp_path / f"a.{end}").difference < 1e-5


def test_they_are_what_own_scores_and_losses_get(tmp_path):
    torch.manual_seed(0)
    batches = [(torch.rand(32, *SHAPE), torch.randint(5, (32,))) for _ in range(2)]

    def score(network, validation):
        with torch.no_grad():
            right = [network(x).logits.argmax(1) == labels for x, labels in validation]
        return torch.cat(right).float().mean().item()

    found = search(
        Returning(RECORDS["both"]), (batches, batches), flops=0.5, episodes=2, finetune=2,
        method="random", score=score, progress=False, out=tmp_path / "run",
        loss=lambda output, labels: F.cross_entropy(output.logits, labels),
    )  # fmt: skip
    assert score(found.network, batches) == found.best.accuracy


def test_what_cannot_be_looked_into_is_named():
    class Own:
        def __init__(self, *tensors):
            self.tensors = tensors

    with pytest.raises(TraceError, match=r"no tensors that can be looked at: .*dataclass"):
        trace(Returning(Own), SHAPE)


def test_widths_of_random_networks_leave_what_is_returned(rng):
    network = Returning(RECORDS["frozen"]).eval()
    groups = trace(network, SHAPE)
    for _ in range(3):
        widths = rng.integers(1, groups.widths + 1)
        made = prune(network, groups, widths)(torch.rand(2, *SHAPE))
        assert made.logits.shape == (2, 5)
        assert made.features.shape[1] == 6
    assert np.array_equal(groups.widths, [8])


@dataclass
class Link:
    weight: Tensor
    others: list


def test_what_holds_itself_is_looked_into_once():
    first, second = Link(torch.ones(1), []), Link(torch.zeros(1), [])
    first.others, second.others = [second, second], [first]
    assert len(tensors_in(first)) == 3
    assert sum(map(torch.is_tensor, all_in(first))) == 2
    many = [Link(torch.ones(1), []) for _ in range(30)]
    for each in many:
        each.others = many
    network = Returning(RECORDS["dataclass"]).eval()
    network.links, network.many = first, many
    assert trace(network, SHAPE).names == ("first",)
    assert prune(network, trace(network, SHAPE), [4]).links.others[0].weight == 0
