"""What is in cluster/, run for real: SSH, jobs, tokens."""

import contextlib
import getpass
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import ray
import yaml
from helpers.processes import MARK, ray_processes

from gnnrl_ray.run.journal import Journal
from gnnrl_ray.zoo import build_network
from gnnrl_ray.zoo.weights import save_weights

CLUSTER = Path(__file__).parent.parent / "cluster"
SEARCH = ["--network", "resnet20", "--episodes", "3", "--method", "gnn-rl", "--epochs", "0",
          "--finetune", "none", "--precision", "plain", "--env-runners", "1"]  # fmt: skip


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def account(tmp_path, monkeypatch):
    """A home of its own, with a token and weights; Ray's commands of this environment."""
    pytest.importorskip("ray.dashboard.modules.job.cli", reason="needs ray[default]")
    ray.shutdown()
    home = tmp_path / "home"
    (home / ".ray").mkdir(parents=True)
    (home / ".ray/auth_token").write_text("7" * 64)
    (home / ".ray/auth_token").chmod(0o600)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    (home / ".bash_profile").write_text(
        f"export PATH={path} GNNRL_HOME={home} RAY_USAGE_STATS_ENABLED=0\n"
        f"export {MARK}={os.environ[MARK]}\n"
    )
    save_weights(build_network("resnet20"), home / "weights/resnet20-digits.safetensors")
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "PYTHONPATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("PATH", path)
    monkeypatch.setenv("GNNRL_HOME", str(home))
    return home


def run(*command, **settings):
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=240, check=False,
        **settings,
    )  # fmt: skip
    done.said = done.stdout + done.stderr
    return done


