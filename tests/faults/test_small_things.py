"""What is small never ends a run: who reads its output, where that goes, a disk that is full for a while."""

from __future__ import annotations

import builtins
import errno
import io
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from newllm_lib import console
from newllm_lib.cli import main
from newllm_lib.data.tokenizer import train_bpe, wrap
from newllm_lib.errors import NewLLMError
from newllm_lib.runs import MANIFEST, MARK, Run, atomic, is_complete, is_finished, read_status
from newllm_lib.training import checkpointing, saving, signals
from tests.helpers.bad_input import TINY, one_line
from tests.helpers.small_runs import write_text

TRAIN = ["train", "demo", "--data_dir", "text", "--output_dir", "run", *TINY]
SHORT = ["--max_steps", "3"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path)
    monkeypatch.setattr(console, "_needs_reader", True)
    return tmp_path


class Broken(io.StringIO):
    """A stream that fails as a pipe, a terminal or a disk does, after a few lines."""

    def __init__(self, error: Exception, lines: int = 3):
        super().__init__()
        self.error, self.left = error, lines

    def write(self, text: str) -> int:
        self.left -= text.count("\n")
        if self.left < 0:
            raise self.error
        return super().write(text)

    def fileno(self) -> int:
        raise OSError(errno.EBADF, "no descriptor")


STREAMS = {
    "the pipe's reader left": Broken(BrokenPipeError(errno.EPIPE, "Broken pipe")),
    "the terminal is gone": Broken(OSError(errno.EIO, "Input/output error")),
    "full": Broken(OSError(errno.ENOSPC, "No space left on device")),
    "closed": Broken(ValueError("I/O operation on closed file")),
    "none": None,
    "ascii": io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True),
}


@pytest.mark.parametrize("how", STREAMS)
def test_a_run_ends_whoever_reads_it(here, monkeypatch, how):
    monkeypatch.setattr(sys, "stdout", STREAMS[how])
    assert main([*TRAIN, *SHORT]) == 0
    run = Run("run")
    log = run.log.read_text(encoding="utf-8")
    assert is_finished(run) and "Finished. Best validation" in log and " ✓" in log
    if how == "ascii":
        shown = STREAMS[how].buffer.getvalue().decode("ascii")
        assert "\\u2713" in shown and "Finished" in shown


