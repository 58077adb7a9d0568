"""A real training whose machine goes away: continued on another one from the copy alone, with the curve it
would have had.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil

import pytest

from newllm_lib.device import probe
from newllm_lib.errors import Interrupted, NewLLMError, UsageError
from newllm_lib.runs import GpuBusy, Run, ask_to_save, gpu_for, is_finished, mirror_status
from newllm_lib.training import run as running, signals, train
from tests.helpers.small_runs import curve as rows_of, recipe, write_text


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path)
    (tmp_path / "drive").mkdir()
    return tmp_path


def curve(path) -> list:
    return rows_of(Run(path))


def stopped_at(monkeypatch, step: int) -> None:
    """The next training ends there as `newllm runs stop` ends it: saved, and copied."""
    real, steps = signals.Flags.heed, itertools.count(1)

    def ends(self, decision):
        if next(steps) == step:
            self.signals.received = 15
        return real(self, decision)

    monkeypatch.setattr(signals.Flags, "heed", ends)


def test_the_machine_goes_away_and_the_copy_is_continued_with_the_same_curve(folder, monkeypatch, capsys):
    train(recipe(folder, output_dir=str(folder / "whole")))
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        stopped_at(patch, 17)
        train(recipe(folder, mirror_dir="drive"))
    assert "is copied to" in capsys.readouterr().out and mirror_status(Run(folder / "run"))["step"] == 17
    shutil.rmtree(folder / "run")  # all that is left is the Drive folder
    run = train(recipe(folder, mirror_dir="drive"))
    shown = capsys.readouterr().out
    assert "brought back and continued" in shown and "Continuing from checkpoint-17" in shown
    assert curve(run.path) == curve(folder / "whole") == curve(folder / "drive" / "run")
    shutil.rmtree(folder / "run")
    assert (
        is_finished(train(recipe(folder, mirror_dir="drive")))
        and "is finished already" in capsys.readouterr().out
    )


def test_another_run_in_the_same_place_is_not_overwritten(folder):
    train(recipe(folder, mirror_dir="drive", max_steps=2))
    shutil.rmtree(folder / "run")
    with pytest.raises(UsageError, match="drive/run holds a run with another recipe .*learning_rate"):
        train(recipe(folder, mirror_dir="drive", max_steps=2, learning_rate=1e-3))
    assert not (folder / "run").exists()


def test_a_mirror_folder_that_is_not_there_or_is_the_runs_own_is_refused(folder):
    with pytest.raises(UsageError, match="is no folder: make it, or mount Drive"):
        train(recipe(folder, mirror_dir="nowhere"))
    with pytest.raises(UsageError, match="where the run lies itself"):
        train(recipe(folder, mirror_dir=str(folder)))


class Program:
    """What a pickle can do when it is read."""

    def __reduce__(self):
        return (open, ("ran", "w"))


@pytest.mark.parametrize("file", ["scheduler.pt", "optimizer.pt", "rng_state.pth"])
def test_a_pickle_in_the_state_of_a_checkpoint_is_not_run(folder, monkeypatch, file):
    import torch

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        stopped_at(patch, 3)
        train(recipe(folder))
    state = folder / "run" / "checkpoint-3" / file
    torch.save(Program(), state)
    whole = json.loads((state.parent / "MANIFEST.json").read_text())
    whole["files"][file] = state.stat().st_size
    (state.parent / "MANIFEST.json").write_text(json.dumps(whole))
    with pytest.raises(NewLLMError, match="no plain data .*refused") as error:
        train(recipe(folder))
    assert "\n" not in str(error.value) and not (folder / "ran").exists()


def test_a_folder_for_passing_things_that_fails_ends_no_run(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "file"))
    with gpu_for(Run(tmp_path / "one"), 0), gpu_for(Run(tmp_path / "other"), 0):
        assert capsys.readouterr().out.count("Whether another run uses this GPU is not known") == 2
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def full(*_):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "write", full)
    with gpu_for(Run(tmp_path / "one"), 0), pytest.raises(GpuBusy, match="trains another run"):
        with gpu_for(Run(tmp_path / "other"), 0):
            raise AssertionError


def test_one_run_a_gpu_unless_forced(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    one, other = Run("one"), Run("other")
    with gpu_for(one, 0):
        with (
            pytest.raises(GpuBusy, match=r"GPU 0 trains one \(pid \d+\): .*runs stop one.*--force true"),
            gpu_for(other, 0),
        ):
            pass
        with gpu_for(other, 1), gpu_for(Run("third"), 0, force=True):
            pass
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,0")
        with pytest.raises(GpuBusy), gpu_for(other, 1):  # the same GPU by another number
            pass
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    with gpu_for(other, 0):
        pass


def test_training_on_a_gpu_asks_for_it_and_on_a_processor_does_not(folder, monkeypatch):
    asked = []
    monkeypatch.setattr(running, "gpu_for", lambda *words: asked.append(words))
    monkeypatch.setenv("NEWLLM_DEVICE", "t4")
    running._gpu(recipe(folder, force=True), Run("x"), probe())
    monkeypatch.setenv("NEWLLM_DEVICE", "cpu")
    with running._gpu(recipe(folder), Run("x"), probe()):
        pass
    assert [words[1:] for words in asked] == [(0, True)]


def test_a_save_is_made_when_it_is_asked_for_and_training_goes_on(folder, monkeypatch):
    run, asked = Run(folder / "run"), []
    real, steps = signals.SaveRequests.taken, itertools.count(1)

    def ask(self):
        if next(steps) == 5:
            asked.append(ask_to_save(run))
        return real(self)

    monkeypatch.setattr(signals.SaveRequests, "taken", ask)
    train(recipe(folder, keep_checkpoints=9))
    assert (
        asked == [True] and run.checkpoint(5).is_dir() and is_finished(run) and not run.save_request.exists()
    )
    assert not ask_to_save(run)
