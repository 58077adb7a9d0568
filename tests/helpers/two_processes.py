"""A training by two processes, from the command line."""

import json
import subprocess
import time
from pathlib import Path

from newllm_lib.runs import Run

FLAGS = (
    "--num_gpus 2 --data_dir text --output_dir run --vocab_size 300 --max_seq_length 16 --batch_size 8 "
    "--hidden_size 16 --context_dim 16 --mlp_size 16 --num_layers 1 --logging_steps 1 --sized_for cpu "
    "--save_steps 2 --evals_per_epoch 1"
).split()


def wait_for_step(folder: Path, step: int, process: subprocess.Popen) -> None:
    run = Run(folder / "run")
    while not any("loss" in row and row["step"] >= step for row in run.metrics()):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def state(folder: Path) -> dict:
    return json.loads((folder / "run" / "status.json").read_text())
