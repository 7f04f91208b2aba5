"""What several test files share: digits in a storage, and a trial small enough to train in a test."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fake_gpu import FakeGpu, find_obstacle
from hypothesis import settings
from playwright.sync_api import Browser, sync_playwright
from s3 import ENVIRONMENT, Server

from orchestrator.data.prepare import prepare_dataset
from orchestrator.records import TrialConfig
from orchestrator.storage.layout import Storage

# `nohup make test`, and `make test &` in a script: what is started here would ignore the signal too.
for _number, _default in ((signal.SIGHUP, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _default)
_MEMORY = Path("/dev/shm")
_NEEDED = 4 << 30  # bytes; the folders of all tests take an eighth of it


def is_fast(folder: Path) -> bool:
    """Whether tests can do in a folder what they do in /tmp: write a lot, and run a script."""
    try:
        facts = os.statvfs(folder)
    except OSError:
        return False
    has_room = facts.f_bavail * facts.f_frsize >= _NEEDED
    return has_room and os.access(folder, os.W_OK | os.X_OK) and not facts.f_flag & getattr(os, "ST_NOEXEC", 0)


if "TMPDIR" not in os.environ and is_fast(_MEMORY):  # thousands of small files, each of which would wait for the disk
    tempfile.tempdir = str(_MEMORY)
settings.register_profile("any machine", deadline=None)  # no test fails because a machine is busy
settings.load_profile("any machine")
torch.set_num_threads(1)  # models this small are slower on more, the more so on a busy machine

TINY = TrialConfig(
    method="base",
    dataset="digits",
    student="resnet_32_8",
    seed=0,
    epochs=1,
    batch_size=32,
    lr=0.05,
    momentum=0.9,
    weight_decay=5e-4,
    milestones=(),
    gamma=0.1,
    crop_padding=1,
    flip=False,
    precision="float32",  # the same on machines with bfloat16
    limit_train=128,
    limit_test=100,
    holdout=0,
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with a test that may take longest come first, so that none of them keeps one worker at the end.

    The others follow by their number of tests.
    """
    tests = Counter(item.path for item in items)
    limits = dict.fromkeys(tests, 0.0)
    for item in items:
        if marker := item.get_closest_marker("timeout"):
            limits[item.path] = max(limits[item.path], *marker.args)
    items.sort(key=lambda item: (-limits[item.path], -tests[item.path]))


@pytest.fixture(scope="session")
def make_config() -> Callable[..., TrialConfig]:
    """Makes a tiny digits trial, with the given fields instead of its own."""
    return lambda **overrides: replace(TINY, **overrides)


@pytest.fixture(scope="session")
def digits_storage(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    """A storage that holds digits. To be read only; a test that writes asks for `storage`."""
    storage = Storage.at(tmp_path_factory.mktemp("digits"))
    storage.prepare()
    prepare_dataset("digits", None, storage)  # imports scikit-learn, which takes seconds: once a session
    return storage


@pytest.fixture
def storage(digits_storage: Storage, tmp_path: Path) -> Storage:
    """A storage of the test's own that holds digits."""
    own = Storage.at(tmp_path / "runs")
    own.prepare()
    shutil.copytree(Path(digits_storage.backend.address, "datasets"), Path(own.backend.address, "datasets"))
    return own


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An S3 server. A test that kills one starts its own."""
    server = Server(tmp_path_factory.mktemp("s3"))
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture
def s3_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Credentials for the S3 servers of the tests, and a cache of the test's own."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("KDCTL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def s3_address(s3_server: Server, s3_environment: None) -> str:
    """A storage in a new bucket, which holds nothing."""
    return f"s3://{s3_server.make_bucket()}/some/folder?endpoint_override={s3_server.endpoint}&scheme=http"


@pytest.fixture(scope="session")
def fake_gpu(tmp_path_factory: pytest.TempPathFactory) -> FakeGpu:
    """A stand-in for a GPU, for processes that a test starts."""
    if reason := find_obstacle():
        pytest.skip(f"no stand-in for a GPU: {reason}")
    return FakeGpu.build(tmp_path_factory.mktemp("fake-gpu"))


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# As root it has no sandbox; and it must not contact any server on its own.
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A real browser: the Chromium of this machine."""
    if CHROMIUM is None:
        reason = "there is no Chromium here; install one (Debian: apt-get install chromium)"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield chromium
        chromium.close()
