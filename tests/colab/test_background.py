"""Training from a cell: started once, watched, continued; and what went wrong is one line."""

from __future__ import annotations

import shutil
import sys
import time

import pytest

from newllm_lib import runs
from newllm_lib.colab import background, look
from newllm_lib.colab.forms import OVERRIDES_VARIABLE
from newllm_lib.colab.settings import PRETRAINING
from newllm_lib.errors import Interrupted, NewLLMError
from newllm_lib.runs import Run, is_finished

# What a training process does to its run's folder, without training.
CHILD = """
import os, sys, time
from newllm_lib.errors import NewLLMError
from newllm_lib.recipe import load_recipe
from newllm_lib.runs import Run, RunLock, write_status
from tests.helpers.fake_run import append, rows
ending, name, *flags = sys.argv[1:]
recipe = load_recipe(name, dict(zip((f[2:] for f in flags[::2]), flags[1::2])), "cpu")
run = Run(recipe.run_path())
if ending == "refused":
    sys.exit("newllm: something is wrong: mend it")
with RunLock(run):
    write_status(run, state="running", total_steps=300)
    run.recipe_path.write_text(recipe.to_yaml())
    append(run, rows()[:4])
    while os.path.exists("hold"):
        time.sleep(0.05)
    if ending == "killed":
        sys.exit(9)
    write_status(run, state=ending, message="the reason why" if ending == "failed" else "")
"""


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """Settings of a form, in an empty folder; `.ends("failed")` says how its training ends."""
    monkeypatch.delenv(OVERRIDES_VARIABLE, raising=False)
    monkeypatch.setenv("NEWLLM_DEVICE", "cpu")
    monkeypatch.setattr(look.View, "png", lambda view: b"")  # the picture has tests of its own
    monkeypatch.chdir(tmp_path)
    ends(monkeypatch, "done")
    return PRETRAINING.read(recipe="demo", epochs=2)


def ends(monkeypatch, how: str) -> None:
    kind = type(PRETRAINING.read())
    monkeypatch.setattr(
        kind, "command", lambda self, **more: [sys.executable, "-c", CHILD, how, *self.arguments(**more)[1:]]
    )


def test_it_is_started_watched_and_shown_again(settings, capsys):
    run = background.train(settings, every=0.05)
    assert is_finished(run) and run.name == "new_llm_demo" and run.path.parent.name == "checkpoints"
    assert "training in the background (pid" in capsys.readouterr().out
    assert background.train(settings, every=0.05).path == run.path
    assert "finished already" in capsys.readouterr().out


def test_two_models_have_two_runs(settings):
    ours, other = (
        background.train(settings, every=0.05),
        background.train(settings, every=0.05, model="tiny_gpt2"),
    )
    assert (ours.name, other.name) == ("new_llm_demo", "tinygpt2_demo")


def test_a_training_that_goes_on_is_joined_not_started_twice(settings, capsys, tmp_path):
    hold = tmp_path / "hold"
    hold.touch()
    first = background.start(settings)
    second = background.start(settings)
    hold.unlink()
    assert first.pid is not None and second.pid is None and first.run.path == second.run.path
    assert "is already training" in capsys.readouterr().out
    background.watch(first.run, every=0.05)


def test_other_settings_get_a_folder_of_their_own(settings, capsys):
    first = background.train(settings, every=0.05)
    longer = PRETRAINING.read(recipe="demo", epochs=9)
    second = background.train(longer, every=0.05)
    assert second.path == first.path.with_name("new_llm_demo_2")
    assert "epochs: 9.0 | 2.0" in capsys.readouterr().out
    assert background.train(settings, every=0.05).path == first.path
    assert background.train(longer, every=0.05).path == second.path


def test_a_run_keeps_the_preset_of_the_machine_it_began_on(settings, monkeypatch):
    first = background.train(settings, every=0.05)
    monkeypatch.setenv("NEWLLM_DEVICE", "t4")
    assert background.train(settings, every=0.05).path == first.path


def test_a_training_that_was_stopped_asks_to_be_continued(settings, monkeypatch):
    ends(monkeypatch, "interrupted")
    with pytest.raises(Interrupted, match="run its training cell again to continue"):
        background.train(settings, every=0.05)


