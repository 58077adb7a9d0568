"""Train once undisturbed; then train again while being killed with SIGKILL at random moments, until done.
Prints both curves.

Run as a script: imports cost seconds, so they are done once here and each training is a fork.

    python kill_driver.py FOLDER KILLS SEED [streamed]
"""

import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import torch

from newllm_lib.data.streaming import segments, stream
from newllm_lib.recipe import load_recipe
from newllm_lib.training import train

torch.set_num_threads(1)  # a fork must not inherit a thread pool


STREAMED = "streamed" in sys.argv
segments.SEGMENT_BYTES, segments.HEAD, stream.FIRST, stream.WINDOW = 2000, 4, 1, 2


def recipe(folder: Path, name: str):
    """Everything that a checkpoint must remember is on: dropout, accumulation, Muon, a state carried from
    block to block (or data that is prepared while it is trained on)."""
    return load_recipe(
        "demo",
        {
            "sized_for": "cpu",
            "data_dir": str(folder / "text"),
            "vocab_size": 300,
            "max_seq_length": 16,
            "batch_size": 4,
            "hidden_size": 16,
            "context_dim": 16,
            "mlp_size": 16,
            "num_layers": 1,
            "epochs": 2,
            "evals_per_epoch": 3,
            "logging_steps": 3,
            "save_minutes": 0.001,
            "dropout": 0.1,
            "micro_batch_size": 2,
            "output_dir": str(folder / name),
            "keep_checkpoints": 1,
            "optimizer": "muon",
            "carry_state": not STREAMED,
            "streaming": "on" if STREAMED else "off",
        },
    )


def start(folder: Path, name: str) -> int:
    """Train in a forked process; its pid."""
    pid = os.fork()
    if pid == 0:
        log = os.open(folder / f"{name}.out", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        code = 1
        if STREAMED:  # each run prepares for itself, and is killed doing so
            os.environ["NEWLLM_CACHE"] = str(folder / f"cache-{name}")
        try:
            train(recipe(folder, name))
            code = 0
        except BaseException:
            traceback.print_exc()  # into the child's log, before the exit that skips everything
        finally:
            os._exit(code)
    return pid


def said(folder: Path, name: str) -> str:
    return (folder / f"{name}.out").read_text(errors="replace")[-3000:]


def curve(folder: Path, name: str) -> list:
    rows = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("time", "tokens_per_second")} for row in rows]


def main() -> None:
    folder, kills, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    moment = random.Random(seed)
    began = time.monotonic()
    if os.waitpid(start(folder, "whole"), 0)[1]:
        sys.exit("the undisturbed run failed:\n" + said(folder, "whole"))
    duration = time.monotonic() - began
    done = 0
    while done < kills:
        pid = start(folder, "killed")
        time.sleep(moment.uniform(0.0, 0.6 * duration))
        os.kill(pid, signal.SIGKILL)
        ended_by_itself = os.WIFEXITED(os.waitpid(pid, 0)[1])
        if ended_by_itself:  # it was done before the kill came: a new run goes on being killed
            assert curve(folder, "killed") == curve(folder, "whole")
            os.rename(
                folder / "killed", folder / f"finished-{time.monotonic_ns()}"
            )  # perhaps several in a row
            continue
        done += 1
    if os.waitpid(start(folder, "killed"), 0)[1]:
        sys.exit("the last start failed:\n" + said(folder, "killed"))
    print(json.dumps({"whole": curve(folder, "whole"), "killed": curve(folder, "killed"), "kills": done}))


if __name__ == "__main__":
    main()
