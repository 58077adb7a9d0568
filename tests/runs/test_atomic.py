"""Files and folders that a crash cannot tear."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from newllm_lib.errors import NewLLMError
from newllm_lib.runs import (
    MANIFEST,
    MARK,
    Run,
    RunLock,
    atomic,
    atomic_write_bytes,
    atomic_write_text,
    clean_leftovers,
    is_complete,
    missing_files,
    remove_directory,
    staged_directory,
)
from tests.helpers.staged_files import dead, fill


def hidden(folder: Path) -> list[str]:
    return [p.name for p in folder.iterdir() if p.name.startswith(".") and p.name != MARK]


def test_text_is_replaced_in_one_step_and_its_folder_is_made(tmp_path):
    path = tmp_path / "new" / "status.json"
    atomic_write_text(path, "one")
    atomic_write_text(path, "zwei é")
    assert path.read_text(encoding="utf-8") == "zwei é"
    assert not hidden(path.parent)


def test_a_full_disk_names_the_path_and_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "recipe.yaml"
    atomic_write_text(path, "old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(NewLLMError, match=r"disk is full.*recipe\.yaml.*Free space"):
        atomic_write_text(path, "new")
    with pytest.raises(NewLLMError, match=r"disk is full.*best.*Free space"):
        fill(tmp_path / "best", "x")
    assert path.read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["recipe.yaml"]


def test_a_file_system_that_syncs_no_folders_is_no_obstacle(tmp_path, monkeypatch):
    sync = os.fsync

    def of_files_alone(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")  # as some network folders say
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", of_files_alone)
    atomic_write_text(tmp_path / "recipe.yaml", "new")
    fill(tmp_path / "best", "x")
    assert (tmp_path / "recipe.yaml").read_text() == "new" and is_complete(tmp_path / "best")

    def failing(descriptor):
        raise OSError(errno.EIO if stat.S_ISDIR(os.fstat(descriptor).st_mode) else errno.EINVAL, "no")

    monkeypatch.setattr(os, "fsync", failing)  # a file must be on the disk, and a disk may fail
    with pytest.raises(OSError):
        atomic.sync(tmp_path / "recipe.yaml")
    with pytest.raises(OSError):
        atomic.sync(tmp_path)


def test_a_file_too_large_for_the_system_keeps_the_old_one(tmp_path):
    """The real thing: the system itself refuses to write on (a limit on file size stands in for the disk's
    end).
    """
    path = tmp_path / "weights"
    atomic_write_bytes(path, b"old")
    code = (
        "import resource, sys\nfrom newllm_lib.runs import atomic_write_bytes\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10000, 10000))\n"
        "atomic_write_bytes(sys.argv[1], b'x' * 100000)"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert "NewLLMError: The disk is full" in ended.stderr
    assert path.read_bytes() == b"old" and not hidden(tmp_path)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        # safetensors
        (RuntimeError("Error while serializing: I/O error: No space left (os error 28)"), "disk is full"),
        (RuntimeError("Error while serializing: I/O error: Quota exceeded (os error 122)"), "quota is full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "quota is full"),
        (OSError(errno.EFBIG, "File too large"), "disk is full"),
    ],
)
def test_a_full_disk_is_known_by_what_libraries_make_of_it(tmp_path, error, says):
    fill(tmp_path / "best", "old")
    with pytest.raises(NewLLMError, match=says), staged_directory(tmp_path / "best"):
        raise error
    assert (tmp_path / "best" / "model").read_text() == "old" and not hidden(tmp_path)


def test_a_full_disk_is_known_by_what_torch_makes_of_it(tmp_path, monkeypatch):
    """It does not tell the system's number: the disk is asked, which may have room again by then."""

    def said_of(
        error: OSError | None, cause="[enforce fail at inline_container.cc:672] . unexpected pos 5 vs 4"
    ):
        def refuses(**_):
            raise error

        with monkeypatch.context() as patch:
            if error is not None:
                patch.setattr(atomic.tempfile, "TemporaryFile", refuses)
            with pytest.raises(Exception, match=".") as raised, staged_directory(tmp_path / "best"):
                raise RuntimeError(cause)
        return str(raised.value) if isinstance(raised.value, NewLLMError) else None

    assert "the disk failed; nothing was saved yet" in said_of(None)
    assert "The disk is full" in said_of(OSError(errno.ENOSPC, "full"))
    assert "the disk failed" in said_of(None, "basic_ios::clear: iostream error")
    assert "Your quota is full" in said_of(OSError(errno.EDQUOT, "full"))
    assert "disk is read-only" in said_of(OSError(errno.EROFS, "read-only"))
    assert said_of(None, "PytorchStreamReader failed: inline_container") is None  # it is damaged
    monkeypatch.setattr(atomic, "_free", lambda place: 0)
    assert "The disk is full" in said_of(None)


def test_a_read_only_or_forbidden_place_says_where_else(tmp_path, monkeypatch):
    def forbidden(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "replace", forbidden)
    with pytest.raises(NewLLMError, match="no permission.*--output_dir"):
        atomic_write_text(tmp_path / "x", "text")
    monkeypatch.undo()
    (tmp_path / "file").write_text("")
    with pytest.raises(NewLLMError, match="a file stands where a folder is needed"):
        atomic_write_text(tmp_path / "file" / "x", "text")


