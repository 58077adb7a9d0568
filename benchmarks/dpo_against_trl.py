"""Time and memory of preference training here and with plain TRL: the same pairs, batch, length, adapters and dtype.

    python benchmarks/dpo_against_trl.py --folder /tmp/dpo-size

The base has GPT-2 small's sizes (124M parameters, vocabulary 50,257) and random weights, so no hub is needed, and figures of
quality mean nothing here. "plain TRL" is a script as a user would write it: `DPOTrainer` with TRL's defaults and the guide's
1 x 4 (a few steps of it); "tuned TRL" is the same without recomputed activations and with the whole batch at a time, as here.
Seconds are of training alone (here with the reference's log-probabilities, without evaluation and saving) and of the whole: from
loading the base to the end.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import time
from pathlib import Path

import torch

PAIRS, LENGTH, BATCH, RANK, ALPHA = 1000, 128, 4, 16, 32
FEW = 20  # steps of the slowest way, whose speed is all that is asked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="where the base and the runs go")
    parser.add_argument("--layers", type=int, default=12)
    arguments = parser.parse_args()
    folder = arguments.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("NEWLLM_CACHE", str(folder / "cache"))
    base, data = make_base(folder / "base", arguments.layers), write_pairs(folder / "pairs.jsonl")
    results = []
    for name, measure in (
        ("warm-up", lambda: plain_trl(base, data, folder / "warm", BATCH, 1, tuned=True, steps=2)),  # CUDA, libraries
        ("tuned TRL", lambda: plain_trl(base, data, folder / "tuned", BATCH, 1, tuned=True)),
        ("here", lambda: here(base, data, folder / "run")),
        (f"plain TRL, {FEW} steps", lambda: plain_trl(base, data, folder / "trl", 1, BATCH, steps=FEW)),
    ):
        release()
        started = time.monotonic()
        figures = {"name": name, **measure(), "whole_seconds": round(time.monotonic() - started, 2), **peak()}
        results.append(figures)
        print(json.dumps(figures), flush=True)
    (folder / "results.json").write_text(json.dumps(results, indent=1))


def make_base(folder: Path, layers: int) -> Path:
    from transformers import GPT2Config, GPT2LMHeadModel

    from newllm_lib.data.preferences import generate
    from newllm_lib.data.tokenizer import train_bpe, wrap

    if not folder.exists():
        tokenizer = wrap(train_bpe(iter([[p.question() + p.chosen for p in generate()]]), 600))
        ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
        torch.manual_seed(0)
        GPT2LMHeadModel(GPT2Config(vocab_size=50257, n_layer=layers, **ends)).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def write_pairs(path: Path) -> Path:
    """1,000 pairs to train on and 60 held out, of about 128 tokens."""
    from newllm_lib.data.preferences import generate

    pairs = generate()
    kept = [p for p in pairs if p.split == "train"][:PAIRS] + [p for p in pairs if p.split == "evaluation"][:60]
    doubled = [p._replace(chosen=p.chosen * 2, rejected=p.rejected * 2) for p in kept]
    path.write_text("".join(p.to_json() + "\n" for p in doubled), encoding="utf-8")
    return path


def release() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak() -> dict:
    if not torch.cuda.is_available():
        return {}
    reserved, allocated = torch.cuda.max_memory_reserved(), torch.cuda.max_memory_allocated()
    return {"peak_reserved_gib": round(reserved / 2**30, 3), "peak_allocated_gib": round(allocated / 2**30, 3)}


def plain_trl(base: Path, data: Path, output: Path, micro: int, accumulate: int, tuned: bool = False, steps: int = -1) -> dict:
    """TRL as its own documentation shows it, on the same pairs in its conversational form."""
    from dataclasses import fields

    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    rows = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
    said = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    rows = [r for r in rows if r["split"] == "train"]
    pairs = [{name: [{"role": role, "content": r[name]}] for name, role in said.items()} for r in rows]
    gpu, known = torch.cuda.is_available(), {f.name for f in fields(DPOConfig)}
    checkpointing = next(n for n in ("activation_checkpointing", "gradient_checkpointing") if n in known)
    config = DPOConfig(
        output_dir=str(output), num_train_epochs=1, max_steps=steps, per_device_train_batch_size=micro,
        gradient_accumulation_steps=accumulate, learning_rate=5e-6, max_length=LENGTH, logging_steps=5, save_strategy="no",
        report_to=[], bf16=gpu, use_cpu=not gpu, disable_tqdm=True, **({checkpointing: False} if tuned else {}),
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapters = LoraConfig(
        r=RANK, lora_alpha=ALPHA, lora_dropout=0.05, target_modules="all-linear", task_type="CAUSAL_LM", fan_in_fan_out=True
    )
    trainer = DPOTrainer(
        model, args=config, train_dataset=Dataset.from_list(pairs), peft_config=adapters,
        processing_class=AutoTokenizer.from_pretrained(base),
    )  # fmt: skip
    started = time.monotonic()
    trainer.train()
    synchronize()
    seconds = time.monotonic() - started
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    figures = {"training_seconds": round(seconds, 2), "steps": trainer.state.global_step}
    return figures | {"first_loss": losses[0] if losses else None}


def here(base: Path, data: Path, output: Path) -> dict:
    """The whole path of this library: encode, measure the base, train, evaluate, save, measure again, write the card."""
    from newllm_lib.recipe import load_recipe
    from newllm_lib.runs import Run
    from newllm_lib.training import train

    chosen = {
        "base": str(base), "data": str(data), "output_dir": str(output), "max_seq_length": LENGTH, "batch_size": BATCH,
        "lora_rank": RANK, "lora_alpha": ALPHA, "lora_dropout": 0.05, "evals_per_epoch": 1, "logging_steps": 5, "dtype": "auto",
    }  # fmt: skip
    problem = None
    try:
        train(load_recipe("dpo", chosen))
    except Exception as error:  # random weights say nothing sensible: the figures of time and memory stand all the same
        problem = str(error)
    synchronize()
    rows = [row for row in Run(output).metrics() if "pairs_per_second" in row]
    steps = [row["step"] - before for row, before in zip(rows, [0, *(r["step"] for r in rows)], strict=False)]
    seconds = sum(n * BATCH / row["pairs_per_second"] for n, row in zip(steps, rows, strict=True))
    seconds += json.loads((output / "preferences.json").read_text(encoding="utf-8"))["before"]["reference_seconds"]
    return {"training_seconds": round(seconds, 2), "steps": sum(steps), "first_loss": rows[0]["loss"], "problem": problem}


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
