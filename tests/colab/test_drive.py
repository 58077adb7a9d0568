"""Drive as a second place: mounted in Colab, any folder elsewhere; the copies are tested in tests/runs and
tests/faults.
"""

from __future__ import annotations

import pytest

from newllm_lib.colab import drive
from newllm_lib.errors import NewLLMError, UsageError
from newllm_lib.runs import Run, is_finished, staged_directory
from tests.helpers.fake_run import finished


@pytest.fixture
def run(tmp_path) -> Run:
    run = finished(tmp_path / "checkpoints" / "new_llm_demo")
    run.recipe_path.write_text("recipe: demo\n")
    with staged_directory(run.path / "best") as folder:
        (folder / "tokenizer.json").write_text("{}")
    return run


def test_save_says_where_and_restore_brings_it_back(run, tmp_path, capsys):
    copy = drive.save(run, tmp_path / "backup")
    assert copy == tmp_path / "backup" / "new_llm_demo" and "Saved new_llm_demo" in capsys.readouterr().out
    assert drive.saved(tmp_path / "backup") == ["new_llm_demo"]
    assert is_finished(drive.restore("new_llm_demo", tmp_path / "backup", tmp_path / "new machine"))


def test_on_colab_runs_go_to_my_drive(run, tmp_path, colab, monkeypatch):
    monkeypatch.setattr(drive.mount, "__defaults__", (tmp_path / "drive",))
    assert drive.save(run) == tmp_path / "drive" / "MyDrive" / "new-llm" / "new_llm_demo"
    assert colab.mounted == [str(tmp_path / "drive")]
    assert drive.saved() == ["new_llm_demo"]
    assert is_finished(drive.restore("new_llm_demo", into=tmp_path / "here"))


def test_a_drive_that_is_refused_is_one_line(run, tmp_path, colab):
    colab.refuse = ValueError("mount failed: access denied\nlong story")
    with pytest.raises(NewLLMError, match="access denied") as error:
        drive.mount(tmp_path / "drive")
    assert "long story" not in str(error.value)


def test_outside_colab_a_folder_is_asked_for(run):
    with pytest.raises(UsageError, match="give a folder"):
        drive.save(run)


def test_a_folder_that_cannot_be_made_is_one_line(run, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NewLLMError, match="cannot be made"):
        drive.save(run, tmp_path / "file" / "backup")
