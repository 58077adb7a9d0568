"""A run's second place: what is copied, in which order, what goes when room is short, and what comes back."""

from __future__ import annotations

import json
import shutil
import sys
import tracemalloc
import zipfile

import pytest

from newllm_lib.errors import NewLLMError, UsageError
from newllm_lib.runs import (
    MARK,
    Mirror,
    Run,
    bring_back,
    is_ahead,
    is_complete,
    link_model,
    read_status,
    restore,
    saved,
    staged_directory,
    write_status,
)
from newllm_lib.runs.mirror import copy as copying, sync
from newllm_lib.runs.mirror.owner import Superseded, claim_copy
from tests.helpers.fake_run import append, finished, rows


def add(run: Run, name: str, content: str = "") -> None:
    with staged_directory(run.path / name) as folder:
        (folder / "weights.json").write_text((content or name) * 1000)
        (folder / "deeper").mkdir()
        (folder / "deeper" / "a.json").write_text("{}")


@pytest.fixture
def run(tmp_path) -> Run:
    """A run with a best model, two checkpoints, and what must not be copied: lock, leftovers, a link, a torn
    folder.
    """
    run = finished(tmp_path / "checkpoints" / "new_llm_demo")
    run.recipe_path.write_text("recipe: demo\n")
    for name in ("best", "checkpoint-100", "checkpoint-200", "checkpoint-300", "superseded-checkpoint-400"):
        add(run, name)
    (run.path / "checkpoint-300" / "weights.json").write_bytes(b"torn")
    run.lock_path.write_text("{}")
    (run.path / ".last.tmp-1-1-0").mkdir()
    (run.path / ".last.tmp-1-1-0" / "half").write_text("x")
    (run.path / "link").symlink_to("/etc/hostname")
    return run


@pytest.fixture
def backup(tmp_path):
    (tmp_path / "backup").mkdir()
    return tmp_path / "backup"


def names(folder) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def contents(folder) -> dict[str, bytes]:
    extra = ("MANIFEST.json", "SUMS.json")
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and p.name not in extra
    }


def test_what_is_whole_is_copied_and_nothing_else(run, backup):
    copier = Mirror(run, backup)
    assert copier.is_due()
    copier.copy()
    copy = backup / "new_llm_demo"
    assert names(copy) == [
        MARK,
        "best",
        "checkpoint-100",
        "checkpoint-200",
        "metrics.jsonl",
        "recipe.yaml",
        "status.json",
    ]
    assert all(is_complete(copy / n) for n in ("best", "checkpoint-100", "checkpoint-200"))
    assert (copy / "best/weights.json").read_bytes() == b"best" * 1000 and saved(backup) == ["new_llm_demo"]
    assert copier.newest_step() == 200 and not copier.is_due()


def test_only_what_is_new_is_copied_again(run, backup, monkeypatch):
    copier, copied = Mirror(run, backup), []
    copier.copy()
    real = sync.copy_folder
    monkeypatch.setattr(sync, "copy_folder", lambda a, b, **more: copied.append(a.name) or real(a, b, **more))
    copier.copy()
    Mirror(run, backup).copy()  # another life of the process: it looks at the bytes, and copies nothing
    assert copied == []
    add(run, "best", "better")
    add(run, "checkpoint-400")
    shutil.rmtree(run.path / "checkpoint-100")
    append(run, [{"step": 320, "loss": 1.0}])
    copier.copy()
    assert copied == ["best", "checkpoint-400"]
    copy = backup / "new_llm_demo"
    assert (
        not (copy / "checkpoint-100").exists() and (copy / "best/weights.json").read_text() == "better" * 1000
    )
    assert (copy / "metrics.jsonl").read_bytes() == run.metrics_path.read_bytes()
    assert [n for n in names(copy) if n.startswith(".")] == [MARK]


def test_a_checkpoint_of_the_same_name_with_other_bytes_is_another(run, backup):
    Mirror(run, backup).copy()
    shutil.rmtree(run.path / "checkpoint-200")
    add(run, "checkpoint-200", "CHECKPOINT-200")  # of the same size
    Mirror(run, backup).copy()
    assert (backup / "new_llm_demo/checkpoint-200/weights.json").read_text() == "CHECKPOINT-200" * 1000


