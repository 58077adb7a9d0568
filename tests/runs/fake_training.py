"""A training that trains nothing, but takes the lock, writes log, metrics and status, and saves when stopped.

python fake_training.py RUN_FOLDER [--steps N] [--fail] [--ignore-sigterm]
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time

from newllm_lib.errors import NewLLMError
from newllm_lib.runs import Run, RunLock, staged_directory, write_status

parser = argparse.ArgumentParser()
parser.add_argument("folder")
parser.add_argument("--steps", type=int, default=10**6)
parser.add_argument("--fail", action="store_true")
parser.add_argument("--ignore-sigterm", action="store_true")
options = parser.parse_args()
run = Run(options.folder)
stopped = []
signal.signal(
    signal.SIGTERM, (lambda *_: None) if options.ignore_sigterm else lambda *_: stopped.append(True)
)


def train() -> None:
    write_status(run, state="running", total_steps=options.steps)
    for step in range(1, options.steps + 1):
        if options.fail and step == 3:
            raise NewLLMError("The loss became nan.")
        print(f"step {step}")  # not flushed: start_background must see to it
        with open(run.metrics_path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "epoch": 0.1, "loss": 1 / step, "time": time.time()}) + "\n")
        write_status(run, step=step)
        if stopped:
            with staged_directory(run.checkpoint(step)) as folder:
                (folder / "weights").write_text(str(step))
            write_status(run, state="interrupted", message=f"saved at step {step}")
            sys.exit(130)
        time.sleep(0.02)
    write_status(run, state="done")


try:
    with RunLock(run):
        train()
except NewLLMError as error:
    print(error, file=sys.stderr)
    sys.exit(1)
