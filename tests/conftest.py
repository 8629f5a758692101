"""A small network, a small data set and one Ray for the whole run."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # processes that share two cores would spin

import numpy as np
import pytest
import torch
from helpers.processes import mark

from gnnrl_ray import Costs, Objective, load_data, trace
from gnnrl_ray.data import LOADERS
from gnnrl_ray.zoo import build_network
from gnnrl_ray.zoo.resnet import ResNet
from gnnrl_ray.zoo.weights import save_weights

mark()  # before anything is started


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def network():
    """ResNet-8 with normalisation statistics and weights that are not the initial ones."""
    torch.manual_seed(0)
    network = ResNet(8).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.5)
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.normal_(module.bias)
            torch.nn.init.uniform_(module.weight, 0.5, 2)
    return network


@pytest.fixture
def groups(network):
    return trace(network, (3, 32, 32))


@pytest.fixture
def costs(groups):
    return Costs(groups)


@pytest.fixture(scope="session")
def digits():
    return load_data("digits")


@pytest.fixture
def objective(network, groups, digits):
    return Objective(network, groups, digits, budget=0.5)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """A ResNet-20 for digits, untrained, where commands look for it."""
    torch.manual_seed(0)
    monkeypatch.setenv("GNNRL_HOME", str(tmp_path / "home"))
    path = tmp_path / "home/weights/resnet20-digits.safetensors"
    save_weights(build_network("resnet20"), path)


@pytest.fixture
def few_digits(monkeypatch):
    """256 digits for training, 200 for testing: enough where it is about commands."""
    whole = LOADERS["digits"]

    def few(folder):
        train, test, classes = whole(folder)
        return train.take(torch.arange(256)), test.take(torch.arange(200)), classes

    monkeypatch.setitem(LOADERS, "digits", few)


@pytest.fixture
def command(capsys, monkeypatch):
    """Run a command line; return exit code, output and errors."""

    from gnnrl_ray import cli

    def command(*words):
        monkeypatch.setattr(sys, "argv", ["gnnrl-ray", *map(str, words)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
        output = capsys.readouterr()
        # Boxes and line breaks are for people.
        return code, output.out, " ".join(output.err.replace("│", " ").split())

    return command


@pytest.fixture
def ray_session():
    """One Ray for all tests that need no other."""
    import ray

    if ray.is_initialized():
        return
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        logging_level="error",
        log_to_driver=False,
        # Env runners import the environments of the tests.
        runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).parent)}},
    )


@pytest.fixture
def cluster():
    """Raylets on this machine: ``cluster(num_cpus=4)`` adds one, the first is the head."""
    import ray
    from ray.cluster_utils import Cluster

    ray.shutdown()
    cluster = Cluster()

    def add(**resources):
        node = cluster.add_node(**resources)
        add.address = cluster.address
        return node

    add.remove = cluster.remove_node
    yield add
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture(scope="session")
def s3():
    """A real S3 server on this machine; yields the URI of a bucket."""
    pytest.importorskip("s3fs")
    pytest.importorskip("moto.server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    settings = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        import s3fs

        deadline = time.monotonic() + 60  # on a busy machine it takes its time
        while time.monotonic() < deadline:
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", port)),
            ):
                break
            time.sleep(0.1)
        s3fs.S3FileSystem(skip_instance_cache=True).mkdir("bucket")
        yield "s3://bucket"
    server.terminate()
    server.wait(10)


@pytest.fixture
def interrupts():
    """Ctrl-C interrupts, whatever this was started from."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