@pytest.fixture
def sshd(account, tmp_path):
    """An SSH server on a loopback address of its own; yields that and a key for it."""
    server = shutil.which("sshd", path="/usr/sbin:/sbin")
    if os.getuid() or not server or not shutil.which("rsync"):
        pytest.skip("needs root for port 22 of 127.0.0.2, openssh-server and rsync")
    # `ray down` stops every Ray of the machine that it is run on.
    if any(p.info["name"] == "raylet" for p in psutil.process_iter(["name"])):
        pytest.skip("another Ray runs here, which `ray down` would stop")
    address, key = "127.0.0.2", tmp_path / "key"
    for name in (key, tmp_path / "host"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", name],
                       check=True)  # fmt: skip
    # Whoever logs in is at home in the folder of this test.
    shell = tmp_path / "shell"
    shell.write_text(
        f'#!/bin/bash\nexport HOME={account}\ncd\nexec bash -c "$SSH_ORIGINAL_COMMAND"\n'
    )
    shell.chmod(0o755)
    Path("/run/sshd").mkdir(exist_ok=True)
    (tmp_path / "sshd_config").write_text(
        f"ListenAddress {address}:22\nHostKey {tmp_path}/host\nPidFile none\n"
        f"AuthorizedKeysFile {key}.pub\nStrictModes no\nUsePAM no\nPermitRootLogin yes\n"
        f"ForceCommand {shell}\nMaxStartups 100\n"
    )
    process = subprocess.Popen(
        [server, "-D", "-e", "-f", tmp_path / "sshd_config"],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    time.sleep(0.5)
    if process.poll() is not None:
        pytest.skip(f"no SSH server: {process.stderr.read().strip()}")
    yield address, key
    process.terminate()
    process.wait()


@pytest.mark.ssh
def test_ray_submit(account, sshd, tmp_path):
    """`ray up`, `ray submit`, `ray down` with the template for machines of one's own."""
    address, key = sshd
    template = yaml.safe_load((CLUSTER / "local.yaml").read_text())
    template["provider"] |= {"head_ip": address, "worker_ips": []}
    template |= {"cluster_name": tmp_path.name[:20], "min_workers": 0, "max_workers": 0}
    template["auth"] = {"ssh_user": getpass.getuser(), "ssh_private_key": str(key)}
    # This environment is what the template would have installed.
    template["file_mounts"] = {}
    template["setup_commands"] = []
    start = template["head_start_ray_commands"][1]
    start = start.replace("6379", str(free_port())) + f" --dashboard-port={free_port()}"
    template["head_start_ray_commands"][1] = start + " --num-cpus=2"
    config = tmp_path / "local.yaml"
    config.write_text(yaml.safe_dump(template))
    up = run("ray", "up", "-y", "--no-config-cache", config)
    try:
        assert up.returncode == 0, up.said
        submitted = run(
            "ray", "submit", "--no-config-cache", config, CLUSTER / "search.py", "--",
            *SEARCH, "--out", tmp_path / "run",
        )  # fmt: skip
        assert submitted.returncode == 0, submitted.said
        assert "best of 3" in re.sub(r"\x1b\[[0-9;]*m", "", submitted.said)
    finally:
        down = run("ray", "down", "-y", config)
    assert down.returncode == 0, down.said
    assert len(Journal(tmp_path / "run/journal.jsonl")) == 3
    assert not ray_processes()


@pytest.mark.cluster
def test_ray_job_submit_asks_for_the_token(account, tmp_path):
    gcs, dashboard = free_port(), free_port()
    head = subprocess.Popen(
        ["ray", "start", "--head", "--block", f"--port={gcs}", "--num-cpus=2",
         "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
         # Others have Ray's usual ports, perhaps.
         f"--dashboard-agent-listen-port={free_port()}",
         f"--dashboard-agent-grpc-port={free_port()}"],
        env=os.environ | {"RAY_AUTH_MODE": "token"},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        submit = (
            "ray", "job", "submit", "--address", f"http://127.0.0.1:{dashboard}",
            "--working-dir", CLUSTER, "--", "python", "search.py", *SEARCH,
            # Where a machine has several clusters, a job is told of the latest.
            "--address", f"127.0.0.1:{gcs}", "--out", tmp_path / "run",
        )  # fmt: skip
        stranger = os.environ | {"HOME": str(tmp_path), "RAY_AUTH_MODE": "disabled"}
        _wait_for(dashboard)
        refused = run(*submit, env=stranger)
        assert refused.returncode != 0
        assert "401" in refused.said or "authentication" in refused.said.lower()
        wrong = run(*submit, env=os.environ | {"RAY_AUTH_TOKEN": "8" * 64,
                                               "RAY_AUTH_MODE": "token"})  # fmt: skip
        assert wrong.returncode != 0
        assert not (tmp_path / "run").exists()
        accepted = run(*submit, env=os.environ | {"RAY_AUTH_MODE": "token"})
        assert accepted.returncode == 0, accepted.said
        assert "best of 3" in accepted.said
    finally:
        own = psutil.Process(head.pid)
        for process in [*own.children(recursive=True), own]:
            process.kill()
        head.wait(30)
    best = json.loads((tmp_path / "run/best.json").read_text())
    assert len(Journal(tmp_path / "run/journal.jsonl")) == 3
    assert best["macs_ratio"] <= 0.5


def _wait_for(port):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.2)


def test_the_templates_keep_to_themselves():
    """Tokens everywhere, dashboards on loopback; what is in Kubernetes is inside it."""
    for name in ("cluster.yaml", "local.yaml"):
        template = yaml.safe_load((CLUSTER / name).read_text())
        head, worker = (
            template["head_start_ray_commands"],
            template["worker_start_ray_commands"],
        )
        assert all("RAY_AUTH_MODE=token" in commands[1] for commands in (head, worker))
        assert "--dashboard-host=127.0.0.1" in head[1]
        assert "~/.ray/auth_token" in template["file_mounts"]
    job = yaml.safe_load((CLUSTER / "rayjob.yaml").read_text())
    assert job["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    slurm = (CLUSTER / "slurm.sbatch").read_text()
    assert "RAY_AUTH_MODE=token" in slurm
    assert "--dashboard-host=127.0.0.1" in slurm
    subprocess.run(["bash", "-n", CLUSTER / "slurm.sbatch"], check=True)
