"""What is ours and what is not: marks, the records of version 0.1.0, and what is carried over when a folder
is replaced.
"""

from __future__ import annotations

import json
import os
import shutil

import pytest

from newllm_lib.errors import UsageError
from newllm_lib.runs import (
    MANIFEST,
    MARK,
    Mirror,
    Run,
    RunLock,
    atomic,
    clean_leftovers,
    is_complete,
    manifest_path,
    owned_directory,
    remove_directory,
    restore,
    staged_directory,
)
from newllm_lib.runs.outputs import replaceable
from newllm_lib.runs.ownership import (
    check_plain_name,
    check_shared,
    foreign_in,
    free_name,
    read_mark,
)
from tests.helpers.old_folders import put
from tests.helpers.staged_files import dead, fill

LITTER = (".DS_Store", "desktop.ini", "Thumbs.db", ".ipynb_checkpoints/card-checkpoint.md")


def litter(folder) -> None:
    for name in LITTER:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()


def export(folder, text="1", name="README.md"):
    with owned_directory(folder, "export", "--output_dir", "demo") as staging:
        (staging / name).write_text(text)


def test_links_to_nothing_and_to_themselves(tmp_path):
    (tmp_path / "nothing").symlink_to("nowhere")
    (tmp_path / "itself").symlink_to("itself")
    for name, says in (("nothing", "which is not there"), ("itself", "leads to itself: remove it")):
        for check in (check_shared, replaceable):
            with pytest.raises(UsageError, match=says):
                check(tmp_path / name, "run" if check is check_shared else "export", "--output_dir")


def test_a_marked_folder_is_replaced_and_keeps_since_when_it_is_ours(tmp_path):
    export(tmp_path / "out")
    mark = read_mark(tmp_path / "out")
    assert (mark["what"], mark["run"], mark["files"]) == ("export", "demo", ["README.md"]) and mark["version"]
    (tmp_path / "out" / MARK).write_text(json.dumps({**mark, "since": "2026-01-01"}))
    litter(tmp_path / "out")
    export(tmp_path / "out", "2", "card.txt")
    assert read_mark(tmp_path / "out")["since"] == "2026-01-01"
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted([MARK, MANIFEST, "card.txt"])


@pytest.mark.parametrize("name", ["notes.md", ".git/config", "sub/deeper/x", "empty"])
def test_one_file_of_another_in_a_marked_folder_is_enough(tmp_path, name):
    export(tmp_path / "out")
    path = tmp_path / "out" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir() if name == "empty" else path.write_text("mine")
    with pytest.raises(UsageError, match=rf"holds {name.split('/')[0]}.*no export of ours.*e\.g\. .*out_2"):
        export(tmp_path / "out", "2")
    assert path.exists() and (tmp_path / "out/README.md").read_text() == "1"


def test_what_was_put_there_while_it_was_filled_stays(tmp_path):
    export(tmp_path / "out")
    with pytest.raises(UsageError), owned_directory(tmp_path / "out", "export", "--output_dir"):
        (tmp_path / "out" / "notes.md").write_text("mine")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"] and (tmp_path / "out/notes.md").exists()


def test_another_kind_of_ours_is_not_replaced(tmp_path):
    export(tmp_path / "out")
    with pytest.raises(UsageError, match="no mixture of ours"):
        replaceable(tmp_path / "out", "mixture", "--output")
    with pytest.raises(UsageError, match="is an export, not a run"):
        check_shared(tmp_path / "out", "run", "--output_dir")
    with RunLock(Run(tmp_path / "run")):
        pass
    with pytest.raises(UsageError, match="is a run, not the copy of a run"):
        check_shared(tmp_path / "run", "mirror", "--mirror_dir")


def test_the_current_folder_and_those_above_are_never_replaced(tmp_path, monkeypatch):
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    with pytest.raises(UsageError, match="folder you are in"):
        replaceable(".", "mixture", "--output")
    with pytest.raises(UsageError, match="holds b, "):
        replaceable("..", "mixture", "--output")


