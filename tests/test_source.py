import json
import re
import shlex

import numpy as np
import pytest
import torch

from gnnrl_ray import Source, accuracy
from gnnrl_ray.errors import InputError
from gnnrl_ray.jobs.sweep import Sweep
from gnnrl_ray.zoo import build_network
from gnnrl_ray.zoo.weights import WeightsError, read_weights, save_weights, weights_path


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("GNNRL_HOME", str(tmp_path / "home"))
    return tmp_path


@pytest.fixture
def weights(home):
    """A file of weights that nobody would find on their own."""
    torch.manual_seed(7)
    save_weights(build_network("resnet20"), home / "mine.safetensors")
    return home / "mine.safetensors"


def same(network, file):
    state = network.state_dict()
    return all(torch.equal(state[k], v) for k, v in read_weights(file).items())


def test_whoever_loads_loads_the_same(weights, home):
    """Sweeps loaded without the weights that they wrote down as used."""
    given = {"network": "resnet20", "weights": str(weights), "validation": "train-5k"}
    source = Source(**given)
    network, data = source.load()
    assert same(network, weights)
    assert not network.training
    assert data.protocol == "train-5k"
    sweep = Sweep(given | {"flops": 0.4}, {"seed": [0]})
    assert sweep.source == source
    assert same(sweep.source.load()[0], weights)


def test_data_are_read_where_they_are(home):
    arrays = {
        "x_train": np.zeros((60, 32, 32, 3), np.uint8), "y_train": np.zeros(60, np.int64),
        "x_test": np.ones((20, 32, 32, 3), np.uint8), "y_test": np.ones(20, np.int64),
    }  # fmt: skip
    (home / "there").mkdir()
    np.savez(home / "there/cifar10.npz", **arrays)
    given = {"dataset": "cifar10", "data_dir": str(home / "there")}
    assert len(Source(**given).load_data().train) == 60
    assert len(Sweep(given, {"seed": [0]}).source.load_data().train) == 60


def test_weights_of_the_embedded_data_set_are_made_once(home, monkeypatch):
    monkeypatch.setattr("gnnrl_ray.source.EMBEDDED_EPOCHS", 0.3)
    steps = []
    network, data = Source().load(lambda step, loss: steps.append(step))
    assert steps == [1, 2]
    path = weights_path("resnet20", "digits")
    assert same(network, path)
    again, _ = Source().load(lambda step, loss: pytest.fail("trained again"))
    assert accuracy(again, data.validation) == accuracy(network, data.validation)


def test_training_goes_on_where_it_was_interrupted(home, monkeypatch):
    """And what is embedded by itself."""
    monkeypatch.setattr("gnnrl_ray.source.EMBEDDED_EPOCHS", 2)
    whole, steps = Source().load()[0].state_dict(), []
    path = weights_path("resnet20", "digits")
    path.unlink()

    def interrupt(step, loss):
        steps.append(step)
        if step == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Source().load(interrupt)
    assert not path.exists()
    resumed = Source().load(lambda step, loss: steps.append(step))[0].state_dict()
    assert steps == [*range(1, 17)]
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_nothing_is_trained_that_cannot_be_kept(home, monkeypatch):
    (home / "file").touch()
    monkeypatch.setenv("GNNRL_HOME", str(home / "file/home"))
    with pytest.raises(InputError, match=r"Not a directory\); set \$GNNRL_HOME to"):
        Source().load(lambda step, loss: pytest.fail("trained for nothing"))


@pytest.mark.parametrize("dataset", ["cifar10", "folder:my pictures", "mine.data:loaders"])
def test_other_data_sets_need_weights(home, dataset):
    """And the command that makes them names the data as they were named."""
    source = Source(network="vgg16", dataset=dataset)
    with pytest.raises(WeightsError, match="none are at") as caught:
        source.load_weights(build_network("vgg16"), None)
    (said,) = re.findall("`gnnrl-ray (.*?)`", str(caught.value))
    assert shlex.split(said) == ["train", "--network", "vgg16", "--dataset", source.dataset]


def test_data_of_ones_own_share_no_weights_with_others(home):
    """Folders are called alike, and some as what is embedded or published."""
    ours = ("digits", "cifar10", "cifar100")
    named = [f"{where}{name}" for name in (*ours, "a.b")
             for where in ("folder:", "folder:/x/", "folder:/y/", "m:", "n:")]  # fmt: skip
    paths = {weights_path("resnet20", name) for name in (*ours, *named)}
    assert len(paths) == len(ours) + len(named)
    assert len({path.parent for path in paths}) == 1


def test_json(weights):
    source = Source(network="mobilenet_v2", weights=weights)
    assert Source.from_dict(json.loads(json.dumps(source.to_dict()))) == source
