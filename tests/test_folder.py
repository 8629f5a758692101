"""Folders of images, beside torchvision's own reading of them."""

import json
import os
import pickle
import resource
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.datasets import ImageFolder

from gnnrl_ray import load_data
from gnnrl_ray.data import folder
from gnnrl_ray.data.folder import load_folder
from gnnrl_ray.data.split import DataError, Split
from gnnrl_ray.errors import GnnrlError
from gnnrl_ray.scoring.evaluation import normalised
from gnnrl_ray.source import Source
from gnnrl_ray.zoo import build_network, load_network
from gnnrl_ray.zoo.weights import WeightsError, save_weights


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("GNNRL_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def draw(path, rng, size=None, mode="RGB"):
    """Write an image of random blobs, of a random size unless one is given."""
    width, height = size or rng.integers(40, 90, 2)
    small = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(small).resize((int(width), int(height))).convert(mode).save(path)


def tree(root, size=None, parts=("train/", "val/"), each=10, kind="png"):
    rng = np.random.default_rng(0)
    for part in parts:
        for label in ("ants", "bees", "cats"):
            for n in range(each):
                mode = "L" if n == 3 else "RGB"
                draw(root / f"{part}{label}/{n:02}.{kind}", rng, size, mode)
    return root


def test_validation_is_torchvisions_transforms(tmp_path):
    root = tree(tmp_path / "pictures", kind="jpg")
    _, test, classes = load_folder(root, 32)
    assert classes == 3
    assert test.input_shape == (3, 32, 32)
    theirs = ImageFolder(
        str(root / "val"),
        transforms.Compose(
            [transforms.Resize(36), transforms.CenterCrop(32), transforms.ToTensor(),
             transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])]
        ),
    )  # fmt: skip
    images, labels = (torch.cat(x) for x in zip(*test.batches(7), strict=True))
    assert labels.tolist() == theirs.targets
    for ours, (their, _) in zip(images, theirs, strict=True):
        assert torch.allclose(ours, their, atol=1e-6)


def test_the_default_is_imagenets(tmp_path):
    train, _, _ = load_folder(tree(tmp_path / "pictures", each=2))
    assert train.images.shape[1:] == (256, 256, 3)
    assert train.input_shape == (3, 224, 224)


def test_images_of_one_size_stay_as_they_are(tmp_path):
    root = tree(tmp_path / "pictures", (40, 48))
    train, test, _ = load_folder(root)
    assert test.input_shape == (3, 48, 40)
    for split, part in ((train, "train"), (test, "val")):
        files = sorted((root / part).rglob("*.png"))
        for row, file in zip(split.rows, files, strict=True):
            theirs = np.asarray(Image.open(file).convert("RGB"))
            assert np.array_equal(split.images[row].numpy(), theirs)
    assert train.padding == 5


def coordinates(view, size=90):
    """Return a split of images whose colours say where a pixel is."""
    down, right = np.mgrid[:size, :size] * 2
    image = np.stack([down, right, np.zeros_like(down)], 2).astype(np.uint8)
    images = torch.from_numpy(np.tile(image, (400, 1, 1, 1)))
    zeros, ones = torch.zeros(3), torch.ones(3)
    labels = torch.zeros(400, dtype=torch.int64)
    return Split(images, labels, zeros, ones, flip=True, view=view)


