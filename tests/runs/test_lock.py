"""The lock of a run: the operating system's, so it ends with the process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from newllm_lib.errors import NewLLMError
from newllm_lib.runs import AlreadyRunning, Run, RunLock, is_locked, lock_holder

HOLDER = """
import sys, time
from newllm_lib.runs import Run, RunLock
with RunLock(Run(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path / "new_llm_demo")


@pytest.fixture
def holder(run):
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(run.path)], stdout=subprocess.PIPE)
    process.stdout.readline()
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_process_is_refused_and_told_what_to_do(run, holder):
    with pytest.raises(AlreadyRunning) as refusal, RunLock(run):
        pass
    line = str(refusal.value)
    assert f"new_llm_demo is already training (pid {holder.pid})" in line and "\n" not in line
    assert "newllm runs logs new_llm_demo" in line and "newllm runs stop new_llm_demo" in line
    assert isinstance(refusal.value, NewLLMError) and is_locked(run) and lock_holder(run) == holder.pid


def test_the_lock_ends_with_a_killed_process(run, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert not is_locked(run) and lock_holder(run) is None
    with RunLock(run):
        assert lock_holder(run) == os.getpid()
    assert not is_locked(run)


def test_a_second_thread_of_the_same_process_is_refused(run):
    refused = []

    def again():
        try:
            with RunLock(run):
                pass
        except AlreadyRunning as error:
            refused.append(error)

    with RunLock(run):
        thread = threading.Thread(target=again)
        thread.start()
        thread.join()
    assert refused


def test_a_forked_child_does_not_keep_the_lock(run):
    """Workers of a data loader outlive a killed training for seconds; the run must be free at once."""
    script = HOLDER.replace(
        "print", "import os\n    if os.fork() == 0: time.sleep(60); os._exit(0)\n    print"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(run.path)], stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        process.stdout.readline()
        assert is_locked(run)
        process.kill()
        process.wait()
        end = time.monotonic() + 5  # the child may not have had its first moment yet
        while is_locked(run) and time.monotonic() < end:
            time.sleep(0.05)
        assert not is_locked(run)
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # the child, too: the session is the test's own
        process.stdout.close()


def test_a_run_never_started_is_not_locked(tmp_path):
    assert not is_locked(Run(tmp_path / "nowhere"))


def test_a_pid_that_was_given_to_another_process_is_not_taken_for_the_holder(run):
    with RunLock(run) as lock:
        os.pwrite(lock.descriptor, b'{"pid": 1, "start": -5}           ', 0)
        assert is_locked(run) and lock_holder(run) is None


def test_looking_does_not_disturb_a_start(run):
    """`is_locked` holds the lock for an instant; a start at that instant waits instead of failing."""
    run.path.mkdir()
    run.lock_path.touch()
    end = threading.Event()

    def look():
        while not end.is_set():
            is_locked(run)

    threads = [threading.Thread(target=look) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(50):
            with RunLock(run):
                pass
    finally:
        end.set()
        for thread in threads:
            thread.join()
