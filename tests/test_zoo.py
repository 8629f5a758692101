import hashlib
import pickle

import pytest
import torch
from safetensors.torch import save_file

from gnnrl_ray import accuracy, load_data, load_network
from gnnrl_ray.errors import InputError
from gnnrl_ray.zoo import NETWORKS, build_network
from gnnrl_ray.zoo.resnet import ResNet, Shortcut
from gnnrl_ray.zoo.weights import WeightsError, load_weights, weights_path


@pytest.mark.parametrize(("name", "params"), [("resnet20", 269_722), ("resnet56", 853_018)])
def test_parameters_are_the_published_ones(name, params):
    assert sum(p.numel() for p in build_network(name).parameters()) == params


@pytest.mark.parametrize(
    ("name", "cifar100", "imagenet"),
    [  # megabytes of 32-bit numbers: GNN-RL table 3; and as published for ImageNet
        ("mobilenet_v1", 3_309_476, 4_231_976),
        ("mobilenet_v2", 2_351_972, 3_504_872),
        ("shufflenet_v1", 1_000_828, 1_865_728),
        ("shufflenet_v2", 1_356_104, 2_278_604),
        ("vgg16", 14_774_436, 138_357_544),
    ],
)
def test_parameters_of_both_sizes(name, cifar100, imagenet):
    with torch.device("meta"):
        small, large = build_network(name, 100, 32), build_network(name, 1000, 224)
    assert sum(p.numel() for p in small.parameters()) == cifar100
    assert sum(p.numel() for p in large.parameters()) == imagenet


@pytest.mark.parametrize(
    ("name", "megabytes"),
    [
        ("mobilenet_v1", 13),
        ("mobilenet_v2", 9.3),
        ("shufflenet_v1", 4.1),
        ("shufflenet_v2", 5.4),
    ],
)
def test_mobile_networks_have_the_megabytes_of_the_paper(name, megabytes):
    numbers = sum(p.numel() for p in build_network(name, 100).parameters())
    assert 4e-6 * numbers == pytest.approx(megabytes, rel=0.03)  # the table rounds


@pytest.mark.parametrize("size", [32, 224])
@pytest.mark.parametrize(
    "name", ["mobilenet_v1", "mobilenet_v2", "shufflenet_v1", "shufflenet_v2", "vgg16"]
)
def test_images_shrink_to_a_few_pixels(name, size):
    network = build_network(name, 7, size).eval()
    sizes = []
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda m, x, y: sizes.append(y.shape[-1]))
    with torch.no_grad():
        assert network(torch.randn(1, 3, size, size)).shape == (1, 7)
    stem = size // 2 if size > 64 and name != "vgg16" else size
    assert sizes[0] == stem
    assert sizes[-1] in (2, 4, 7, 14)


def test_shortcut_halves_the_image_and_surrounds_channels_with_zeros():
    x = torch.randn(2, 4, 8, 8)
    out = Shortcut(4, 8)(x)
    assert torch.equal(out[:, 2:6], x[:, :, ::2, ::2])
    assert not out[:, :2].any()
    assert not out[:, 6:].any()


def test_depth_must_be_6n_plus_2():
    with pytest.raises(ValueError, match="got 21"):
        ResNet(21)


def test_unknown_network_lists_the_known():
    with pytest.raises(ValueError, match=r"resnet20, resnet32.*or torchvision:NAME"):
        build_network("resnet21")


@pytest.mark.parametrize("suffix", ["th", "safetensors"])
def test_weights_come_back(tmp_path, network, suffix):
    path = tmp_path / f"weights.{suffix}"
    state = network.state_dict()
    if suffix == "th":  # as nn.DataParallel and old training scripts save them
        torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, path)
    else:
        save_file(state, path)
    other = ResNet(8)
    load_weights(other, path)
    assert all(torch.equal(v, state[k]) for k, v in other.state_dict().items())


def test_weights_of_another_network_name_key_and_shape(tmp_path, network):
    torch.save(network.state_dict(), tmp_path / "w.th")
    with pytest.raises(
        WeightsError, match=r"layer1\.1\.bn1\.bias is missing.*and \d+ more"
    ):
        load_weights(ResNet(14), tmp_path / "w.th")
    with pytest.raises(WeightsError, match=r"linear\.bias has shape \(10,\), not \(7,\)"):
        load_weights(ResNet(8, 7), tmp_path / "w.th")