def test_what_version_0_1_0_made_counts_as_marked(tmp_path):
    put(tmp_path, "half_done", "mirror", "exported", "mixture", "phase7", "sequential")
    for run in ("half_done", "phase7", "sequential"):
        check_shared(tmp_path / run, "run", "--output_dir")
    check_shared(tmp_path / "mirror/half_done", "mirror", "--mirror_dir")
    litter(tmp_path / "exported")
    assert replaceable(tmp_path / "exported", "export", "--output_dir") == tmp_path / "exported"
    assert replaceable(tmp_path / "mixture", "mixture", "--output") == tmp_path / "mixture"
    with pytest.raises(UsageError, match="trained there, not the copy"):
        check_shared(tmp_path / "half_done", "mirror", "--mirror_dir")
    for name, what in (
        ("exported", "mixture"),
        ("mixture", "export"),
        ("half_done", "export"),
        ("text", "mixture"),
    ):
        with pytest.raises(UsageError, match=f"no {what} of ours"):
            replaceable(tmp_path / name, what, "--output")
    (tmp_path / "exported" / "notes.md").touch()
    with pytest.raises(UsageError, match="notes.md"):
        replaceable(tmp_path / "exported", "export", "--output_dir")


def test_what_version_0_1_0_made_is_marked_at_the_next_write(tmp_path):
    put(tmp_path, "half_done", "exported")
    with RunLock(Run(tmp_path / "half_done")):
        assert read_mark(tmp_path / "half_done")["what"] == "run"
    export(tmp_path / "exported")
    assert sorted(p.name for p in (tmp_path / "exported").iterdir()) == sorted([MARK, "README.md", MANIFEST])


CLASHES = ("best/me.jpg", "last/x", "checkpoint-3/x", "curves.png", "status.json", "metrics.jsonl/x", "best")


@pytest.mark.parametrize("name", CLASHES)
def test_a_run_does_not_take_what_another_wrote(tmp_path, name):
    path = tmp_path / "out" / name
    path.parent.mkdir(parents=True)
    path.write_text('{"state": "mine"}\n') if name != "status.json" else path.write_text(
        '{"state": "on", "temperature": 3}'
    )
    (tmp_path / "out" / "notes.md").write_text("mine")
    first = name.split("/")[0]
    for what in ("run", "mirror"):
        with pytest.raises(
            UsageError, match=rf"holds {first}/?, which no .* of ours wrote: nothing was changed"
        ):
            check_shared(tmp_path / "out", what, "--output_dir")
    with pytest.raises(UsageError), RunLock(Run(tmp_path / "out")):
        pass
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted((first, "notes.md"))


def test_a_run_beside_other_files_touches_none_of_them(tmp_path):
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "best.py").write_text("mine")
    (tmp_path / "README.md").write_text("mine")
    with RunLock(Run(tmp_path)):
        with staged_directory(tmp_path / "best") as staging:
            (staging / "config.json").write_text("{}")
    assert (tmp_path / "src/best.py").read_text() == (tmp_path / "README.md").read_text() == "mine"
    check_shared(tmp_path, "run", "--output_dir")


def test_a_torn_part_of_a_run_is_ours_and_anothers_is_not(tmp_path):
    put(tmp_path, "half_done")
    manifest_path(tmp_path / "half_done" / "best").unlink()
    check_shared(tmp_path / "half_done", "run", "--output_dir")
    (tmp_path / "half_done" / "best" / "me.jpg").touch()
    with pytest.raises(UsageError, match="holds best/"):
        check_shared(tmp_path / "half_done", "run", "--output_dir")


def test_only_our_names_are_copied_to_a_mirror_and_replaced_there(tmp_path):
    put(tmp_path, "half_done")
    run = Run(tmp_path / "half_done")
    (run.path / "thesis.md").write_text("in the run's folder")
    shutil.copytree(run.path / "best", run.path / "my_best")
    copy = tmp_path / "backup" / "half_done"
    copy.mkdir(parents=True)
    (copy / "thesis.md").write_text("in the copy's folder")
    Mirror(run, tmp_path / "backup").copy()
    assert (copy / "thesis.md").read_text() == "in the copy's folder" and not (copy / "my_best").exists()
    assert is_complete(copy / "best") and read_mark(copy)["what"] == "mirror"


def test_a_mirror_refuses_what_another_wrote(tmp_path):
    put(tmp_path, "half_done")
    (tmp_path / "backup" / "half_done" / "best").mkdir(parents=True)
    (tmp_path / "backup" / "half_done" / "best" / "me.jpg").touch()
    with pytest.raises(UsageError, match="holds best/, which no copy of a run of ours wrote"):
        Mirror(Run(tmp_path / "half_done"), tmp_path / "backup").copy()
    assert [p.name for p in (tmp_path / "backup" / "half_done").rglob("*")] == ["best", "me.jpg"]