def test_an_error_of_another_kind_is_not_explained_away(tmp_path):
    with pytest.raises(ZeroDivisionError), staged_directory(tmp_path / "best"):
        _ = 1 / 0
    assert not list(tmp_path.iterdir())


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    best = tmp_path / "best"
    with staged_directory(best) as staging:
        (staging / "model").write_text("12345")
        assert not best.exists()
    assert is_complete(best)
    assert json.loads((best / MANIFEST).read_text()) == {"files": {"model": 5}}


def test_a_failed_replacement_leaves_the_old_folder(tmp_path):
    best = tmp_path / "best"
    fill(best, "old")
    with pytest.raises(KeyError), staged_directory(best) as staging:
        (staging / "model").write_text("half of the n")
        raise KeyError("model")
    assert (best / "model").read_text() == "old" and is_complete(best) and not hidden(tmp_path)


@pytest.mark.parametrize("exchange", [True, False], ids=["one step", "two renames"])
def test_a_folder_is_replaced(tmp_path, monkeypatch, exchange):
    if not exchange:
        monkeypatch.setattr(atomic, "_exchange", lambda *_: False)
    fill(tmp_path / "best", "old")
    fill(tmp_path / "best", "newer")
    assert (tmp_path / "best" / "deep" / "state").read_text() == "newer" * 3
    assert is_complete(tmp_path / "best") and not hidden(tmp_path)


def _cut(folder):
    (folder / "deep" / "state").write_text("x")


def _lose(folder):
    (folder / "deep" / "state").unlink()


def _link(folder):
    (folder / "deep" / "state").unlink()
    (folder / "deep" / "state").symlink_to(folder / "model")


@pytest.mark.parametrize("damage", [_cut, _lose, _link])
def test_a_damaged_folder_is_not_whole_and_the_file_is_named(tmp_path, damage):
    fill(tmp_path / "best", "abc")
    damage(tmp_path / "best")
    assert missing_files(tmp_path / "best") == ["deep/state"] and not is_complete(tmp_path / "best")


@pytest.mark.parametrize(
    "manifest", ["", "[]", '{"files": 3}', '{"files": {"../outside": 1}}', '{"files": {"/etc": 1}}']
)
def test_a_senseless_manifest_is_not_believed(tmp_path, manifest):
    (tmp_path / "outside").write_text("1")
    folder = tmp_path / "best"
    folder.mkdir()
    (folder / MANIFEST).write_text(manifest)
    assert not is_complete(folder)


def test_a_folder_never_finished_is_not_whole(tmp_path):
    assert missing_files(tmp_path) == [MANIFEST]
    assert not is_complete(tmp_path / "not there")


def test_leftovers_of_the_dead_go_and_those_of_the_living_stay(tmp_path):
    living = atomic._beside(tmp_path / "best", "tmp")
    living.mkdir()
    (tmp_path / ".best.tmp-999999-123-0").mkdir()
    (tmp_path / ".status.json.tmp-999999-123-1").write_text("half")
    (tmp_path / ".hidden by the user").write_text("")
    clean_leftovers(tmp_path)
    assert sorted(hidden(tmp_path)) == sorted([living.name, ".hidden by the user"])


def test_a_kill_between_the_two_renames_ends_with_the_new_folder(tmp_path):
    best = tmp_path / "best"
    fill(best, "old")
    os.rename(best, dead(best, "old"))
    fill(best, "new")
    os.rename(best, dead(best, "tmp"))
    clean_leftovers(tmp_path)
    assert (best / "model").read_text() == "new" and not hidden(tmp_path)


def test_a_kill_before_the_new_folder_was_whole_ends_with_the_old_one(tmp_path):
    best = tmp_path / "best"
    fill(best, "old")
    os.rename(best, dead(best, "old"))
    dead(best, "tmp").mkdir()
    clean_leftovers(tmp_path)
    assert (best / "model").read_text() == "old" and not hidden(tmp_path)


def test_a_removed_folder_does_not_come_back(tmp_path):
    fill(tmp_path / "checkpoint-1", "old")
    os.rename(tmp_path / "checkpoint-1", dead(tmp_path / "checkpoint-1", "tmp"))  # killed in remove_directory
    clean_leftovers(tmp_path)
    assert not list(tmp_path.iterdir())
    fill(tmp_path / "checkpoint-2", "old")
    remove_directory(tmp_path / "checkpoint-2")
    assert not list(tmp_path.iterdir())


WRITER = """
import sys
from newllm_lib.runs import Run, RunLock, atomic, staged_directory
if sys.argv[2] == "two renames":
    atomic._exchange = lambda *_: False
run = Run(sys.argv[1])
with RunLock(run):
    print("ready", flush=True)
    for version in range(10**9):
        with staged_directory(run.best) as folder:
            for name in ("model", "tokenizer"):
                (folder / name).write_text(str(version) * 1000)
"""


@pytest.mark.parametrize("way", ["one step", "two renames"])
def test_sigkill_at_any_moment_leaves_a_whole_folder(tmp_path, way):
    run, chance = Run(tmp_path / "run"), random.Random(7)
    for _ in range(10):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(run.path), way], stdout=subprocess.PIPE)
        writer.stdout.readline()
        while not run.best.exists():
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.03))
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        with RunLock(run):
            assert is_complete(run.best)
            assert (run.best / "model").read_text() == (run.best / "tokenizer").read_text()
            assert not hidden(run.path)
