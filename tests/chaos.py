"""Injects faults into launches of a real study: what is lost, doubled or different afterwards?

    python tests/chaos.py --seed 1 --faults 60

Each kind of fault gets a storage. A launch starts, a fault hits it at a random moment, the launch ends or continues,
and the same command is repeated until the study is complete; then the next study begins in a fresh storage, until
there were enough faults of this kind. Every complete study is compared with one that was never disturbed.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from processes import Process, descendants, processes, titled, trainers, until

from orchestrator.launch import plan_study
from orchestrator.records import State
from orchestrator.results import store
from orchestrator.storage.layout import Storage

STUDY = """\
study: chaos
recipe:
  epochs: 12
  batch_size: 32
  lr: 0.05
  crop_padding: 1
  flip: false
  limit_train: 600
  limit_test: 200
experiments:
  - {method: base, dataset: digits, student: resnet_32_8, seed: [0, 1]}
  - {method: logit, dataset: digits, student: resnet_32_8, teacher: resnet_32_14, teacher_cache: [table, live]}
resources: {gpus_per_trial: 0, checkpoint_seconds: 0, retries: 100}
"""
KINDS = [
    *(f"{victim} {name}" for victim in ("launcher", "worker", "raylet", "all") for name in ("KILL", "TERM", "STOP")),
    "inline launcher KILL",
    "inline launcher TERM",
    "cut checkpoint",
    "full disk",
]
EXIT_CODES = {  # how a launch may end, by the kind of fault; negative if a signal killed it
    "TERM": {0, 1, 2, 130, -15},
    "KILL": {0, 1, 2, -9},
    "STOP": {0, 1},
    "cut checkpoint": {0, -9},
    "full disk": {0, 2},
}
MAY_DIFFER = {
    "seconds", "images_per_second", "start_time", "end_time", "ray_version", "resumed", "error", "study", "no",
}  # fmt: skip
LIMIT = 150.0  # seconds after which a launch counts as hung


@dataclass
class Tally:
    """The outcome of one kind of fault."""

    injected: int = 0
    resumed: int = 0  # launches that resumed what a disturbed one had left, or continued after the fault
    studies: int = 0
    trials_lost: int = 0
    rows_wrong: int = 0  # lost or doubled
    numbers_differ: int = 0
    retrained: int = 0  # finished trials that were trained again
    hung: int = 0
    left_behind: int = 0  # processes
    tracebacks: int = 0
    codes: Counter[int] = field(default_factory=Counter)

    HEADER = (
        "fault", "injected", "resumed", "studies", "trials lost", "rows lost or doubled", "numbers that differ",
        "retrained", "hung", "processes left", "tracebacks",
    )  # fmt: skip

    def cells(self) -> tuple[int, ...]:
        """As the table shows it."""
        return (
            self.injected, self.resumed, self.studies, self.trials_lost, self.rows_wrong, self.numbers_differ,
            self.retrained, self.hung, self.left_behind, self.tracebacks,
        )  # fmt: skip

    @property
    def is_clean(self) -> bool:
        """Whether nothing was lost, doubled, different, hung or left."""
        return not any(self.cells()[3:])


def numbers(storage: Path | str) -> dict[str, str]:
    """Reads every number of a study, as text so that equal means equal to the last bit, by trial, epoch and column."""
    backend = Storage.at(storage)
    found = {}
    for row in store.read_trials(backend):
        found |= {
            f"{row.trial_id} {name}": repr(getattr(row, name)) for name in row.__slots__ if name not in MAY_DIFFER
        }
    for epoch in store.read_epochs(backend):
        start = f"{epoch['trial_id']} epoch {epoch['epoch']}"
        found |= {f"{start} {name}": repr(value) for name, value in epoch.items() if name not in MAY_DIFFER}
    return found


def is_inline(kind: str) -> bool:
    """Whether the launches of a kind train in one process, without Ray."""
    return kind.startswith(("inline", "cut", "full"))


class Campaign:
    """Faults of every kind against one study."""

    def __init__(self, folder: Path, seed: int, study: str = STUDY, print_line: Callable[[str], None] = print) -> None:
        self.folder = folder
        self._random = random.Random(seed)
        self._study = folder / "study.yaml"
        self._study.write_text(study)
        self._print = print_line
        self._serial = 0
        self.tallies: dict[str, Tally] = {}
        start = time.monotonic()
        self._wait(self._launch(folder / "undisturbed", inline=True))
        self._training = 0.8 * (time.monotonic() - start)
        self._reference = numbers(folder / "undisturbed")
        plan = plan_study(self._study, folder / "undisturbed")
        assert all(trial.state == "finished" for trial in plan.trials), "the undisturbed study must finish"
        self._trials = {trial.trial_id: trial.config.epochs for trial in plan.trials}

    def run(self, kind: str, faults: int) -> Tally:
        """Injects this many faults of a kind; returns their outcome."""
        tally = self.tallies.setdefault(kind, Tally())
        with self._make_room(kind) as folder:
            while tally.injected < faults:
                self._serial += 1
                storage = folder / f"runs{self._serial}"
                before = tally.injected
                while not self._is_complete(storage) and tally.injected < faults:
                    self._launch_once(kind, storage, tally)
                self._conclude(kind, storage, tally, disturbed=tally.injected > before)
                shutil.rmtree(storage)
        return tally

    @contextmanager
    def _make_room(self, kind: str) -> Iterator[Path]:
        if kind != "full disk":
            yield self.folder
            return
        mount = self.folder / "small"
        mount.mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(mount)], check=True)
        try:
            yield mount
        finally:
            subprocess.run(["umount", str(mount)], check=True)

    def _launch(self, storage: Path, *, inline: bool) -> subprocess.Popen[str]:
        command = [str(Path(sys.executable).with_name("kdctl")), "launch", str(self._study), "--storage", str(storage)]
        log = (self.folder / "log.txt").open("w")
        with log:
            return subprocess.Popen(
                [*command, "--inline"] if inline else command, stdout=log, stderr=log, text=True, start_new_session=True
            )

    def _wait(self, process: subprocess.Popen[str], tally: Tally | None = None) -> int:
        found: set[Process] = set()
        deadline = time.monotonic() + LIMIT
        while process.poll() is None and time.monotonic() < deadline:
            found |= descendants(process.pid)
            time.sleep(0.1)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if tally:
                tally.hung += 1
        self._end_leftovers(found, tally)
        return process.returncode

    def _end_leftovers(self, found: set[Process], tally: Tally | None) -> None:
        until(lambda: not found & set(processes()), 30)
        left = found & set(processes())
        if left:
            self._print(f"  left: {[_title(pid) for pid, _ in left]}")
        for pid, _ in left:
            os.kill(pid, signal.SIGKILL)
        if tally:
            tally.left_behind += len(left)
            tally.tracebacks += "Traceback" in (self.folder / "log.txt").read_text()

    def _launch_once(self, kind: str, storage: Path, tally: Tally) -> None:
        """Launches once, and injects one fault."""
        inline = is_inline(kind)
        before, finished = tally.injected, self._finished(storage)
        tally.resumed += storage.exists() and tally.injected > 0
        process = self._launch(storage, inline=inline)
        # Some faults hit the start, when nothing trains yet; most hit the training, at any moment of it.
        if kind.startswith("worker") or self._random.random() < 0.75:
            until(lambda: process.poll() is not None or trainers(storage), LIMIT)
        until(lambda: process.poll() is not None, self._random.uniform(0, self._training))
        found = descendants(process.pid)
        if process.poll() is None:
            tally.injected += self._inject(kind, process, storage)
            found |= descendants(process.pid)
        code = self._wait(process, tally)
        self._end_leftovers(found, tally)
        tally.codes[code] += 1
        tally.resumed += code == 0 and tally.injected > before
        if kind == "cut checkpoint":
            self._cut(storage)
        for path in storage.parent.glob("ballast"):
            path.unlink()
        expected = next(codes for name, codes in EXIT_CODES.items() if name in kind)
        if code not in expected:
            self._print(f"  {kind}: exit code {code}; last lines of its log:\n{self._log()}")
            tally.tracebacks += 1
        later = self._finished(storage)
        tally.retrained += sum(later.get(trial_id) != end for trial_id, end in finished.items())

    def _log(self) -> str:
        return "\n".join((self.folder / "log.txt").read_text().splitlines()[-12:])

    def _inject(self, kind: str, process: subprocess.Popen[str], storage: Path) -> int:
        """Injects a fault; returns how many there were, 0 or 1."""
        if kind == "full disk":
            return self._fill(storage.parent)
        name = "KILL" if kind == "cut checkpoint" else kind.split()[-1]
        victims = self._victims(kind, process, storage)
        number = getattr(signal, f"SIG{name}")
        struck = [victim for victim in victims if _send(victim, number)]
        if name == "STOP":
            time.sleep(self._random.uniform(0.5, 4))
            for victim in struck:
                _send(victim, signal.SIGCONT)
        return int(bool(struck))

    def _victims(self, kind: str, process: subprocess.Popen[str], storage: Path) -> list[int]:
        below = descendants(process.pid)
        if kind.startswith("worker"):
            # None before the first trial starts; a fault that finds nothing to hit is not counted.
            return self._random.sample(found, 1) if (found := trainers(storage)) else []
        if kind.startswith("raylet"):
            return titled(below, b"raylet/raylet")
        if kind.startswith("all"):
            return [process.pid, *(pid for pid, _ in below)]
        return [process.pid]

    def _fill(self, mount: Path) -> int:
        with (mount / "ballast").open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                return 1

    def _cut(self, storage: Path) -> None:
        """Damages the newest checkpoint of every trial: cut off, or one bit changed."""
        for folder in storage.glob("checkpoints/*"):
            newest = max((path for path in folder.glob("*.checkpoint")), default=None)
            if newest and newest.stat().st_size:
                content = bytearray(newest.read_bytes())
                at = self._random.randrange(len(content))
                if self._random.random() < 0.5:
                    content = content[:at]
                else:
                    content[at] ^= 1 << self._random.randrange(8)
                newest.write_bytes(content)

    def _finished(self, storage: Path) -> dict[str, Any]:
        if not storage.exists():
            return {}
        rows = store.read_trials(Storage.at(storage))
        return {row.trial_id: row.end_time for row in rows if row.state is State.FINISHED}

    def _is_complete(self, storage: Path) -> bool:
        return self._finished(storage).keys() >= self._trials.keys()

    def _conclude(self, kind: str, storage: Path, tally: Tally, *, disturbed: bool) -> None:
        """Lets the study end without a further fault, and compares it with the undisturbed one."""
        for _ in range(3):
            if not self._is_complete(storage):
                tally.resumed += 1
                self._wait(self._launch(storage, inline=is_inline(kind)), tally)
        rows = store.read_trials(Storage.at(storage))
        epochs = Counter((row["trial_id"], row["epoch"]) for row in store.read_epochs(Storage.at(storage)))
        expected = {(trial, epoch) for trial, last in self._trials.items() for epoch in range(1, last + 1)}
        counts = Counter(row.trial_id for row in rows)
        tally.studies += disturbed
        tally.trials_lost += len(self._trials.keys() - self._finished(storage).keys())
        tally.rows_wrong += len(expected ^ epochs.keys()) + sum(count != 1 for count in epochs.values())
        tally.rows_wrong += len(counts.keys() ^ self._trials.keys()) + sum(count != 1 for count in counts.values())
        found = numbers(storage)
        differ = {
            name for name in found.keys() | self._reference.keys() if found.get(name) != self._reference.get(name)
        }
        tally.numbers_differ += len(differ)
        if differ:
            self._print(f"  {kind}: {sorted(differ)[:5]}\n{self._log()}")


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()[:120].strip()
    except OSError:
        return "gone"


def _send(pid: int, number: int) -> bool:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def table(tallies: dict[str, Tally]) -> str:
    """The outcome as Markdown."""
    total = [sum(column) for column in zip(*(tally.cells() for tally in tallies.values()), strict=True)]
    rows = [(kind, *tally.cells()) for kind, tally in tallies.items()] + [("**all**", *total)]
    lines = [Tally.HEADER, tuple("---" for _ in Tally.HEADER), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1_000_000))
    parser.add_argument("--faults", type=int, default=64, help="of all kinds together")
    parser.add_argument("--kinds", nargs="*", default=KINDS, metavar="KIND")
    options = parser.parse_args()
    print(f"seed {options.seed}, {options.faults} faults of {len(options.kinds)} kinds", flush=True)
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kdctl-chaos-") as folder:
        campaign = Campaign(Path(folder), options.seed)
        weights = {kind: 5 if is_inline(kind) else 1 for kind in options.kinds}  # Ray takes long to start
        for kind, weight in weights.items():
            share = -(-options.faults * weight // sum(weights.values()))
            tally = campaign.run(kind, share)
            print(
                f"{time.monotonic() - start:6.0f} s  {kind}: {tally.cells()} exit codes {dict(tally.codes)}", flush=True
            )
    print(table(campaign.tallies))
    return int(not all(tally.is_clean for tally in campaign.tallies.values()))


if __name__ == "__main__":
    sys.exit(main())