@pytest.mark.parametrize("exchange", [True, False], ids=["one step", "two renames"])
def test_what_lies_in_a_part_is_carried_over(tmp_path, monkeypatch, exchange):
    if not exchange:
        monkeypatch.setattr(atomic, "_exchange", lambda *_: False)
    best = tmp_path / "best"
    fill(best, "old")
    for name in ("notes.txt", "deep/mine.txt"):
        (best / name).write_text("mine")
    fill(best, "new")
    assert (best / "model").read_text() == "new" and is_complete(best)
    assert (best / "notes.txt").read_text() == (best / "deep/mine.txt").read_text() == "mine"
    assert [p.name for p in tmp_path.iterdir()] == ["best"]


def test_what_lies_in_a_pruned_checkpoint_stays(tmp_path):
    fill(tmp_path / "checkpoint-1", "old")
    (tmp_path / "checkpoint-1" / "notes.txt").write_text("mine")
    remove_directory(tmp_path / "checkpoint-1")
    assert [p.name for p in tmp_path.rglob("*")] == ["checkpoint-1", "notes.txt"]


@pytest.mark.parametrize("kind", ["tmp", "old"])
def test_a_kill_between_two_steps_keeps_it_too(tmp_path, kind):
    best = tmp_path / "best"
    fill(best, "old")
    (best / "notes.txt").write_text("mine")
    os.rename(best, dead(best, kind))
    fill(best, "new")
    clean_leftovers(tmp_path)
    assert (best / "model").read_text() == "new" and (best / "notes.txt").read_text() == "mine"
    assert [p.name for p in tmp_path.iterdir()] == ["best"]


def test_a_link_to_another_disk_stays_one(tmp_path):
    for name in ("best", "checkpoint-1"):
        fill(tmp_path / "disk" / name, "old")
        (tmp_path / name).symlink_to(tmp_path / "disk" / name)
    fill(tmp_path / "best", "new")
    assert (tmp_path / "best").is_symlink() and (tmp_path / "disk/best/model").read_text() == "new"
    remove_directory(tmp_path / "checkpoint-1")
    assert (
        not (tmp_path / "checkpoint-1").exists()
        and (tmp_path / "disk/checkpoint-1/model").read_text() == "old"
    )
    (tmp_path / "backup").mkdir()
    Mirror(Run(tmp_path), tmp_path / "backup").copy()
    assert (tmp_path / "backup" / tmp_path.name / "best/model").read_text() == "new"
    export(tmp_path / "disk" / "out")
    (tmp_path / "out").symlink_to(tmp_path / "disk" / "out")
    export(tmp_path / "out", "2")
    assert (tmp_path / "out").is_symlink() and (tmp_path / "disk/out/README.md").read_text() == "2"


def test_a_link_to_nothing_is_refused(tmp_path):
    (tmp_path / "out").symlink_to(tmp_path / "unmounted" / "out")
    with pytest.raises(UsageError, match="link to .*unmounted/out, which is not there"):
        export(tmp_path / "out")


@pytest.mark.parametrize(
    "name", ["", " ", ".", "..", "../x", "a/b", "/tmp/x", "a\\b", ".hidden", "-run", "a\nb", "x" * 300]
)
def test_a_name_is_a_name(tmp_path, name):
    with pytest.raises(UsageError, match="is no name"):
        check_plain_name(name, "--run_name")
    with pytest.raises(UsageError, match="is no name"):
        restore(name, tmp_path, tmp_path / "here")


def test_names_are_proposed_that_are_free(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out_2").mkdir()
    (tmp_path / "pairs.jsonl").touch()
    assert free_name("out") == "out_3" and free_name("pairs.jsonl") == "pairs_2.jsonl"
    assert free_name("v0.1") == "v0.1_2" and free_name(".") == "newllm_2"


def test_unfinished_files_of_ours_are_not_foreign(tmp_path):
    export(tmp_path / "out")
    (tmp_path / "out" / ".README.md.tmp-1-1-0").touch()
    assert not list(foreign_in(tmp_path / "out", "export"))
