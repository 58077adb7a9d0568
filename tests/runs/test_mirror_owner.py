"""Several sessions with one copy: it is at every moment one life's, whole, and never older than it was."""

from __future__ import annotations

import json
import os
import random
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from newllm_lib.errors import NewLLMError
from newllm_lib.runs import Mirror, Run, atomic, checkpoint_step, is_complete, staged_directory
from newllm_lib.runs.mirror import copy as copying, owner
from newllm_lib.runs.mirror.copy import recorded_sums, sums_of
from newllm_lib.runs.mirror.owner import CopyOwner, Superseded
from newllm_lib.training.mirror_callbacks import continue_from_copy

RECIPE = SimpleNamespace(resume="auto")


def save(run: Run, history: list[str]) -> None:
    """What a training leaves after a step: a row, a best model, a checkpoint; the older checkpoints go."""
    rows = [json.dumps({"step": i + 1, "by": by}) + "\n" for i, by in enumerate(history)]
    run.metrics_path.write_text("".join(rows))
    for name in ("best", f"checkpoint-{len(history)}"):
        with staged_directory(run.path / name) as folder:
            (folder / "config.json").write_text(json.dumps(history))
    for old in run.checkpoints()[:-2]:
        atomic.remove_directory(old)


def history_of(folder: Path) -> list[str]:
    return json.loads((folder / "config.json").read_text())


class Killed(BaseException):
    pass


class Life(threading.Thread):
    """A session on a machine, from its start; it runs only while the world lets it."""

    def __init__(self, world: World, machine: str):
        super().__init__(daemon=True)
        world.count += 1
        self.world, self.machine, self.pid = world, machine, world.count
        self.boot, self.local = f"boot {world.boots[machine]}", Run(world.folder / machine / "run")
        self.goes, self.pauses = threading.Semaphore(0), threading.Semaphore(0)
        self.is_killed = self.superseded = False
        self.error: BaseException | None = None

    def run(self) -> None:
        self.goes.acquire()
        try:
            self.train()
        except Killed:
            pass
        except BaseException as error:
            self.error = error
        self.is_killed = True
        self.pauses.release()

    def train(self) -> None:
        self.local.path.mkdir(parents=True, exist_ok=True)
        continue_from_copy(Run(self.world.drive / "run"), RECIPE, self.local)
        newest = self.local.latest_checkpoint()
        history = history_of(newest) if newest else []
        mirror = Mirror(self.local, self.world.drive)
        for _ in range(8):
            history = [*history, f"life {self.pid}"]
            save(self.local, history)
            self.pause()
            try:
                if not self.superseded:
                    mirror.copy()
            except Superseded:
                self.superseded = True
            except NewLLMError:  # what it was filling was tidied up meanwhile: it tries again
                continue

    def pause(self) -> None:
        self.pauses.release()
        self.goes.acquire()
        if self.is_killed:
            raise Killed

    def go(self) -> None:
        self.goes.release()
        self.pauses.acquire()
        if self.error is not None:
            raise self.error


class World:
    """Two machines and a Drive; a random one of what lives goes on, until its next pause."""

    def __init__(self, folder: Path, seed: int):
        self.folder, self.drive, self.random = folder, folder / "drive", random.Random(seed)
        self.drive.mkdir()
        self.boots, self.lives, self.newest, self.count = {"one": 0, "two": 0}, {}, 0, 0
        self.seen: list[tuple[str, int]] = []

    def step(self) -> None:
        machine = self.random.choice(("one", "two"))
        life = self.lives.get(machine)
        if life is None or life.is_killed:
            self.boots[machine] += self.random.random() < 0.5
            if self.random.random() < 0.3:  # another machine in its place
                shutil.rmtree(self.folder / machine, ignore_errors=True)
            life = self.lives[machine] = Life(self, machine)
            life.start()
        elif self.random.random() < 0.1:
            life.is_killed = True  # it stays where it is: nothing of it is tidied up
            return
        for _ in range(self.random.choice((1, 1, 3, 10, 30))):
            if not life.is_killed:
                life.go()
                self.check()

    def check(self) -> None:
        copy = Run(self.drive / "run")
        entries = sorted((e.name, e.inode()) for e in os.scandir(copy.path)) if copy.path.is_dir() else []
        if entries == self.seen:
            return
        self.seen = entries
        parts = [p for p in copy.path.iterdir() if p.is_dir() and not p.name.startswith(".")]
        for part in parts:
            assert is_complete(part) and recorded_sums(part) == sums_of(part), part
        rows = [row["by"] for row in copy.metrics()]
        steps = [checkpoint_step(p) for p in copy.checkpoints()]
        for part in copy.checkpoints():
            assert history_of(part) == rows[: checkpoint_step(part)], (part, rows)
        if steps and copy.best in parts:  # perhaps later than the checkpoint from which a life went on
            best = history_of(copy.best)
            assert best[: min(steps)] == rows[: min(steps)][: len(best)], (best, rows)
        newest = max(steps, default=0)
        assert newest >= self.newest
        self.newest = newest

    def end(self) -> None:
        for life in self.lives.values():
            life.is_killed = True
            life.goes.release()
            life.join()


@pytest.fixture
def sessions(monkeypatch):
    """A life's machine, boot and process stand for this one's; it may be put to sleep before any file is
    copied, any folder finished, and any look at whose the copy is."""
    me = threading.current_thread

    def pauses_before(place, name):
        real = getattr(place, name)

        def pausing(*words, **more):
            if isinstance(me(), Life):
                me().pause()
            return real(*words, **more)

        monkeypatch.setattr(place, name, pausing)

    pauses_before(copying, "_copy_file")
    pauses_before(atomic, "write_manifest")
    pauses_before(CopyOwner, "check")
    pauses_before(CopyOwner, "claim")
    real_machine, worlds = owner.this_machine, []

    def this_machine(run):
        life = me()
        return real_machine(run) | {"host": life.machine, "boot": life.boot}

    def is_alive(pid, start):
        life = me().world.lives.get(me().machine)
        return life.pid == pid and life.boot == me().boot

    monkeypatch.setattr(owner, "this_machine", this_machine)
    monkeypatch.setattr(atomic, "identity", lambda: f"{me().pid}-1")
    monkeypatch.setattr(atomic, "is_alive", is_alive)
    monkeypatch.setattr(owner, "is_alive", is_alive)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    yield worlds
    for world in worlds:
        world.end()


@pytest.mark.parametrize("seed", range(50))
def test_sleep_kill_and_wake(tmp_path, sessions, seed, capsys):
    world = World(tmp_path, seed)
    sessions.append(world)
    for _ in range(20):
        world.step()
    world.boots["three"] = 0
    last = world.lives["three"] = Life(world, "three")
    last.start()
    while not last.is_killed:
        last.go()
        world.check()
    assert world.newest == checkpoint_step(last.local.latest_checkpoint()) and not last.superseded
    for life in world.lives.values():  # whoever wakes now finds that it is another's
        while not life.is_killed and not life.superseded:
            life.go()
            world.check()
        assert life is last or life.is_killed or life.superseded