@pytest.mark.parametrize("suffix", ["th", "safetensors"])
@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.99])
def test_truncated_weights_are_refused(tmp_path, network, suffix, share):
    path = tmp_path / f"w.{suffix}"
    if suffix == "th":
        torch.save(network.state_dict(), path)
    else:
        save_file(network.state_dict(), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(WeightsError, match=r"w.*(truncated|damaged)"):
        load_weights(network, path)


class Hostile:
    def __reduce__(self):
        return exec, ("import pathlib; pathlib.Path('hostile_ran').touch()",)


@pytest.mark.parametrize("save", [torch.save, lambda o, p: p.write_bytes(pickle.dumps(o))])
def test_pickled_objects_are_refused_and_not_run(tmp_path, monkeypatch, network, save):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "w.th"
    save({"state_dict": Hostile()}, path)
    with pytest.raises(WeightsError, match="nothing in it was run"):
        load_weights(network, path)
    assert not (tmp_path / "hostile_ran").exists()


def test_a_whole_pickled_network_is_refused(tmp_path, network):
    torch.save(network, tmp_path / "w.th")
    with pytest.raises(WeightsError, match=r"Save `network\.state_dict"):
        load_weights(network, tmp_path / "w.th")


def test_damaged_cached_weights_are_found_by_their_hash(tmp_path, monkeypatch):
    monkeypatch.setenv("GNNRL_HOME", str(tmp_path))
    path = weights_path("resnet20", "cifar10")
    path.parent.mkdir()
    path.write_bytes(b"not the published file")
    digest = hashlib.sha256(b"not the published file").hexdigest()[:8]
    with pytest.raises(WeightsError, match=f"begins {digest}, not 12fca82f"):
        load_network("resnet20", "cifar10")


def test_weights_that_nobody_has_published(tmp_path, monkeypatch):
    monkeypatch.setenv("GNNRL_HOME", str(tmp_path))
    with pytest.raises(WeightsError, match="--weights FILE"):
        load_network("resnet20", "cifar100")


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "percent"),
    [
        ("resnet20", 91.73),
        ("resnet32", 92.63),
        ("resnet44", 93.10),
        ("resnet56", 93.39),
    ],
)
def test_published_accuracy(name, percent):
    assert name in NETWORKS
    network = load_network(name, "cifar10").to(memory_format=torch.channels_last)
    assert round(100 * accuracy(network, load_data("cifar10").test), 2) == percent


@pytest.mark.parametrize(
    "name",
    ["os:system", "builtins:len", "math:sqrt", ".x:y", "torch.nn:Linear", "nowhere:f",
     "os:nothing", "os.path:sep", "torch.nn:ReLU.x", ":", "a:", ":b", "", "timm:",
     "timm:no_such", "timm:hf-hub:somebody/something", "torchvision:", "torchvision:none"],
)  # fmt: skip
def test_what_is_no_network_is_refused_in_one_line(name):
    with pytest.raises(InputError) as error:
        build_network(name)
    assert "\n" not in str(error.value)


def test_networks_of_timm_have_the_classes_that_are_asked_for():
    pytest.importorskip("timm")
    assert build_network("timm:resnet10t", 7).get_classifier().out_features == 7


def test_classes_are_given_through_keywords(tmp_path, monkeypatch):
    (tmp_path / "mine_of_keywords.py").write_text(
        "import torch\ndef build(**kwargs):\n"
        "    return torch.nn.Linear(1, kwargs['num_classes'])\n"
    )
    monkeypatch.chdir(tmp_path)
    assert build_network("mine_of_keywords:build", 7).out_features == 7


def test_networks_of_torchvision_fetch_nothing(monkeypatch):
    def fetched(*given, **named):
        raise AssertionError("weights were to be fetched")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fetched)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fetched)
    network = build_network("torchvision:lraspp_mobilenet_v3_large", 5).eval()
    assert network(torch.rand(1, 3, 64, 64))["out"].shape == (1, 5, 64, 64)
    with pytest.raises(InputError, match=r"raft_small cannot be built with num_classes=5"):
        build_network("torchvision:raft_small", 5)
