"""What lies where in a run's folder, and how a run is found."""

from __future__ import annotations

import pytest

from newllm_lib.errors import UsageError
from newllm_lib.runs import (
    Run,
    checkpoint_step,
    find_run,
    is_finished,
    list_runs,
    staged_directory,
    write_status,
)


def save(run: Run, step: int) -> None:
    with staged_directory(run.checkpoint(step)) as folder:
        (folder / "model.safetensors").write_text("weights")


def test_checkpoints_are_sorted_by_step_and_torn_ones_left_out(tmp_path):
    run = Run(tmp_path)
    assert run.checkpoints() == [] and run.latest_checkpoint() is None
    for step in (1000, 20, 300):
        save(run, step)
    (run.checkpoint(1000) / "model.safetensors").write_text("wei")  # cut short
    (tmp_path / "checkpoint-4000").mkdir()  # never finished
    (tmp_path / "checkpoint-old").mkdir()
    assert [checkpoint_step(p) for p in run.checkpoints()] == [20, 300]
    assert run.latest_checkpoint() == run.checkpoint(300)


def test_metrics_leave_out_a_line_that_was_cut_off(tmp_path):
    run = Run(tmp_path)
    assert list(run.metrics()) == []
    run.metrics_path.write_text('{"step": 1, "loss": 2.5}\n{"step": 2, "lo')
    assert list(run.metrics()) == [{"step": 1, "loss": 2.5}]


def test_a_run_is_found_by_name_and_by_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("new_llm_demo", "tinygpt2_demo"):
        write_status(Run(f"checkpoints/{name}"), state="done")
    (tmp_path / "checkpoints" / "no run").mkdir()
    assert find_run("new_llm_demo").path.samefile("checkpoints/new_llm_demo")
    assert find_run("checkpoints/tinygpt2_demo/").name == "tinygpt2_demo"
    assert is_finished(find_run("checkpoints/new_llm_demo"))
    assert {run.name for run in list_runs("checkpoints")} == {"new_llm_demo", "tinygpt2_demo"}


def test_an_unknown_run_names_the_nearest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("newllm_lib.runs.run.roots", lambda: [tmp_path / "checkpoints"])
    with pytest.raises(UsageError, match="newllm demo"):
        find_run("new_llm_demo")
    write_status(Run("checkpoints/new_llm_demo"), state="done")
    with pytest.raises(UsageError, match="did you mean new_llm_demo") as error:
        find_run("new_llm_dmo")
    assert error.value.exit_code == 2 and "\n" not in str(error.value)
