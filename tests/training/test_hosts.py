"""Several hosts: two of torchrun's agents on this one, which know of each other only what two machines would
(gloo).
"""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from newllm_lib.runs import Run
from tests.helpers.small_runs import write_text
from tests.helpers.two_processes import FLAGS, state, wait_for_step

pytestmark = pytest.mark.slow


def start_hosts(*folders: Path, restarts: int = 0) -> list[subprocess.Popen]:
    """The command of docs/guides/several-gpus.md in each folder, with two processes for each host."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = (
        f"--nnodes {len(folders)} --nproc_per_node 2 --rdzv-backend c10d --rdzv-endpoint localhost:{port}"
    ).split()
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        *words,
        "--max-restarts",
        str(restarts),
        "-m",
        "newllm_lib",
    ]
    return [
        subprocess.Popen(
            [*command, "train", "demo", *FLAGS[2:], "--epochs", "3"],
            cwd=folder,
            text=True,
            env={**os.environ, "NEWLLM_DEVICE": "cpu", "NEWLLM_CACHE": f"cache{number}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for number, folder in enumerate(folders)
    ]


def test_two_hosts_train_one_run_and_both_begin_again_when_one_loses_a_process(tmp_path):
    write_text(tmp_path)
    hosts = start_hosts(tmp_path, tmp_path, restarts=2)
    wait_for_step(tmp_path, 3, hosts[0])
    second = [p for p in psutil.Process(hosts[1].pid).children() if "train" in p.cmdline()]
    assert len(second) == 2
    second[0].send_signal(signal.SIGKILL)
    said, others_said = (host.communicate(timeout=500) for host in hosts)
    assert [host.returncode for host in hosts] == [0, 0], said[1][-2000:] + others_said[1][-2000:]
    assert "4 processes, DDP" in said[0] and "Continuing from checkpoint-" in said[0] and others_said[0] == ""
    assert state(tmp_path)["state"] == "done"
    steps = [row["step"] for row in Run(tmp_path / "run").metrics() if "loss" in row]
    assert steps == list(range(1, len(steps) + 1))


def test_hosts_with_a_folder_each_are_told_so_before_they_train(tmp_path):
    folders = tmp_path / "here", tmp_path / "there"
    for folder in folders:
        folder.mkdir()
        write_text(folder)
    hosts = start_hosts(*folders)
    said = [host.communicate(timeout=500)[1] for host in hosts]
    assert all(host.returncode for host in hosts)
    line = (
        f"newllm: 2 of 4 processes do not see what the first one wrote into {folders[0] / 'run'}: all "
        "hosts need"
    )
    assert line in said[0] and not list(Run(folders[0] / "run").metrics())
    assert not any((folder / "run" / "checkpoint-2").exists() for folder in folders)


def test_accelerate_launch_starts_them_too(tmp_path):
    write_text(tmp_path)
    words = (
        "-m accelerate.commands.launch --multi_gpu --num_processes 2".split()
    )  # without a GPU they are processors
    done = subprocess.run(
        [sys.executable, *words, "-m", "newllm_lib", "train", "demo", *FLAGS[2:], "--epochs", "1"],
        cwd=tmp_path,
        env={**os.environ, "NEWLLM_DEVICE": "cpu"},
        text=True,
        capture_output=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "2 processes, DDP" in done.stdout and state(tmp_path)["state"] == "done"
