"""Two separate hosts and a cut link: what happens to a launch whose trials run there?

    sudo python tests/hosts.py --seconds 60

This machine is the head of a Ray cluster and holds the storage, an S3 server; each of two network namespaces, joined to
it by a bridge, is a host that trains one trial. During the training, the link of the first one is cut, and comes back
later. The study has to end by itself, with the numbers of one that was never disturbed. Needs root and iproute2.
"""

from __future__ import annotations

import argparse
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from chaos import numbers
from launch_events import ignore
from s3 import ENVIRONMENT, Server

from orchestrator.launch import launch

STUDY = """\
study: hosts
recipe: {epochs: 150, limit_train: 600, limit_test: 200, batch_size: 32, crop_padding: 1, flip: false, lr: 0.05}
experiments:
  - {method: base, dataset: digits, student: resnet_32_8, seed: [0, 1]}
resources: {gpus_per_trial: 0, cpus_per_trial: 1, checkpoint_seconds: 2}
"""
BRIDGE, HEAD = "kdctl0", "10.77.0.1"
HOSTS = {"kdctl-b": "10.77.0.2", "kdctl-c": "10.77.0.3"}
BIN = Path(sys.executable).parent


def ip(*words: str) -> None:
    """One command of iproute2."""
    subprocess.run(["ip", *words], check=True)


@contextmanager
def network() -> Iterator[None]:
    """A bridge of this machine with two hosts on it."""
    with ExitStack() as undo:
        ip("link", "add", BRIDGE, "type", "bridge")
        undo.callback(ip, "link", "del", BRIDGE)
        ip("addr", "add", f"{HEAD}/24", "dev", BRIDGE)
        ip("link", "set", BRIDGE, "up")
        for number, (host, address) in enumerate(HOSTS.items()):
            ip("netns", "add", host)
            undo.callback(ip, "netns", "del", host)
            undo.callback(end, host)
            ip("link", "add", f"kdctlv{number}", "type", "veth", "peer", "name", "eth0", "netns", host)
            ip("link", "set", f"kdctlv{number}", "master", BRIDGE, "up")
            ip("-n", host, "addr", "add", f"{address}/24", "dev", "eth0")
            ip("-n", host, "link", "set", "eth0", "up")
            ip("-n", host, "link", "set", "lo", "up")
        yield


def end(host: str) -> None:
    """Ends every process of a host."""
    found = subprocess.run(["ip", "netns", "pids", host], capture_output=True, text=True, check=False).stdout.split()
    for pid in found:
        os.kill(int(pid), signal.SIGKILL)


def start_ray(folder: str, environment: dict[str, str]) -> None:
    """A head without cores on this machine, and a node of one core on each host."""
    head = [f"--node-ip-address={HEAD}", "--port=6399", "--num-cpus=0", f"--temp-dir={folder}/ray"]
    start = ["start", "--disable-usage-stats", "--include-dashboard=false"]
    subprocess.run([BIN / "ray", *start, "--head", *head], env=environment, check=True, stdout=subprocess.DEVNULL)
    for host, address in HOSTS.items():
        node = [f"--address={HEAD}:6399", f"--node-ip-address={address}", "--num-cpus=1"]
        inside = ["ip", "netns", "exec", host, BIN / "ray", "start", "--disable-usage-stats"]
        subprocess.run([*inside, *node], env=environment, check=True, stdout=subprocess.DEVNULL)


def cut(host: str, seconds: float) -> None:
    """Cuts a host's link, and restores it after a while."""
    print(f"-- the link of {host} is cut", flush=True)
    ip("-n", host, "link", "set", "eth0", "down")
    time.sleep(seconds)
    ip("-n", host, "link", "set", "eth0", "up")
    print(f"-- the link of {host} is back", flush=True)


def watch(process: subprocess.Popen[str], seconds: float) -> str:
    """Prints and returns the output of a launch; cuts a link once both trials have trained for a while."""
    log = ""
    under_way: set[str] = set()
    cutting: threading.Thread | None = None
    assert process.stderr
    for line in process.stderr:
        print(line, end="", flush=True)
        log += line
        if trial := re.search(r"(\w{12}) .*: epoch [1-9]\d+/", line):
            under_way.add(trial[1])
        if len(under_way) == 2 and cutting is None:
            cutting = threading.Thread(target=cut, args=(next(iter(HOSTS)), seconds))
            cutting.start()
    assert cutting, "the launch ended before both trials were under way"
    cutting.join()
    return log


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="for which the link is cut")
    seconds = parser.parse_args().seconds
    environment = os.environ | ENVIRONMENT | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    os.environ.update(ENVIRONMENT)
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kdctl-hosts-") as folder, network():
        study = Path(folder) / "study.yaml"
        study.write_text(STUDY)
        server = Server(Path(folder) / "s3", HEAD)
        try:
            server.start()
            storage = f"s3://{server.make_bucket()}/runs?endpoint_override={server.endpoint}&scheme=http"
            launch(study, storage=Path(folder) / "undisturbed", inline=True, on_event=ignore)
            start_ray(folder, environment)
            command = [BIN / "kdctl", "launch", study, "--storage", storage, "--address", f"{HEAD}:6399"]
            with subprocess.Popen(
                command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
            ) as process:
                watch(process, seconds)
            same = numbers(storage) == numbers(str(Path(folder) / "undisturbed"))
        finally:
            subprocess.run([BIN / "ray", "stop", "--force"], env=environment, check=False, stdout=subprocess.DEVNULL)
            server.kill()
    outcome = f"exit code {process.returncode}, numbers {'equal' if same else 'DIFFER'}"
    print(f"link cut for {seconds:g} s: {outcome}, {time.monotonic() - start:.0f} s in all")
    return int(process.returncode != 0 or not same)


if __name__ == "__main__":
    sys.exit(main())