@pytest.mark.parametrize(
    "words",
    [
        ["export", "run", "--output_dir", "made"],
        ["expand", "run", "--context_dim", "32", "--output_dir", "made"],
        ["data", "get", "text", "--output", "made"],
        ["data", "mix", "--weights", "text=1", "--documents", "30", "--output", "made"],
        ["data", "preferences", "--count", "20", "--output", "made"],
        ["compare", "run", "run", "--output_dir", "made"],
        ["runs", "restore", "run", "--from", "copies", "--into", "made"],
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_what_is_to_be_made_is_made_whoever_reads_it(here, monkeypatch, words):
    assert main([*TRAIN, *SHORT]) == 0
    shutil.copytree("run", "copies/run")
    monkeypatch.setattr(sys, "stdout", Broken(BrokenPipeError(errno.EPIPE, "Broken pipe"), 0))
    assert main(words) == 0 and Path("made").exists()
    if words[0] == "compare":
        assert Path("made/comparison.md").is_file()


def test_a_command_that_only_shows_ends_when_its_reader_leaves(here, monkeypatch):
    monkeypatch.setattr(sys, "stdout", Broken(BrokenPipeError(errno.EPIPE, "Broken pipe")))
    assert main(["recipes"]) == 0


def test_a_pipe_and_closed_streams_in_a_process_of_its_own(here):
    words = " ".join([sys.executable, "-m", "newllm_lib", *TRAIN, *SHORT])
    ascii_only = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    script = f"{words} | head -n 1; echo ${{PIPESTATUS[0]}}; {words} >&- 2>&- <&-; echo $?"
    script += f"; {words} > /dev/full"
    done = subprocess.run(
        ["bash", "-c", f"{script}; echo $?"], env=ascii_only, capture_output=True, text=True
    )
    assert done.stdout.splitlines()[1:] == ["0", "0", "0"], done
    assert is_finished(Run("run"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_terminal_that_goes_saves_and_stops(here, monkeypatch, capsys, number):
    real, steps = signals.Flags.heed, itertools.count(1)

    def heed(self, decision):
        if next(steps) == 3:
            os.kill(os.getpid(), number)
        return real(self, decision)

    monkeypatch.setattr(signals.Flags, "heed", heed)
    assert main(TRAIN) == 130
    one_line(capsys.readouterr().err, "saved: the same command continues")
    run = Run("run")
    assert run.latest_checkpoint().name == "checkpoint-3" and read_status(run)["state"] == "interrupted"
    if number == signal.SIGHUP:  # under nohup
        before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        steps = itertools.count(1)
        try:
            assert main(TRAIN) == 0 and is_finished(run)
        finally:
            signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("moment", ["Training the tokenizer", "Packing"])
def test_sigterm_ends_what_works_on_one_long_line(here, moment):
    """60 MB, on which Rust works for long; the main thread must hear the signal meanwhile."""
    chance = random.Random(0)
    words = ["".join(chance.choices("abcdefghij", k=chance.randint(2, 9))) for _ in range(5000)]
    own = ["--tokenizer", "known"] if moment == "Packing" else []
    if own:
        wrap(train_bpe(iter([["a b c"]]), 300)).save_pretrained("known")
    Path("text/train.txt").write_text(" ".join(chance.choices(words, k=6_000_000)))
    process = subprocess.Popen(
        [sys.executable, "-m", "newllm_lib", *TRAIN, *own],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not next(process.stdout).startswith(moment):
        pass
    time.sleep(1.0)
    began = time.monotonic()
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and time.monotonic() - began < 8, err
    one_line(err, "Interrupted")


class Disk:
    """What is written below `run` finds no room between two steps."""

    def __init__(self, monkeypatch, begin: int, end: int, number: int):
        self.begin, self.end, self.step, self.failed = begin, end, 0, set()
        real_open, real_heed = builtins.open, signals.Flags.heed

        def opened(path, mode="r", *words, **more):
            if self.is_full() and set("wa") & set(mode) and "run" in Path(path).parts:
                self.failed.add(Path(path).name)
                raise OSError(number, os.strerror(number))
            return real_open(path, mode, *words, **more)

        def heed(flags, decision):
            self.step += 1
            return real_heed(flags, decision)

        monkeypatch.setattr(builtins, "open", opened)
        monkeypatch.setattr(signals.Flags, "heed", heed)

    def is_full(self) -> bool:
        return self.begin <= self.step < self.end


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_or_quota_that_is_full_for_a_while_costs_nothing(here, monkeypatch, capsys, number):
    monkeypatch.setattr(saving, "RETRY_AFTER", (0.0,))
    disk = Disk(monkeypatch, 2, 9, number)
    assert main([*TRAIN, "--logging_steps", "1", "--save_minutes", "1000", "--evals_per_epoch", "1"]) in (
        0,
        1,
    )
    run = Run("run")
    assert {"train.log"} < disk.failed
    said = capsys.readouterr().out
    assert said.count("metrics.jsonl could not be written") == 1 and "metrics.jsonl is written again" in said
    steps = [row["step"] for row in run.metrics() if "loss" in row]
    assert steps == list(range(1, len(steps) + 1)) and is_finished(run)
    assert "Finished" in run.log.read_text()


SMALL = ("curves.png", "data_report.json", "metrics.jsonl", "report.json", "samples.jsonl", "samples.md")
SMALL += ("status.json", "timing.json", "train.log", "training_log.json")


def test_what_is_never_written_ends_no_run(here, monkeypatch, capsys):
    """No room for any small file, from the first to the last."""
    real, refused = builtins.open, set()

    def opened(path, mode="r", *words, **more):
        name = Path(path).name if isinstance(path, (str, Path)) else ""
        small = next((n for n in SMALL if name == n or name.startswith(f".{n}.tmp-")), None)
        if small and set("wa") & set(mode):
            refused.add(small)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(path, mode, *words, **more)

    monkeypatch.setattr(builtins, "open", opened)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    assert main([*TRAIN, "--logging_steps", "1", "--sample_tokens", "4"]) == 0
    run = Run("run")
    assert {"metrics.jsonl", "status.json", "train.log", "samples.jsonl", "data_report.json"} <= refused
    assert is_complete(run.best) and run.latest_checkpoint() is not None and not run.metrics_path.exists()
    said = capsys.readouterr().out
    assert all(said.count(f"{name} could not be written") == 1 for name in ("metrics.jsonl", "status.json"))


def test_a_save_is_tried_again(here, monkeypatch, capsys):
    monkeypatch.setattr(saving, "RETRY_AFTER", (0.0, 0.0))
    real, times = checkpointing.Checkpoints._save_progress, itertools.count(1)

    def full_twice(self, folder, step):
        if next(times) in (1, 2):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(self, folder, step)

    monkeypatch.setattr(checkpointing.Checkpoints, "_save_progress", full_twice)
    assert main(TRAIN) == 0 and is_finished(Run("run"))
    said = capsys.readouterr().out
    assert (
        said.count("Trying again in 0 s") == 2 and "nothing was saved yet" in said and "is intact" not in said
    )


def test_only_what_is_there_is_called_intact(tmp_path):
    run = tmp_path / "run"
    with pytest.raises(NewLLMError, match="nothing was saved yet"), atomic.explained(run / "checkpoint-1"):
        raise OSError(errno.ENOSPC, "full")
    with atomic.staged_directory(run / "checkpoint-1"):
        pass
    with (
        pytest.raises(Exception, match=r"the last save is intact \(checkpoint-1\)"),
        atomic.explained(run / "best"),
    ):
        raise OSError(errno.ENOSPC, "full")


def test_a_folder_that_was_deleted_is_named(here, monkeypatch, capsys):
    (here / "gone").mkdir()
    monkeypatch.chdir(here / "gone")
    (here / "gone").rmdir()
    assert main(["runs"]) == 1
    one_line(capsys.readouterr().err, "The folder you are in was deleted")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--batch_size", "1000000000000"], "batch_size must be at most 1,000,000"),
        (["--num_layers", "1000000000"], "num_layers must be at most 1,000"),
        (["--seed", "99999999999999999999"], "seed must be at most 4,294,967,295"),
    ],
)
def test_numbers_beyond_all_measure_are_refused_at_once(here, capsys, words, says):
    assert main([*TRAIN, *words]) == 2
    one_line(capsys.readouterr().err, says)


def test_pipes_keep_nobody_waiting(here, capsys):
    """Where data, a recipe or a run's record is expected."""
    for name in ("pipe", "text/validation.txt", "made.yaml"):
        os.mkfifo(name)
    assert main(["train", "text", "--data", "pipe", "--output_dir", "new", *TINY]) == 2
    one_line(capsys.readouterr().err, "neither a file nor a folder (a pipe, or a device)")
    assert main(["train", "made.yaml"]) == 2
    assert main([*TRAIN, *SHORT]) == 0
    Path("checkpoints").mkdir()
    shutil.copytree("run", "checkpoints/run")
    for name in ("status.json", "recipe.yaml", "metrics.jsonl", "train.log", "run.lock", MARK):
        path = Path("checkpoints/run", name)
        path.unlink(missing_ok=True)
        os.mkfifo(path)
        assert main(["runs"]) == 0 and main(["runs", "logs", "checkpoints/run"]) in (0, 2)
    assert "report it" not in capsys.readouterr().err


def test_a_closed_input_is_an_empty_one(here, monkeypatch, capsys):
    assert main([*TRAIN, *SHORT]) == 0
    monkeypatch.setattr(sys, "stdin", None)
    assert main(["chat", "run"]) == 0 and "Bye" in capsys.readouterr().out


def test_a_generation_configuration_may_say_anything(here, monkeypatch, capsys):
    assert main([*TRAIN, *SHORT]) == 0
    for path in Path("run/best").glob("*.json"):
        if path.name == "generation_config.json":
            path.write_text('{"eos_token_id": [[1], "x", null, 2]}')
    sizes = {p.name: p.stat().st_size for p in Path("run/best").iterdir() if p.name != MANIFEST}
    Path("run/best", MANIFEST).write_text(json.dumps({"files": sizes}))
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n/quit\n"))
    assert main(["chat", "run"]) == 0


def test_a_name_to_push_to_is_looked_at_first(here, monkeypatch, capsys):
    assert main([*TRAIN, *SHORT]) == 0
    monkeypatch.setenv("HF_TOKEN", "a token of nobody")
    for name in ("", "one", "a b/c\nd"):
        assert main(["export", "run", "--push", name]) == 2
        one_line(capsys.readouterr().err, "--push", "OWNER/NAME")