def test_a_training_that_failed_says_why(settings, monkeypatch):
    ends(monkeypatch, "failed")
    with pytest.raises(NewLLMError, match="the reason why .*train.log"):
        background.train(settings, every=0.05)


def test_a_training_that_was_killed_says_so(settings, monkeypatch):
    ends(monkeypatch, "killed")
    with pytest.raises(NewLLMError, match="ended without a word"):
        background.train(settings, every=0.05)


def test_a_training_that_never_began_says_its_last_line(settings, monkeypatch):
    """Also where the folder still holds the status of an earlier life that ended well."""
    background.train(settings, every=0.05)
    run = Run("checkpoints/new_llm_demo")
    runs.write_status(run, state="interrupted")
    ends(monkeypatch, "refused")
    with pytest.raises(NewLLMError, match="did not start: something is wrong: mend it"):
        background.train(settings, every=0.05)


def test_closing_the_view_stops_the_cells_below_but_not_the_training(settings, monkeypatch):
    monkeypatch.setattr(background, "watch", lambda run, every: [{"state": "running"}])
    with pytest.raises(Interrupted, match="still training"):
        background.train(settings)
    monkeypatch.undo()
    for text in runs.follow(Run("checkpoints/new_llm_demo"), interval=0.05):
        assert "Traceback" not in text


def test_waiting_ends_with_the_training_and_says_how_it_went(settings, monkeypatch, capsys, tmp_path):
    hold = tmp_path / "hold"
    hold.touch()
    run = background.start(settings).run
    looks = []

    def look(seconds):
        looks.append(seconds)
        if len(looks) == 2:
            hold.unlink()

    monkeypatch.setattr(background.buttons, "wait", lambda seconds: look(seconds) or time.sleep(0.02))
    background.wait(run)
    assert is_finished(run) and capsys.readouterr().out.count("Waiting for new_llm_demo") == 1
    background.wait(run)  # finished: nothing is said
    assert capsys.readouterr().out == ""


def test_a_wait_that_is_broken_off_leaves_the_training_alone(settings, monkeypatch, tmp_path):
    (tmp_path / "hold").touch()
    run = background.start(settings).run

    def interrupted(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(background.buttons, "wait", interrupted)
    with pytest.raises(Interrupted, match="new_llm_demo is still training: run its training cell again"):
        background.wait(run)
    assert runs.read_status(run)["state"] == "running"
    monkeypatch.undo()
    (tmp_path / "hold").unlink()
    for text in runs.follow(run, interval=0.05):
        assert "Traceback" not in text


@pytest.mark.parametrize(
    "ending, said",
    [("failed", "the reason why"), ("refused", "did not start"), ("killed", "ended without a word")],
)
def test_waiting_for_what_fails_says_why_once(settings, monkeypatch, ending, said):
    ends(monkeypatch, ending)
    run = background.start(settings).run
    with pytest.raises(NewLLMError, match=said):
        background.wait(run, every=0.05)


def test_on_colab_the_run_is_copied_to_drive_and_brought_back(settings, tmp_path, monkeypatch, colab):
    """The form's field mounts Drive; a copy there with other settings is another run, one with these is
    continued.
    """
    monkeypatch.setattr(background.drive.mount, "__defaults__", (tmp_path / "drive",))
    folder = tmp_path / "drive" / "MyDrive" / "new-llm"
    run = background.train(settings, every=0.05)
    assert colab.mounted and run.recipe_path.read_text().count(f"mirror_dir: {folder}") == 1
    (folder / run.name).mkdir()
    (folder / run.name / "recipe.yaml").write_text(
        run.recipe_path.read_text().replace("epochs: 2", "epochs: 3")
    )
    shutil.rmtree(run.path)  # a new machine
    assert background.place(settings, mirror_dir=str(folder))[0].name == "new_llm_demo_2"
    there = folder / run.name / "recipe.yaml"
    there.write_text(there.read_text().replace("epochs: 3", "epochs: 2"))
    assert background.place(settings, mirror_dir=str(folder))[0].name == "new_llm_demo"
    without = PRETRAINING.read(recipe="demo", epochs=2, save_to_drive=False)
    assert background._second_place(without) == {}
