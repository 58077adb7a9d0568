"""`newllm train` and `newllm demo` as processes: exit codes, logs, the background."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest

from newllm_lib.runs import Run, is_locked, lock_holder, read_status

TRAIN = ("train", "demo", "--sized_for", "cpu")


def wait_for(condition, seconds: float = 20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def the_run(newllm) -> Run:
    return Run(newllm.folder / "checkpoints" / "new_llm_demo")


def test_train_says_what_it_does_and_what_comes_next(newllm):
    done = newllm(*TRAIN, "--num-layers", "3", "--run_name", "mine")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Training new_llm with recipe demo in checkpoints/mine")
    assert "3 layers" in done.stdout and "evaluate mine" in done.stdout.splitlines()[-1]
    assert "3 layers" in (newllm.folder / "checkpoints" / "mine" / "train.log").read_text()


def test_json_is_alone_on_standard_output(newllm):
    done = newllm(*TRAIN, "--json")
    assert json.loads(done.stdout)["status"]["state"] == "done"
    assert "fake training" in done.stderr and "a library prints this" in done.stderr


def test_a_failure_is_one_line_and_exit_code_1(newllm):
    done = newllm(*TRAIN, how="fail")
    assert done.returncode == 1
    assert done.stderr == "newllm: The data folder is empty: put a train.txt into it.\n"


def test_an_unforeseen_error_is_one_line_too_and_debug_shows_where(newllm):
    done = newllm(*TRAIN, how="crash")
    assert done.returncode == 1
    assert (
        done.stderr.startswith("newllm: RuntimeError: CUDA error: device-side assert")
        and done.stderr.count("\n") == 1
    )
    done = newllm(*TRAIN, "--debug", how="crash")
    assert done.returncode == 1 and "Traceback" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_training_saves_and_ends_with_130(newllm, number):
    process = newllm.begin(*TRAIN)
    try:
        wait_for(lambda: the_run(newllm).metrics_path.exists())
        process.send_signal(number)
        _, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 130 and "the same command continues" in err and "Traceback" not in err
    assert read_status(the_run(newllm))["state"] == "interrupted"


def test_background_waits_for_the_first_loss_and_says_how_to_go_on(newllm):
    done = newllm(*TRAIN, "--background", how="forever")
    assert done.returncode == 0, done.stderr
    run = the_run(newllm)
    pid = lock_holder(run)
    for expected in ("fake training of new_llm", f"(pid {pid}). First loss 6.000 at step 1 of new_llm_demo"):
        assert expected in done.stdout
    for hint in (
        "runs logs new_llm_demo --follow",
        "runs stop new_llm_demo",
        " train demo --sized_for cpu",
        str(run.log),
    ):
        assert hint in done.stdout
    assert (newllm.folder / "checkpoints/new_llm_demo/train.log").read_text().count("fake training") == 1

    again = newllm(*TRAIN, "--background", how="forever")
    assert again.returncode == 1 and f"new_llm_demo is already training (pid {pid})" in again.stderr
    assert lock_holder(run) == pid

    status = newllm("runs", "status", "new_llm_demo", "--json")
    assert json.loads(status.stdout)["state"] == "running"
    assert "running" in newllm("runs").stdout
    stopped = newllm("runs", "stop", "new_llm_demo")
    assert stopped.returncode == 0 and "interrupted; saved" in stopped.stdout
    assert not is_locked(run)
    logs = newllm("runs", "logs", "new_llm_demo", "--lines", "1000")
    assert "Training... step 1 |" in logs.stdout and "the same command continues" in logs.stdout
    assert newllm("runs", "stop", "new_llm_demo").stdout.startswith(
        "new_llm_demo is not running (interrupted)"
    )


def test_background_shows_a_failure_and_its_exit_code(newllm):
    done = newllm(*TRAIN, "--background", how="fail")
    assert done.returncode == 1
    assert "newllm: The data folder is empty" in done.stdout  # from the log
    assert "ended with exit code 1" in done.stderr and "train.log" in done.stderr


def test_background_of_a_finished_run_ends_at_once(newllm):
    done = newllm(*TRAIN, "--background", how="finished")
    assert (
        done.returncode == 0
        and "fake training" in done.stdout
        and "in the background (pid" not in done.stdout
    )


def test_two_starts_at_once_give_one_training(newllm):
    starts = [newllm.begin(*TRAIN, "--background") for _ in range(2)]
    results = [(process.communicate(timeout=40), process.returncode) for process in starts]
    assert sorted(code for _, code in results) == [0, 1]
    refused = next(err for (_, err), code in results if code)
    assert "is already training" in refused


def test_logs_can_be_followed_to_the_end(newllm):
    newllm(*TRAIN, "--background", how="forever")
    follower = newllm.begin("runs", "logs", "new_llm_demo", "--follow")
    assert follower.stdout.readline().startswith("Training new_llm")
    newllm("runs", "stop", "new_llm_demo")
    out, err = follower.communicate(timeout=20)
    assert follower.returncode == 0 and out.endswith("(new_llm_demo: interrupted)\n") and not err


def test_demo_trains_both_and_compares_them(newllm):
    done = newllm("demo", "--sized_for", "cpu", "--num_layers", "3")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("Demo: trains new_llm_demo_layers3 and tinygpt2_demo_layers3")
    assert "about 6.0 min of training, at most 0.5 GiB" in lines[1]
    order = [
        done.stdout.index(text)
        for text in ("of new_llm, 3", "of tiny_gpt2, 3", "comparing new_llm_demo_layers3 with")
    ]
    assert order == sorted(order) and "chat new_llm_demo_layers3" in lines[-1]
    assert read_status(Run(newllm.folder / "checkpoints/demo_layers3"))["state"] == "done"
    result = newllm("demo", "--sized_for", "cpu", "--num_layers", "3", "--json")
    assert json.loads(result.stdout) == {"verdict": "New-LLM is below TinyGPT2", "bits_per_byte": None}


def test_demo_in_a_folder_of_its_own(newllm):
    done = newllm("demo", "--sized_for", "cpu", "--output_dir", "here")
    assert done.returncode == 0, done.stderr
    assert {p.name for p in (newllm.folder / "here").iterdir()} >= {
        "new_llm_demo",
        "tinygpt2_demo",
        "status.json",
    }
    assert "chat here/new_llm_demo" in done.stdout and not (newllm.folder / "checkpoints").exists()


def test_a_demo_with_a_second_place_keeps_its_comparison_there(newllm):
    (newllm.folder / "drive").mkdir()
    done = newllm("demo", "--sized_for", "cpu", "--mirror_dir", "drive")
    assert done.returncode == 0 and "The comparison is copied to" in done.stdout, done.stderr
    copy = newllm.folder / "drive" / "demo"
    assert (copy / "comparison.md").read_text() == "New-LLM is below TinyGPT2"
    assert json.loads((copy / "status.json").read_text())["state"] == "done"
    (newllm.folder / "file").write_text("in the way of a folder")
    done = newllm("demo", "--sized_for", "cpu", "--mirror_dir", "file")
    assert done.returncode == 0 and "The comparison was not copied" in done.stdout, done.stderr


def test_demo_in_the_background_has_one_log_for_all_and_one_for_each(newllm):
    done = newllm("demo", "--sized_for", "cpu", "--background", how="forever")
    assert done.returncode == 0, done.stderr
    assert "First loss 6.000 at step 1 of new_llm_demo" in done.stdout and "runs stop demo" in done.stdout
    again = newllm("demo", "--sized_for", "cpu", "--background", how="forever")
    assert again.returncode == 1 and "demo is already training" in again.stderr
    assert newllm("runs", "stop", "demo").returncode == 0
    checkpoints = newllm.folder / "checkpoints"
    for name in ("demo", "new_llm_demo"):
        assert read_status(Run(checkpoints / name))["state"] == "interrupted"
        assert "fake training of new_llm" in (checkpoints / name / "train.log").read_text()


def test_a_failed_demo_says_so(newllm):
    done = newllm("demo", "--sized_for", "cpu", how="fail")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    status = read_status(Run(newllm.folder / "checkpoints/demo"))
    assert status["state"] == "failed" and status["message"].startswith("The data folder is empty")


def test_commands_shown_begin_with_cd_where_the_bootstrap_came_from_elsewhere(newllm):
    done = newllm(*TRAIN, NEWLLM_STARTED_IN="/")
    assert f"Next: cd {os.path.realpath(newllm.folder)} && " in done.stdout.splitlines()[-1]
