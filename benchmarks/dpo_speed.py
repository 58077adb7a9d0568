"""What preference training costs here and with plain TRL: the same pairs, batch, length and adapters."""

from __future__ import annotations

import gc
import json
import time
from pathlib import Path

import torch

from benchmarks.common import Rows
from newllm_lib.console import say

PAIRS, LENGTH, BATCH, RANK, ALPHA = 1000, 128, 4, 16, 32
FEW = 20  # steps of the slowest way, whose speed is all that is asked


def speed(rows: Rows, folder: Path, layers: int) -> None:
    """Seconds are of training alone (here with the reference's log-probabilities, without evaluation and
    saving) and of the whole:
    from loading the base to the end."""
    base, data = make_base(folder / "base", layers), write_pairs(folder / "pairs.jsonl")
    for name, measure in (
        (
            "warm-up",
            lambda: plain_trl(base, data, folder / "warm", BATCH, 1, tuned=True, steps=2),
        ),  # CUDA, libraries
        ("tuned TRL", lambda: plain_trl(base, data, folder / "tuned", BATCH, 1, tuned=True)),
        ("DPO here", lambda: here(base, data, folder / "run")),
        (f"plain TRL, {FEW} steps", lambda: plain_trl(base, data, folder / "trl", 1, BATCH, steps=FEW)),
    ):
        release()
        started = time.monotonic()
        figures = {**measure(), "whole": time.monotonic() - started, **peak()}
        say(f"{name}: {json.dumps(figures)}")
        if name == "warm-up":
            continue
        note = f"{figures.pop('steps')} steps of {BATCH} pairs, {LENGTH} tokens, LoRA of rank {RANK}"
        for metric, unit in (
            ("training", "s"),
            ("whole", "s"),
            ("peak reserved", "GiB"),
            ("peak allocated", "GiB"),
        ):
            if metric in figures:
                rows.add(name, metric, figures[metric], unit, note)


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
    kept = [p for p in pairs if p.split == "train"][:PAIRS] + [p for p in pairs if p.split == "evaluation"][
        :60
    ]
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
    return {"peak reserved": reserved / 2**30, "peak allocated": allocated / 2**30}


def plain_trl(
    base: Path, data: Path, output: Path, micro: int, accumulate: int, tuned: bool = False, steps: int = -1
) -> dict:
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
        output_dir=str(output),
        num_train_epochs=1,
        max_steps=steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=accumulate,
        learning_rate=5e-6,
        max_length=LENGTH,
        logging_steps=5,
        save_strategy="no",
        report_to=[],
        bf16=gpu,
        use_cpu=not gpu,
        disable_tqdm=True,
        **({checkpointing: False} if tuned else {}),
    )
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, trust_remote_code=False)
    adapters = LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,
        lora_dropout=0.05,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
        fan_in_fan_out=True,
    )
    trainer = DPOTrainer(
        model,
        args=config,
        train_dataset=Dataset.from_list(pairs),
        peft_config=adapters,
        processing_class=AutoTokenizer.from_pretrained(base, trust_remote_code=False),
    )
    started = time.monotonic()
    trainer.train()
    synchronize()
    seconds = time.monotonic() - started
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return {
        "training": seconds,
        "steps": trainer.state.global_step,
        "first loss": losses[0] if losses else None,
    }


def here(base: Path, data: Path, output: Path) -> dict:
    """The library's whole path: encode, measure, train, evaluate, save, measure again, write the card."""
    from newllm_lib.errors import NewLLMError
    from newllm_lib.recipe import load_recipe
    from newllm_lib.runs import Run
    from newllm_lib.training import train

    chosen = {
        "base": str(base),
        "data": str(data),
        "output_dir": str(output),
        "max_seq_length": LENGTH,
        "batch_size": BATCH,
        "lora_rank": RANK,
        "lora_alpha": ALPHA,
        "lora_dropout": 0.05,
        "evals_per_epoch": 1,
        "logging_steps": 5,
        "dtype": "auto",
    }
    problem = None
    try:
        train(load_recipe("dpo", chosen))
    except NewLLMError as error:
        # random weights say nothing sensible: the figures of time and memory stand all the same
        problem = str(error)
    synchronize()
    rows = [row for row in Run(output).metrics() if "pairs_per_second" in row]
    steps = [row["step"] - before for row, before in zip(rows, [0, *(r["step"] for r in rows)], strict=False)]
    seconds = sum(n * BATCH / row["pairs_per_second"] for n, row in zip(steps, rows, strict=True))
    seconds += json.loads((output / "preferences.json").read_text(encoding="utf-8"))["before"][
        "reference_seconds"
    ]
    return {"training": seconds, "steps": sum(steps), "first loss": rows[0]["loss"], "problem": problem}


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
