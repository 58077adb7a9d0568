"""One start, two ways on: `--from` in our loop, and `--base` through TRL with the start's export.

    newllm bench ladder --folder F --dialogues dailydialog.validation.txt

For each seed a TinyGPT2 is trained on ChitChat and exported. Dialogues (a line each, turns ending in
`__eou__`, as in DailyDialog's files) are learned from it both ways: the same held-out dialogues, optimizer,
schedule and steps, and as many tokens a step as whole dialogues allow. Dialogues of more than 120 words,
which the window may not hold, are left out: our loop reads them in pieces, TRL's way cuts their ends off. Nor
is there more than about one pass: where our loop cuts, moves from pass to pass. "spread" is the largest
figure less the smallest.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from benchmarks import common
from benchmarks.common import Rows
from newllm_lib.console import say
from newllm_lib.runs import Run, mark_folder

LENGTH, ROWS, STEPS, SEEDS = 256, 8, 26, 3
WORDS = 120  # of a dialogue
WAYS = ("from", "base")
START = {"model": "tiny_gpt2", "max_seq_length": LENGTH, "batch_size": 16, "epochs": 1, "max_steps": 200}
SAME = {
    "loss_on": "answers",
    "max_seq_length": LENGTH,
    "epochs": 100,
    "optimizer": "adamw",
    "learning_rate": 5e-4,
    "learning_rate_batch_size": "none",
    "schedule": "cosine",
    "warmup_steps": 20,
    "weight_decay": 0.0,
    "adam_beta2": 0.999,
    "min_learning_rate_ratio": 0.0,
    "max_grad_norm": 1.0,
    "dropout": 0.0,
    "patience": "none",
    "eval_tokens": "none",
    "sample_tokens": 8,
    "logging_steps": 20,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_out(parser)
    parser.add_argument("--folder", type=Path, required=True, help="where data and runs go")
    parser.add_argument("--dialogues", type=Path, required=True, help="a file in DailyDialog's form")
    parser.add_argument("--seeds", type=common.positive, default=SEEDS, help=f"default: {SEEDS}")
    parser.add_argument("--steps", type=common.positive, default=STEPS, help=f"default: {STEPS}")


def main(arguments: argparse.Namespace) -> dict | None:
    from newllm_lib.export.folder import export

    folder = arguments.folder.absolute()
    mark_folder(folder, "benchmark", "ladder")
    os.environ.setdefault("NEWLLM_CACHE", str(folder / "cache"))
    write_dialogues(arguments.dialogues, folder / "data")
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    for seed in range(arguments.seeds):
        start = trained("demo", {**START, "seed": seed, "output_dir": str(folder / f"start_{seed}")})
        base = export(start, folder / f"export_{seed}")
        for way in WAYS:
            figure = learned(way, seed, arguments.steps, start, base, folder)
            found[way].append(figure["eval_bits_per_byte"])
            say(f"--{way}, seed {seed}: {json.dumps(figure)}")
    rows = Rows("the ladder", packages=("torch", "transformers", "trl"))
    note = f"{arguments.steps} steps of about {ROWS} x {LENGTH} tokens, all weights, {arguments.seeds} seeds"
    for way, figures in found.items():
        rows.add(f"--{way}", "bits per byte of held-out answers, mean", sum(figures) / len(figures), "", note)
        rows.add(f"--{way}", "spread over seeds", max(figures) - min(figures), "", note)
    return common.record(rows, arguments)


def write_dialogues(source: Path, folder: Path) -> None:
    """Every tenth dialogue is held out, half of them for the test."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        name: open(folder / f"{name}.jsonl", "w", encoding="utf-8")
        for name in ("train", "validation", "test")
    }
    for number, line in enumerate(source.read_text(encoding="utf-8").splitlines()):
        if len(line.split()) > WORDS:
            continue
        turns = [turn.strip() for turn in line.split("__eou__") if turn.strip()]
        messages = [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]
        split = {0: "validation", 5: "test"}.get(number % 10, "train")
        files[split].write(json.dumps({"messages": messages}) + "\n")
    for file in files.values():
        file.close()


def trained(recipe: str, keys: dict) -> Run:
    """The finished run, trained if it is not there."""
    from newllm_lib.recipe import load_recipe
    from newllm_lib.training import train

    return train(load_recipe(recipe, keys))


def learned(way: str, seed: int, steps: int, start: Run, base: Path, folder: Path) -> dict:
    """The best held-out figures of one run."""
    keys = {**SAME, "max_steps": steps, "seed": seed, "data_dir": str(folder / "data")}
    keys |= {"output_dir": str(folder / f"{way}_{seed}"), "evals_per_epoch": 4}
    if way == "from":
        run = trained(
            "dailydialog", {**keys, "from_run": str(start.path), "model": "tiny_gpt2", "batch_size": ROWS}
        )
    else:
        own = {"base": str(base), "packing": "true", "lora_rank": 0, "batch_size": ROWS}
        run = trained("dailydialog", {k: v for k, v in keys.items() if k not in _NOT_OF_A_BASE} | own)
    return min((row for row in run.metrics() if "eval_loss" in row), key=lambda row: row["eval_loss"])


_NOT_OF_A_BASE = ("dropout", "eval_tokens", "learning_rate_batch_size")
