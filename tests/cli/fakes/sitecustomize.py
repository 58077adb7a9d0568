"""Put this folder on PYTHONPATH and `newllm` trains nothing: the parts that load torch are replaced by small
ones.

What the command line itself does (parse, start, wait, show, stop, exit) runs as it is. FAKE_TRAINING says how
training
goes: "steps=3" (the default), "forever", "fail", "crash" or "finished".
"""

from __future__ import annotations

import json
import os
import sys
import time
import types
from pathlib import Path

from newllm_lib import console, device, runs
from newllm_lib.errors import Interrupted, NewLLMError

CPU = device.Device(
    "cpu", "CPU", "cpu", "fp32", "sdpa", "torch", False, False, 8.0, 2, None, {"device": "a test"}
)
device.probe = lambda: CPU


def train(recipe):
    how = os.environ.get("FAKE_TRAINING", "steps=3")
    run = runs.Run(recipe.run_path())
    with runs.RunLock(run):
        if not os.environ.get(runs.BACKGROUND):
            console.also_to(run.log)
        console.say(f"fake training of {recipe.model}, {recipe.num_layers} layers, resume {recipe.resume}")
        run.recipe_path.write_text(recipe.to_yaml())
        try:
            steps = 0 if how == "finished" else 10**6 if how == "forever" else 3
            runs.write_status(run, state="running", total_steps=steps)
            for step in range(1, steps + 1):
                fail(how)
                with open(run.metrics_path, "a") as file:
                    file.write(json.dumps({"step": step, "loss": 6.0 / step, "time": time.time()}) + "\n")
                console.say(f"  Training... step {step} | Loss: {6.0 / step:.3f}")
                time.sleep(0.05)
            runs.write_status(run, state="done")
        except KeyboardInterrupt:
            runs.write_status(run, state="interrupted", message="saved")
            raise Interrupted("Stopped, saved: the same command continues.") from None
        finally:
            console.also_to(None)
    print("a library prints this")
    return run


def fail(how: str) -> None:
    if how == "fail":
        raise NewLLMError("The data folder is empty: put a train.txt into it.")
    if how == "crash":
        raise RuntimeError("CUDA error:\n device-side assert")


def compare(run_a, run_b, *, output_dir):
    console.say(f"comparing {run_a.name} with {run_b.name} in {output_dir}")
    (output_dir / "comparison.md").write_text("New-LLM is below TinyGPT2")
    return {"verdict": "New-LLM is below TinyGPT2", "bits_per_byte": float("nan")}


def estimate(recipe, device):
    return {"parameters": 1_000_000, "memory_estimate_gib": 0.5, "hours_estimate": 0.05}


def put(name: str, **contents) -> None:
    sys.modules[name] = types.ModuleType(name)
    vars(sys.modules[name]).update(contents)


# What loads no torch stays as it is: its modules are found where they are.
put("newllm_lib.training", train=train, run=None, __path__=[str(Path(runs.__file__).parents[1] / "training")])
put("newllm_lib.training.estimate", estimate=estimate)
put("newllm_lib.evaluation.compare.compare", compare=compare)
