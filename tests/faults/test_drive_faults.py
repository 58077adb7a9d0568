"""A Drive that is full, read-only, gone, slow or lies: training goes on, what is there is whole, one line
says what is wrong.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from newllm_lib.runs import (
    MARK,
    Run,
    RunLock,
    is_complete,
    mirror_status,
    remove_directory,
    restore,
    staged_directory,
    start_mirror,
    wait_for_mirror,
    write_status,
)
from newllm_lib.runs.mirror.copy import recorded_sums, signature, sums_of
from tests.helpers.fake_run import append

SAYS = {
    "full": "is full",
    "read-only": "is read-only",
    "gone": "mount it again",
    "partial": "other bytes",
    "wrong": "other bytes",
}


class World:
    """A run that trains (without a model), a Drive, and what is wrong with it."""

    def __init__(self, folder: Path):
        self.folder, self.drive, self.run = folder, folder / "drive", Run(folder / "run")
        self.fault_file = folder / "fault"
        self.drive.mkdir()
        self.fault("")
        self.step, self.slowest = 0, 0.0

    def fault(self, what: str) -> None:
        temporary = self.folder / "fault.new"
        temporary.write_text(what)
        os.replace(temporary, self.fault_file)

    def train(self, steps: int = 1) -> None:
        """A step: a row, a checkpoint, a better model; the older checkpoints go."""
        for _ in range(steps):
            began = time.monotonic()
            self.step += 1
            append(self.run, [{"step": self.step, "loss": 1 / self.step}])
            for name in ("best", f"checkpoint-{self.step}"):
                with staged_directory(self.run.path / name) as staging:
                    (staging / "weights").write_bytes(f"{name} {self.step}".encode() * 2000)
            for old in self.run.checkpoints()[:-2]:
                remove_directory(old)
            self.slowest = max(self.slowest, time.monotonic() - began)
            time.sleep(0.05)

    def train_until(self, condition, seconds: float = 60.0) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, (mirror_status(self.run), self.step)
            self.train()

    def there(self) -> int | None:
        """The step that the Drive could continue, everything there being whole."""
        copy = Run(self.drive / "run")
        for folder in copy.path.iterdir() if copy.path.is_dir() else ():
            if folder.is_dir() and not folder.name.startswith("."):
                assert self.stays_whole(folder), folder
        for line in (copy.metrics_path.read_text() if copy.metrics_path.exists() else "").splitlines():
            json.loads(line)
        newest = copy.latest_checkpoint()
        return newest and int(newest.name.removeprefix("checkpoint-"))

    @staticmethod
    def stays_whole(folder: Path) -> bool:
        """Whether its bytes are those that its sums tell; a folder that was dropped or replaced while we
        looked is not judged.
        """
        before = signature(folder)
        try:
            whole = is_complete(folder) and recorded_sums(folder) == sums_of(folder)
        except FileNotFoundError:
            whole = False
        return whole or not folder.is_dir() or signature(folder) != before

    def says(self, words: str) -> bool:
        status = mirror_status(self.run)
        return status["state"] == "trouble" and words in status["message"] and "\n" not in status["message"]


@pytest.fixture
def world(tmp_path, monkeypatch):
    world = World(tmp_path)
    disk = str(Path(__file__).with_name("disk"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((disk, os.environ["PYTHONPATH"])))
    monkeypatch.setenv("FAULT", str(world.fault_file))
    monkeypatch.setenv("FAULTY_FOLDER", str(world.drive))
    yield world
    shutil.rmtree(world.run.path, ignore_errors=True)  # a mirror that is left ends with it


@pytest.mark.parametrize("what", ["full", "read-only", "gone", "slow", "partial", "wrong"])
def test_training_goes_on_and_what_is_there_is_whole(world, what):
    with RunLock(world.run):
        write_status(world.run, state="running")
        start_mirror(world.run, world.drive)
        world.train_until(world.there)
        world.fault(what)
        if what in SAYS:
            world.train_until(lambda: world.says(SAYS[what]))
        before, step = world.there(), world.step
        world.train(5)
        assert world.step == step + 5 and (what == "slow" or world.there() == before)
        world.fault("")
        world.train_until(lambda: world.there() > before and mirror_status(world.run)["state"] == "current")
    said = []
    assert wait_for_mirror(world.run, said.append, timeout=60)["state"] == "done"
    assert world.there() == world.step and len(said) == 1 and "is copied to" in said[0]
    assert (
        restore("run", world.drive, world.folder / "new").metrics_path.read_bytes()
        == world.run.metrics_path.read_bytes()
    )
    assert [p.name for p in (world.drive / "run").iterdir() if p.name.startswith(".")] == [MARK]


def test_a_clock_that_is_set_back_keeps_nobody_waiting(world, monkeypatch):
    """By 30 s, in the training and in the process that copies; the next life begins before the last ended."""
    real = time.time
    for life in (1, 2):
        with RunLock(world.run):
            write_status(world.run, state="running")
            since = start_mirror(world.run, world.drive)
            world.train_until(world.there)
            monkeypatch.setattr(time, "time", lambda life=life: real() - 30 * life)
            world.fault("clock back")
            world.train(3)
        began = time.monotonic()
        assert wait_for_mirror(world.run, print, since, timeout=60)["state"] == "done"
        assert time.monotonic() - began < 25 and world.there() == world.step, life
        world.fault("")


def test_a_drive_that_is_unmounted_is_not_made_on_the_local_disk(world):
    away = world.folder / "unmounted"
    with RunLock(world.run):
        write_status(world.run, state="running")
        start_mirror(world.run, world.drive)
        world.train_until(world.there)
        world.drive.rename(away)
        world.train_until(lambda: world.says("mount it again"))
        world.train(3)
        assert not world.drive.exists()
        away.rename(world.drive)  # mounted again: copying goes on by itself
        world.train_until(lambda: mirror_status(world.run)["state"] == "current")
    assert wait_for_mirror(world.run, print, timeout=60)["state"] == "done" and world.there() == world.step


def test_a_training_that_is_killed_still_gets_its_last_save_copied(world):
    pid = os.fork()
    if pid == 0:
        try:
            with RunLock(world.run):
                write_status(world.run, state="running")
                start_mirror(world.run, world.drive)
                world.train(10)
                os.kill(os.getpid(), 9)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 9
    assert wait_for_mirror(world.run, print, timeout=60)["state"] == "done"
    assert world.there() == 10


def test_what_a_short_life_wrote_is_copied_though_the_mirror_before_it_had_seen_the_end(world):
    """The mirror of a killed life is at its last copy, on a slow Drive, while the next life comes and goes:
    what it finishes is not the end, and is not taken for it."""
    with RunLock(world.run):
        write_status(world.run, state="running")
        start_mirror(world.run, world.drive)
        world.train_until(world.there)
        world.fault("slow")
        world.train(2)
    copying = lambda: [p for p in (world.drive / "run").iterdir() if p.name.startswith(".checkpoint")]  # noqa: E731
    end = time.monotonic() + 60
    while not copying():
        assert time.monotonic() < end
        time.sleep(0.01)
    time.sleep(0.6)  # it has seen that nobody trains
    with RunLock(world.run):
        since = start_mirror(world.run, world.drive)
        world.train(1)
    world.fault("")
    assert (
        wait_for_mirror(world.run, print, since, timeout=60)["state"] == "done"
        and world.there() == world.step
    )


def test_a_mirror_that_is_killed_says_so_and_the_next_start_goes_on(world):
    with RunLock(world.run):
        write_status(world.run, state="running")
        start_mirror(world.run, world.drive)
        world.train_until(world.there)
        os.kill(mirror_status(world.run)["pid"], 9)  # it has said who it is before it copied anything
        world.train_until(lambda: mirror_status(world.run)["state"] == "dead")
        world.there()
        start_mirror(world.run, world.drive)
        start_mirror(world.run, world.drive)  # two at once: one of them works
        world.train(3)
    assert wait_for_mirror(world.run, print, timeout=60)["state"] == "done" and world.there() == world.step


def test_a_first_copy_that_takes_longer_than_a_start_may_is_no_death(world, monkeypatch):
    monkeypatch.setattr("newllm_lib.runs.mirror.start.STARTS_WITHIN", 0.0)
    with RunLock(world.run):
        write_status(world.run, state="running")
        world.train()
        world.fault("stuck")
        start_mirror(world.run, world.drive)
        world.train_until(lambda: mirror_status(world.run)["pid"] is not None)
        assert mirror_status(world.run)["state"] == "starting"
        world.fault("")
    assert wait_for_mirror(world.run, print, timeout=60)["state"] == "done" and world.there() == world.step
