"""Train with a mirror while training, mirror and restore are killed with SIGKILL and the machine is lost,
until it is done.

    python fault_driver.py FOLDER KILLS SEED fake|real

`fake` trains no model: it saves, mirrors and restores for real. Prints what happened as JSON.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path

from newllm_lib.runs import (
    Run,
    RunLock,
    bring_back,
    checkpoint_step,
    is_ahead,
    is_complete,
    remove_directory,
    staged_directory,
    start_mirror,
    wait_for_mirror,
    write_status,
)
from newllm_lib.runs.mirror import sync

STEPS, SAVE_EVERY = 40, 2
sync.Mirror.small_files_every = 1.0


def content(step: int) -> bytes:
    return f"weights of step {step} ".encode() * 3000


def fake_training(run: Run, drive: Path) -> None:
    """A training whose whole state is its step; as `newllm_lib.training` does around the steps."""
    with RunLock(run):
        copy = Run(drive / run.name)
        if is_ahead(copy, run):
            bring_back(copy, run)
        (run.path.parent / "since").write_text(str(start_mirror(run, drive)))
        write_status(run, state="running", total_steps=STEPS)
        checkpoint = run.latest_checkpoint()
        step = checkpoint_step(checkpoint) if checkpoint else 0
        if checkpoint:
            assert (checkpoint / "weights").read_bytes() == content(step), "a torn checkpoint was loaded"
        rows = [row for row in run.metrics() if row["step"] <= step]
        run.metrics_path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        note_a_life(run, step)
        while step < STEPS:
            step += 1
            time.sleep(0.04)
            with open(run.metrics_path, "a") as file:
                file.write(json.dumps({"step": step, "loss": 1 / step}) + "\n")
            with open(run.path.parent / "reached", "w") as file:
                file.write(str(step))
            if step % SAVE_EVERY == 0:
                with staged_directory(run.checkpoint(step)) as folder:
                    (folder / "weights").write_bytes(content(step))
                for old in run.checkpoints()[:-2]:
                    remove_directory(old)
        write_status(run, state="done")


def note_a_life(run: Run, step: int) -> None:
    """From which step this life goes on, how far the lives before had come, and whether the machine was lost
    in between.
    """
    outside = run.path.parent  # on no machine that is lost
    reached = int((outside / "reached").read_text() or step) if (outside / "reached").exists() else 0
    with open(outside / "lives", "a") as lives:
        lives.write(
            json.dumps({"from": step, "repeats": max(0, reached - step), "lost": (outside / "lost").exists()})
            + "\n"
        )
    (outside / "reached").write_text(str(step))
    (outside / "lost").unlink(missing_ok=True)


def real_training(run: Run, drive: Path) -> None:
    from newllm_lib.training import train
    from tests.helpers.kill_driver import recipe

    settings = recipe(run.path.parent, run.name)
    settings.mirror_dir = str(drive)
    train(settings)


def start(run: Run, drive: Path, training) -> int:
    pid = os.fork()
    if pid == 0:
        log = os.open(run.path.parent / "out", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        code = 1
        try:
            training(run, drive)
            code = 0
        except BaseException:
            traceback.print_exc()  # into the child's log, before the exit that skips everything
        finally:
            os._exit(code)
    return pid


def kill_mirror(run: Run) -> bool:
    """Kill the process that copies, if there is one."""
    try:
        with open(run.path / "mirror.lock") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return False
            except BlockingIOError:
                os.kill(int(lock.read()), signal.SIGKILL)
                fcntl.flock(lock, fcntl.LOCK_SH)  # free when it is dead
                return True
    except (OSError, ValueError):  # none was started; or it took the lock this instant
        return False


def lose_machine(run: Run) -> None:
    """All but the Drive is gone, and every process that ran there, also a mirror that had only just been
    started.
    """
    time.sleep(0.1)  # one between fork and exec does not bear its name yet
    while found := mirrors(run):
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    if run.path.exists():  # else the kill came before the first thing was written
        shutil.rmtree(run.path)
    (run.path.parent / "lost").touch()


def mirrors(run: Run) -> list[int]:
    """The processes that copy this run, or are about to."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if os.fsencode(run.path.absolute()) in words and any(b"mirror.daemon" in word for word in words):
                found.append(int(folder.name))
    return found


def check_drive(drive: Path, run: Run) -> None:
    """What stands under a name there is whole."""
    for folder in (drive / run.name).iterdir() if (drive / run.name).is_dir() else ():
        if folder.is_dir() and not folder.name.startswith("."):
            assert is_complete(folder) or not folder.exists(), folder


def main() -> None:
    folder, kills, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    training = {"fake": fake_training, "real": real_training}[sys.argv[4]]
    if training is real_training:
        import torch

        import newllm_lib.training  # noqa: F401  once, for all forks

        torch.set_num_threads(1)
    moment, longest = random.Random(seed), 1.6 if training is fake_training else 6.0
    drive, run = folder / "drive", Run(folder / "run")
    drive.mkdir()
    seen = {"kills": 0, "mirrors killed": 0, "machines lost": 0, "finished": 0}
    while seen["kills"] + seen["mirrors killed"] < kills:
        pid = start(run, drive, training)
        time.sleep(moment.uniform(0.0, longest))
        if moment.random() < 0.3:
            seen["mirrors killed"] += kill_mirror(run)
            time.sleep(moment.uniform(0.0, longest / 4))
        os.kill(pid, signal.SIGKILL)
        ended = os.waitpid(pid, 0)[1]
        assert ended in (0, 9), (folder / "out").read_text()[-2000:]
        check_drive(drive, run)
        if ended == 0:  # it was done before the kill came: another run goes on being killed
            seen["finished"] += 1
            lose_machine(run)
            shutil.rmtree(drive / run.name)
            (folder / "reached").unlink(missing_ok=True)
            continue
        seen["kills"] += 1
        if moment.random() < 0.35:
            lose_machine(run)
            seen["machines lost"] += 1
    pid = start(run, drive, training)  # nobody disturbs this one
    assert os.waitpid(pid, 0)[1] == 0, (folder / "out").read_text()[-2000:]
    if training is fake_training:  # the real one waits by itself
        wait_for_mirror(run, lambda line: None, float((folder / "since").read_text()))
    lives = (
        [json.loads(line) for line in (folder / "lives").read_text().splitlines()]
        if (folder / "lives").exists()
        else []
    )
    print(
        json.dumps(
            {
                **seen,
                "lives": lives,
                "rows": list(run.metrics()),
                "copy": list(Run(drive / run.name).metrics()),
            }
        )
    )


if __name__ == "__main__":
    main()
