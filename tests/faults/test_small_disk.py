"""A real small file system fills and empties while short runs train: each ends or goes on, nothing lost."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time

import pytest

from newllm_lib.cli import main
from newllm_lib.runs import Run, is_complete, is_finished
from newllm_lib.training import saving
from tests.helpers.bad_input import TINY
from tests.helpers.chat_bases import chat_base
from tests.helpers.small_runs import write_text
from tests.helpers.texts import dialogues, write_jsonl

pytestmark = pytest.mark.slow
SFT = (
    "--sized_for cpu --max_seq_length 96 --batch_size 4 --max_steps 8 --lora_rank 4 --save_steps 2 "
    "--logging_steps 1 --sample_tokens 0"
).split()


@pytest.fixture
def disk(tmp_path):
    """12 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(place)]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


class Tide(threading.Thread):
    """Fills the disk to its last byte for a moment, again and again."""

    def __init__(self, file):
        super().__init__(daemon=True)
        self.file, self.ends, self.times = file, threading.Event(), 0

    def run(self) -> None:
        while not self.ends.wait(0.3):
            try:
                with open(self.file, "wb", buffering=0) as file:
                    while True:
                        file.write(b"x" * 4096)
            except OSError:
                self.times += 1
            self.ends.wait(0.2)
            self.file.unlink(missing_ok=True)


def test_20_runs_on_a_disk_that_fills_and_empties(disk, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(saving, "RETRY_AFTER", (0.3, 0.3, 0.3))
    monkeypatch.setenv("NEWLLM_CACHE", str(tmp_path / "cache"))
    write_text(tmp_path)
    (tmp_path / "dialogues").mkdir()
    write_jsonl(tmp_path / "dialogues" / "train.jsonl", [{"messages": m} for m in dialogues(60)])
    base = chat_base(tmp_path / "base", "qwen2")
    tide = Tide(disk / "tide")
    tide.start()
    for number in range(20):
        run = Run(disk / f"run{number}")
        if number % 5 == 4:  # by TRL's trainer
            words = ["train", "dolly", "--base", str(base), "--data_dir", str(tmp_path / "dialogues"), *SFT]
        else:
            words = ["train", "demo", "--data_dir", str(tmp_path / "text"), *TINY]
        words += ["--output_dir", str(run.path)]
        end, newest = time.monotonic() + 120, 0
        while (code := main([*words, "--seed", str(number)])) != 0:
            err = capsys.readouterr().err
            assert code == 1 and "disk is full" in err.splitlines()[-1] and "report it" not in err, err
            assert time.monotonic() < end
            for folder in run.checkpoints():
                assert is_complete(folder)
            last = run.latest_checkpoint()
            step = int(last.name.partition("-")[2]) if last else 0
            assert step >= newest  # what was saved stays
            newest = step
        assert is_finished(run)
        steps = [row["step"] for row in run.metrics()]
        assert steps == sorted(steps) and is_complete(run.best) and run.latest_checkpoint() is not None
        json.loads(run.status_path.read_text())
        subprocess.run(["rm", "-r", str(run.path)], check=True)
    tide.ends.set()
    tide.join()
    assert tide.times > 20 and os.path.ismount(disk)