def test_last_is_not_copied_twice_and_comes_back(run, backup, tmp_path):
    add(run, "checkpoint-500")
    with staged_directory(run.path / "checkpoint-500") as folder:
        (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
        (folder / "trainer_state.json").write_text("{}")
    link_model(run.path / "checkpoint-500", run.last)
    Mirror(run, backup).copy()
    assert not (backup / "new_llm_demo" / "last").exists()
    back = restore("new_llm_demo", backup, tmp_path / "here")
    assert contents(back.last) == contents(run.last) and "trainer_state.json" not in contents(back.last)


def test_the_oldest_checkpoints_go_when_room_is_short_but_never_the_newest(run, backup, monkeypatch):
    """A place with room for best/, two checkpoints and the small files."""
    copy, size = (
        Run(backup / "new_llm_demo"),
        sum(len(c) for c in contents(run.path / "checkpoint-100").values()),
    )
    room = [2 * size + size // 2]
    monkeypatch.setattr(sync, "_RESERVE", 0)
    monkeypatch.setattr(
        sync,
        "_free",
        lambda folder: (
            room[0] - sum(len(c) for n, c in contents(copy.path).items() if n.startswith("checkpoint"))
        ),
    )
    copier = Mirror(run, backup)
    for step in (600, 700):
        copier.copy()
        add(run, f"checkpoint-{step}")
        copier.copy()
        assert copy.latest_checkpoint().name == f"checkpoint-{step}" and len(copy.checkpoints()) == 2
        assert not copier.is_due()
    room[0] = 2 * size - size // 2  # the user filled the place
    add(run, "checkpoint-800")
    with pytest.raises(NewLLMError, match="full .*step 700 there is whole"):
        copier.copy()
    assert [p.name for p in copy.checkpoints()] == ["checkpoint-700"] and copier.is_due()
    room[0] = 10**6
    copier.copy()
    assert [p.name for p in copy.checkpoints()] == [p.name for p in run.checkpoints()]


def test_restore_brings_the_run_back_and_it_can_be_copied_again(run, backup, tmp_path):
    write_status(run, state="running", step=200)  # the copy was made while it trained
    Mirror(run, backup).copy()
    back = restore("new_llm_demo", backup, tmp_path / "new machine")
    ours, theirs = contents(back.path), contents(backup / "new_llm_demo")
    assert json.loads(ours.pop(MARK))["what"] == "run" and json.loads(theirs.pop(MARK))["what"] == "mirror"
    assert {k: v for k, v in ours.items() if not k.startswith("last/")} == theirs
    assert [p.name for p in back.checkpoints()] == ["checkpoint-100", "checkpoint-200"]
    assert read_status(back)["state"] == "dead"  # so that training continues it
    Mirror(back, backup).copy()


def test_a_damaged_checkpoint_gives_way_to_an_older_one(run, backup, tmp_path, capsys):
    Mirror(run, backup).copy()
    damaged = backup / "new_llm_demo" / "checkpoint-200" / "weights.json"
    damaged.write_bytes(b"X" + damaged.read_bytes()[1:])  # of its full size
    back = restore("new_llm_demo", backup, tmp_path / "here")
    assert [p.name for p in back.checkpoints()] == [
        "checkpoint-100"
    ] and "is damaged" in capsys.readouterr().out
    damaged = backup / "new_llm_demo" / "checkpoint-100" / "weights.json"
    damaged.write_bytes(b"X" + damaged.read_bytes()[1:])
    with pytest.raises(NewLLMError, match="nothing can be continued"):
        restore("new_llm_demo", backup, tmp_path / "there")


def test_restore_refuses_what_is_not_there_not_whole_or_in_the_way(run, backup, tmp_path):
    with pytest.raises(UsageError, match="There is no run"):
        restore("new_llm_demo", backup, tmp_path / "here")
    Mirror(run, backup).copy()
    with pytest.raises(UsageError, match="is here already"):
        restore("new_llm_demo", backup, tmp_path / "checkpoints")
    for folder in ("best", "checkpoint-100", "checkpoint-200"):
        (backup / "new_llm_demo" / folder / "weights.json").write_bytes(b"")
    with pytest.raises(NewLLMError, match="best/weights.json"):
        restore("new_llm_demo", backup, tmp_path / "here")
    assert not (tmp_path / "here").exists()


def test_a_run_that_is_further_elsewhere_is_ahead(run, backup, tmp_path):
    Mirror(run, backup).copy()
    copy, here = Run(backup / "new_llm_demo"), Run(tmp_path / "here")
    assert is_ahead(copy, here) and not is_ahead(copy, run) and not is_ahead(here, copy)
    add(here, "checkpoint-100")
    append(here, rows()[:2])
    here.lock_path.write_text("mine")
    bring_back(copy, here)
    assert (
        here.metrics_path.read_bytes() == run.metrics_path.read_bytes()
        and here.lock_path.read_text() == "mine"
    )
    assert here.latest_checkpoint().name == "checkpoint-200" and not is_ahead(copy, here)


def test_the_log_of_a_run_brought_back_goes_on_where_a_background_process_writes(run, backup, tmp_path):
    """Its output is this very file, open since before the run was brought back: another file of that name
    would never grow.
    """
    run.log.write_text("the first machine's words\n")
    Mirror(run, backup).copy()
    here = Run(tmp_path / "here" / run.name)
    here.path.mkdir(parents=True)
    with open(here.log, "a") as output:
        for words in ("starting", "bringing back"):
            print(words, file=output, flush=True)
            bring_back(
                Run(backup / run.name), here
            )  # the second time after a kill: nothing stands there twice
        print("training", file=output, flush=True)
    assert here.log.read_text() == "the first machine's words\nstarting\nbringing back\ntraining\n"


def test_a_checkpoint_that_goes_while_it_is_brought_back_is_left_out(
    run, backup, tmp_path, monkeypatch, capsys
):
    """The mirror of a process that was killed may still be dropping old ones there."""
    Mirror(run, backup).copy()

    def drop_first(source, target, **options):
        if source.name == "checkpoint-100":
            shutil.rmtree(source)
        return copying.copy_folder(source, target, **options)

    monkeypatch.setattr(sys.modules["newllm_lib.runs.mirror.restore"], "copy_folder", drop_first)
    here = Run(tmp_path / "here" / run.name)
    bring_back(Run(backup / run.name), here)
    assert [p.name for p in here.checkpoints()] == [
        "checkpoint-200"
    ] and "left out" in capsys.readouterr().out


def test_a_zip_of_a_run_is_unpacked_into_one_to_talk_to(run, backup, tmp_path):
    from newllm_lib.colab.download import bundle

    shutil.move(bundle(run), backup / "new_llm_demo.zip")
    for name in ("new_llm_demo", "new_llm_demo.zip"):
        back = restore(name, backup, tmp_path / name)
        assert (
            is_complete(back.best)
            and back.name == "new_llm_demo"
            and back.recipe_path.read_text() == "recipe: demo\n"
        )
    (backup / "new_llm_demo.zip").write_bytes(b"PK not a zip")
    with pytest.raises(NewLLMError, match="no readable zip"):
        restore("new_llm_demo", backup, tmp_path / "x")
    with zipfile.ZipFile(backup / "new_llm_demo.zip", "w") as archive:
        archive.write(run.path / "best" / "MANIFEST.json", "new_llm_demo/best/MANIFEST.json")
    with pytest.raises(NewLLMError, match="weights.json"):
        restore("new_llm_demo", backup, tmp_path / "x")
    assert not (tmp_path / "x" / "new_llm_demo").exists()


def test_what_is_replaced_while_it_is_copied_comes_with_the_next_copy(run, backup, monkeypatch):
    real, copier = copying._copy_file, Mirror(run, backup)

    def replaced(source, target):
        if source.parent.name == "best" and not json.loads((run.path / "best/MANIFEST.json").read_text()).get(
            "new"
        ):
            monkeypatch.setattr(copying, "_copy_file", real)
            add(run, "best", "newer")
        return real(source, target)

    monkeypatch.setattr(copying, "_copy_file", replaced)
    copier.copy()
    assert not (backup / "new_llm_demo" / "best").exists() and copier.is_due()
    copier.copy()
    assert (backup / "new_llm_demo/best/weights.json").read_text() == "newer" * 1000


def test_a_copy_that_is_further_is_set_aside_when_an_older_checkpoint_is_continued(run, backup):
    Mirror(run, backup).copy()
    (run.path / "checkpoint-200").rename(run.path / "superseded-checkpoint-200")
    assert claim_copy(run, backup) == ""  # it is this run's own
    mirror = Mirror(run, backup)
    mirror.copy()
    assert names(backup) == ["new_llm_demo", "new_llm_demo_2"]
    assert [p.name for p in mirror.target.checkpoints()] == ["checkpoint-100"]
    assert [p.name for p in Run(backup / "new_llm_demo_2").checkpoints()] == [
        "checkpoint-100",
        "checkpoint-200",
    ]
    mirror.copy()
    assert names(backup) == ["new_llm_demo", "new_llm_demo_2"]


def test_a_session_that_slept_stops_and_says_who_writes_now(run, backup, tmp_path, monkeypatch):
    older = Mirror(run, backup)
    older.copy()
    monkeypatch.setattr("socket.gethostname", lambda: "second")
    there = restore("new_llm_demo", backup, tmp_path / "second")
    add(there, "checkpoint-900")
    newer = Mirror(there, backup)
    assert "(since 20" in claim_copy(there, backup)
    newer.copy()
    with pytest.raises(Superseded, match="another session now, on second since 20"):
        older.copy()
    assert newer.newest_step() == 900
    monkeypatch.undo()
    again = Mirror(run, backup)  # it is started again, and is behind: what it has replaces nothing
    assert "second (since 20" in claim_copy(run, backup) and again.newest_step() == 900
    again.copy()
    assert Run(backup / "new_llm_demo_2").latest_checkpoint().name == "checkpoint-900"


def test_the_memory_of_a_copy_does_not_grow_with_a_file(run, backup):
    with open(run.metrics_path, "ab") as file:
        file.truncate(64 * 2**20)
    tracemalloc.start()
    Mirror(run, backup).copy()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * 2**20 and (backup / "new_llm_demo" / "metrics.jsonl").stat().st_size == 64 * 2**20
