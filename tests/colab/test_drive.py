"""Runs on Drive: whole copies, kept until a newer one is whole, and brought back to be continued."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest

from newllm_lib.colab import drive
from newllm_lib.errors import NewLLMError, UsageError
from newllm_lib.runs import Run, is_whole, read_status, staged_directory, write_status
from tests.colab.fake_run import append, finished, rows


@pytest.fixture
def run(tmp_path) -> Run:
    """A run with a best model, two checkpoints, and what must not be copied: lock, leftovers, a link, a torn folder."""
    run = finished(tmp_path / "checkpoints" / "new_llm_demo")
    run.recipe_path.write_text("recipe: demo\n")
    for name in ("best", "checkpoint-100", "checkpoint-200", "checkpoint-300"):
        with staged_directory(run.path / name) as folder:
            (folder / "model.safetensors").write_bytes(name.encode() * 1000)
            (folder / "deeper").mkdir()
            (folder / "deeper" / "a.json").write_text("{}")
    (run.path / "checkpoint-300" / "model.safetensors").write_bytes(b"torn")
    run.lock_path.write_text("{}")
    (run.path / ".last.tmp-1-1-0").mkdir()
    (run.path / ".last.tmp-1-1-0" / "half").write_text("x")
    (run.path / "link").symlink_to("/etc/hostname")
    return run


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_save_copies_what_is_whole_and_nothing_else(run, tmp_path, capsys):
    copy = drive.save(run, tmp_path / "backup")
    assert copy == tmp_path / "backup" / "new_llm_demo" and is_whole(copy)
    assert sorted(p.name for p in copy.iterdir()) == [
        "WHOLE.json", "best", "checkpoint-100", "checkpoint-200", "metrics.jsonl", "recipe.yaml", "status.json",
    ]  # fmt: skip
    assert (copy / "best/model.safetensors").read_bytes() == b"best" * 1000
    assert "Saved new_llm_demo" in capsys.readouterr().out and drive.saved(tmp_path / "backup") == ["new_llm_demo"]


def test_saving_again_replaces_the_copy(run, tmp_path):
    drive.save(run, tmp_path / "backup")
    shutil.rmtree(run.path / "checkpoint-100")
    append(run, [{"step": 320, "loss": 1.0}])
    copy = drive.save(run, tmp_path / "backup")
    assert is_whole(copy) and not (copy / "checkpoint-100").exists()
    assert (copy / "metrics.jsonl").read_bytes() == run.metrics_path.read_bytes()
    assert [p.name for p in (tmp_path / "backup").iterdir()] == ["new_llm_demo"]  # nothing temporary is left


def test_restore_brings_the_run_back_and_it_can_be_saved_again(run, tmp_path):
    write_status(run, state="running", step=200)  # the copy was made while it trained
    copy = drive.save(run, tmp_path / "backup")
    back = drive.restore("new_llm_demo", tmp_path / "backup", tmp_path / "new machine")
    expected = contents(copy)
    del expected["WHOLE.json"]
    assert contents(back.path) == expected
    assert [p.name for p in back.checkpoints()] == ["checkpoint-100", "checkpoint-200"]
    assert read_status(back)["state"] == "dead"  # so that training continues it
    assert is_whole(drive.save(back, tmp_path / "backup"))


def test_what_fails_keeps_the_copy_before(run, tmp_path, monkeypatch):
    copy = drive.save(run, tmp_path / "backup")
    before = contents(copy)
    copyfile = shutil.copyfile
    for number in (errno.ENOSPC, errno.EIO, errno.ENOTCONN, errno.EROFS):

        def broken(source, target, number=number):
            if target.name == "a.json":
                raise OSError(number, "broken")
            return copyfile(source, target)

        monkeypatch.setattr(drive.shutil, "copyfile", broken)
        with pytest.raises(NewLLMError) as error:
            drive.save(run, tmp_path / "backup")
        assert "\n" not in str(error.value)
        assert contents(copy) == before and [p.name for p in (tmp_path / "backup").iterdir()] == ["new_llm_demo"]


def test_a_copy_that_was_cut_short_is_noticed(run, tmp_path, monkeypatch):
    monkeypatch.setattr(drive.shutil, "copyfile", lambda source, target: target.write_bytes(source.read_bytes()[:-1]))
    with pytest.raises(NewLLMError, match="cut short"):
        drive.save(run, tmp_path / "backup")
    assert drive.saved(tmp_path / "backup") == []


def test_too_little_space_is_said_before_anything_is_copied(run, tmp_path, monkeypatch):
    (tmp_path / "backup").mkdir()
    monkeypatch.setattr(drive.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(NewLLMError, match="0.0 MiB free"):
        drive.save(run, tmp_path / "backup")
    assert not any((tmp_path / "backup").iterdir())


def test_a_checkpoint_that_is_replaced_while_it_is_copied_is_left_out(run, tmp_path, monkeypatch):
    copyfile = shutil.copyfile

    def pruned_meanwhile(source, target):
        if source.parent.name == "checkpoint-100":
            shutil.rmtree(source.parent, ignore_errors=True)
        return copyfile(source, target)

    monkeypatch.setattr(drive.shutil, "copyfile", pruned_meanwhile)
    copy = drive.save(run, tmp_path / "backup")
    assert is_whole(copy) and (copy / "checkpoint-200").is_dir() and not (copy / "checkpoint-100").exists()


def test_restore_refuses_what_is_not_there_not_whole_or_in_the_way(run, tmp_path):
    with pytest.raises(UsageError, match="There is no run"):
        drive.restore("new_llm_demo", tmp_path / "nowhere", tmp_path / "here")
    copy = drive.save(run, tmp_path / "backup")
    with pytest.raises(UsageError, match="is here already"):
        drive.restore("new_llm_demo", tmp_path / "backup", tmp_path / "checkpoints")
    (copy / "best" / "model.safetensors").write_bytes(b"")
    with pytest.raises(NewLLMError, match="best/model.safetensors"):
        drive.restore("new_llm_demo", tmp_path / "backup", tmp_path / "here")
    assert not (tmp_path / "here").exists()


def test_on_colab_runs_go_to_my_drive(run, tmp_path, colab, monkeypatch):
    monkeypatch.setattr(drive.mount, "__defaults__", (tmp_path / "drive",))
    assert drive.save(run) == tmp_path / "drive" / "MyDrive" / "new-llm" / "new_llm_demo"
    assert colab.mounted == [str(tmp_path / "drive")]
    assert drive.saved() == ["new_llm_demo"]
    assert drive.restore("new_llm_demo", into=tmp_path / "here").is_finished


def test_a_drive_that_is_refused_is_one_line(run, tmp_path, colab):
    colab.refuse = ValueError("mount failed: access denied\nlong story")
    with pytest.raises(NewLLMError, match="access denied") as error:
        drive.mount(tmp_path / "drive")
    assert "long story" not in str(error.value)


def test_outside_colab_a_folder_is_asked_for(run):
    with pytest.raises(UsageError, match="give a folder"):
        drive.save(run)


def test_a_run_is_saved_while_it_grows(run, tmp_path, monkeypatch):
    copyfile = shutil.copyfile

    def grow(source, target):
        append(run, rows()[:1])
        return copyfile(source, target)

    monkeypatch.setattr(drive.shutil, "copyfile", grow)
    assert is_whole(drive.save(run, tmp_path / "backup"))