def test_training_sees_parts_as_torchvision_draws_them():
    size, view = 90, 30
    split = coordinates(view, size)
    ((seen, _),) = split.batches(400, torch.Generator().manual_seed(0))
    assert seen.shape == (400, 3, view, view)
    # Middles of the corner pixels say where the part begins and ends.
    top, bottom = (seen[:, 0, row, view // 2] * 255 / 2 for row in (0, -1))
    left, right = (seen[:, 1, view // 2, column] * 255 / 2 for column in (0, -1))
    mirrored = left > right
    assert 0.4 < mirrored.float().mean() < 0.6
    high = (bottom - top) * view / (view - 1)
    wide = (right - left).abs() * view / (view - 1)
    begin = top + 0.5 - high / view / 2
    torch.manual_seed(0)  # what torchvision draws with
    theirs = torch.tensor(
        [transforms.RandomResizedCrop.get_params(split.images[0].permute(2, 0, 1),
                                                 (0.08, 1.0), (3 / 4, 4 / 3))
         for _ in range(4000)]
    ).float()  # fmt: skip
    for ours, their in (
        (high * wide / size**2, theirs[:, 2] * theirs[:, 3] / size**2),
        (torch.log(wide / high), torch.log(theirs[:, 3] / theirs[:, 2])),
        (begin / (size - high).clamp(min=1), theirs[:, 0] / (size - theirs[:, 2]).clamp(1)),
    ):
        for q in (0.1, 0.5, 0.9):
            assert abs(ours.quantile(q) - their.quantile(q)) < 0.1
    again = next(split.batches(400, torch.Generator().manual_seed(0)))[0]
    assert torch.equal(seen, again)


def test_without_parts_a_fifth_of_each_class_is_for_testing(tmp_path):
    train, test, _ = load_folder(tree(tmp_path / "pictures", parts=("",)), 32)
    assert torch.bincount(train.labels).tolist() == [8, 8, 8]
    assert torch.bincount(test.labels).tolist() == [2, 2, 2]
    assert not set(train.rows.tolist()) & set(test.rows.tolist())


def test_images_are_decoded_once_until_they_change(tmp_path, monkeypatch, home):
    root = tree(tmp_path / "pictures")
    first = load_folder(root, 32)[0]
    assert len(list((home / "images").glob("*.uint8"))) == 1
    decode = folder._decode_all
    monkeypatch.setattr(folder, "_decode_all", lambda *_: pytest.fail("decoded again"))
    assert torch.equal(load_folder(root, 32)[0].images, first.images)
    monkeypatch.setattr(folder, "_decode_all", decode)
    draw(root / "train/ants/00.png", np.random.default_rng(9))
    second = load_folder(root, 32)[0]
    assert not torch.equal(second.images, first.images)
    assert second.file.digest != first.file.digest


def test_images_are_the_same_wherever_and_whenever_they_were_copied(tmp_path):
    root = tree(tmp_path / "pictures")
    first = load_data(f"folder:{root}", image_size=32).digest()
    shutil.copytree(root, tmp_path / "elsewhere/pictures", copy_function=shutil.copyfile)
    copied = f"folder:{tmp_path}/elsewhere/pictures"
    assert load_data(copied, image_size=32).digest() == first
    assert load_data(copied, image_size=40).digest() != first
    os.rename(tmp_path / "elsewhere/pictures/val/ants/00.png",
              tmp_path / "elsewhere/pictures/val/ants/99.png")  # fmt: skip
    assert load_data(copied, image_size=32).digest() != first


def test_a_pickle_holds_no_images_and_finds_them(tmp_path):
    data = load_data(f"folder:{tree(tmp_path / 'pictures')}", image_size=32)
    packed = pickle.dumps(data)
    assert len(packed) < 10_000
    again = pickle.loads(packed)
    for name in ("train", "validation", "holdout"):
        ours, theirs = (next(getattr(d, name).batches(5))[0] for d in (data, again))
        assert torch.equal(ours, theirs)
    assert data.digest() == again.digest()
    os.remove(data.train.file.path)
    with pytest.raises(DataError, match="put \\$GNNRL_HOME where every node sees it"):
        pickle.loads(packed)


def test_splits_of_a_file_are_those_of_memory(tmp_path):
    """Everything that is asked of a split, beside one whose images are in memory."""
    train, _, _ = load_folder(tree(tmp_path / "pictures", (32, 32)))
    plain = Split(
        train.images[train.rows], train.labels, train.mean, train.std, flip=True,
        padding=train.padding,
    )  # fmt: skip
    index, ones = torch.tensor([5, 2, 2, 20]), torch.tensor([1, 1])

    def batches(split, seed):
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        return split.batches(4, generator)

    for ours, theirs in (
        (train, plain), (train.take(index), plain.take(index)),
        (train.take(index).take(ones), plain.take(index[ones])),
        (train.to("cpu"), plain.to("cpu")),
    ):  # fmt: skip
        for seed in (None, 3):
            for a, b in zip(batches(ours, seed), batches(theirs, seed), strict=True):
                assert torch.equal(a[0], b[0])
                assert torch.equal(a[1], b[1])
    parts = normalised(train, torch.float32)
    assert torch.equal(parts, next(plain.batches(len(plain)))[0])
    assert parts.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("broken", [b"", b"no image", "truncated", "bomb"])
def test_what_is_no_image_is_named(tmp_path, broken):
    root = tree(tmp_path / "pictures", kind="png")
    file = root / "train/bees/04.png"
    if broken == "truncated":
        file.write_bytes(file.read_bytes()[:-200])
    elif broken == "bomb":
        Image.new("1", (30_000, 30_000)).save(file)
    else:
        file.write_bytes(broken)
    with pytest.raises(DataError, match=r"bees/04.png cannot be read .* mend or delete it"):
        load_folder(root)
    assert not list((tmp_path / "home").rglob("*.uint8*"))


def test_other_trees_are_said(tmp_path):
    with pytest.raises(DataError, match="there is no such folder"):
        load_folder(tmp_path / "nowhere")
    with pytest.raises(DataError, match="is no folder of images, with one for each class"):
        load_folder(tmp_path)
    root = tree(tmp_path / "pictures")
    (root / "val/cats").rename(root / "val/dogs")
    with pytest.raises(DataError, match="'cats' is in one of them only"):
        load_folder(root)
    rng = np.random.default_rng(0)
    for n in range(9):
        draw(tmp_path / f"one/ants/{n}.png", rng)
    with pytest.raises(DataError, match="one class, 'ants'"):
        load_folder(tmp_path / "one")
    draw(tmp_path / "one/bees/0.png", rng)
    (tmp_path / "half").mkdir()
    (root / "train").rename(tmp_path / "half/train")
    with pytest.raises(DataError, match="one class, 'train'; val/ is missing"):
        load_folder(tmp_path / "half")
    with pytest.raises(DataError, match="0 validation images are too few"):
        load_data(f"folder:{tmp_path / 'one'}", image_size=32)
    with pytest.raises(GnnrlError, match="--image-size is of images of your own"):
        load_data("digits", image_size=32)


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path, home):
    root = tree(tmp_path / "pictures")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
    try:
        with pytest.raises(DataError, match=r"take 0.1 GB .* \$GNNRL_HOME to a disk"):
            load_folder(root, 500)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list((home / "images").iterdir())


def test_a_source_names_a_folder_by_its_whole_path(tmp_path, monkeypatch):
    tree(tmp_path / "pictures", (32, 32))
    monkeypatch.chdir(tmp_path)
    source = Source(network="resnet20", dataset="folder:pictures")
    assert source.dataset == f"folder:{tmp_path / 'pictures'}"
    assert source.load_data().name == "pictures"
    # Elsewhere, it is looked for where the data are.
    monkeypatch.chdir("/")
    source = Source(network="resnet20", dataset="folder:pictures", data_dir=str(tmp_path))
    assert source.load_data().classes == 3


def test_weights_of_a_folder_are_its_own(tmp_path, home, command, monkeypatch):
    """Whatever it is called; they are found again, and kept unless --overwrite is said."""
    monkeypatch.chdir(tmp_path)
    for name in ("here", "there"):
        tree(tmp_path / name / "digits", (32, 32), each=3)

    def gnnrl(*words, folder="here"):
        about = ("--network", "resnet20", "--dataset", f"folder:{folder}/digits")
        return command(*words, *about)

    train = ("train", "--epochs", 1, "--device", "cpu")
    code, out, err = gnnrl(*train)
    assert not code, err
    (made,) = (home / "weights").iterdir()
    assert f"weights are in {made}" in out
    before = made.read_bytes()
    code, _, err = gnnrl(*train)
    assert code
    assert f"{made} is there already" in err
    assert made.read_bytes() == before
    assert not gnnrl(*train, "--seed", 1, "--overwrite")[0]
    assert made.read_bytes() != before
    few = ("--method", "random", "--episodes", 1, "--finetune", "none")
    code, _, err = gnnrl("search", *few, "--precision", "float32")
    assert not code, err
    assert (tmp_path / "runs/resnet20-digits-random/best.json").is_file()
    code, _, err = gnnrl("evaluate", folder="there")
    assert code
    assert f"--dataset folder:{tmp_path}/there/digits" in err
    with pytest.raises(WeightsError, match="none are at"):
        load_network("resnet20", "digits")


@pytest.mark.parametrize(
    ("network", "size"),
    [("resnet20", 40), pytest.param("vgg16", 96, marks=pytest.mark.slow),
     pytest.param("torchvision:mobilenet_v2", 96, marks=pytest.mark.slow)],
)  # fmt: skip
def test_a_search_on_a_folder_from_the_command_line(tmp_path, network, size):
    root = tree(tmp_path / "pictures", kind="jpg", each=20)
    weights = tmp_path / "random.safetensors"
    save_weights(build_network(network, 3, size), weights)

    def gnnrl(*words):
        done = subprocess.run(
            [sys.executable, "-m", "gnnrl_ray", *map(str, words)], cwd=tmp_path,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    about = ("--network", network, "--dataset", "folder:pictures", "--image-size", size)
    found = json.loads(
        gnnrl("search", *about, "--weights", weights, "--method", "random", "--episodes", 2,
              "--finetune", 2, "--flops", 0.6, "--epochs", 1, "--out", "run", "--json")
    )  # fmt: skip
    assert found["pruned"]["macs"] <= 0.6 * found["dense"]["macs"]
    assert found["finetuned"]["params"] == found["pruned"]["params"]
    assert root.is_dir()
