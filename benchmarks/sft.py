"""Instruction training of a base: tokens a second and memory, here and by a script on TRL.

    newllm bench sft --folder F                       a base of Qwen2.5-0.5B's sizes, LoRA of rank 16
    NEWLLM_DEVICE=t4 newllm bench sft --folder F      as a T4 would: fp16, checkpointing where it is needed

The base has random weights, so no hub is needed, and figures of quality mean nothing. 1,000 dialogues of at
most 512 tokens, the same batch and adapters. "plain TRL" is a script as a user would write it: `SFTTrainer`
with TRL's defaults (activations computed twice); "tuned TRL" has what the recipe has chosen here. Each way is
a process of its own; speed is that of the steps after the first ones, without evaluation and saving.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

from benchmarks import common
from benchmarks.common import Rows
from newllm_lib.console import say
from newllm_lib.runs import mark_folder

WAYS = ("here", "tuned TRL", "plain TRL")
BATCH, RANK, ALPHA, LENGTH, RECORDS, STEPS = 16, 16, 32, 512, 1000, 50
WARM = 10  # first steps whose time does not count
SIZES = dict(hidden_size=896, num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2)
SIZES |= dict(intermediate_size=4864, vocab_size=151_936, tie_word_embeddings=True, rope_theta=1e6)
SMALL = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
SMALL |= dict(intermediate_size=128, vocab_size=1000, tie_word_embeddings=True)
_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_out(parser)
    parser.add_argument("--folder", type=Path, required=True, help="where base, data and runs go")
    parser.add_argument("--ways", nargs="+", metavar="WAY", help=f"some of {', '.join(WAYS)} (default: all)")
    parser.add_argument("--small", action="store_true", help="a tiny base, to try the benchmark on a CPU")
    parser.add_argument("--steps", type=common.positive, default=STEPS, help=f"default: {STEPS}")
    parser.add_argument("--way", help=argparse.SUPPRESS)  # of one of the processes


def main(arguments: argparse.Namespace) -> dict | None:
    folder = arguments.folder.absolute()
    if arguments.way:
        measure = here if arguments.way == "here" else by_trl
        print(json.dumps(measure(folder, arguments)))
        return None
    mark_folder(folder, "benchmark", "sft")
    make_base(folder / "base", SMALL if arguments.small else SIZES)
    write_dialogues(folder / "data")
    rows = Rows("instruction training", packages=("torch", "transformers", "trl", "peft"))
    words = [
        "--folder",
        str(folder),
        "--steps",
        str(arguments.steps),
        *(["--small"] if arguments.small else []),
    ]
    for way in common.choose(arguments.ways, WAYS, "way"):
        figures = common.result_of(common.command("sft", *words, "--way", way), way)
        say(f"{way}: {json.dumps(figures)}")
        note = f"{figures['note']}; {BATCH} dialogues a step, at most {LENGTH} tokens, LoRA of rank {RANK}"
        rows.add(way, "training", figures["tokens_per_second"], "tokens/s", note)
        if figures["gib"]:
            rows.add(way, "peak allocated", figures["gib"], "GiB", note)
    return common.record(rows, arguments)


def make_base(folder: Path, sizes: dict) -> None:
    """A Qwen2 with random weights in bfloat16, and a byte-level tokenizer with ChatML's turns."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    if folder.exists():
        return
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special, initial_alphabet=alphabet)
    backend.train_from_iterator([" ".join(_words(random.Random(0), 2000))], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=_TEMPLATE
    )
    torch.manual_seed(0)
    config = Qwen2Config(**sizes, max_position_embeddings=4096, eos_token_id=2, pad_token_id=0)
    Qwen2ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_dialogues(folder: Path) -> None:
    """Questions and answers of 100 to 500 tokens, and some held out."""
    chance = random.Random(1)
    for split, count in (("train", RECORDS), ("validation", 20), ("test", 20)):
        folder.mkdir(parents=True, exist_ok=True)
        rows = [
            {"prompt": " ".join(_words(chance, 20)), "completion": " ".join(_words(chance, length))}
            for length in (chance.randint(80, 400) for _ in range(count))
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _words(chance: random.Random, count: int) -> list[str]:
    return [
        f"{chance.choice('bcdfgklmnprst')}{chance.choice('aeiou')}{chance.choice('lmnrst')}"
        for _ in range(count)
    ]


def here(folder: Path, arguments: argparse.Namespace) -> dict:
    """The library's own path, whose choices are noted for the other ways."""
    from newllm_lib.recipe import load_recipe
    from newllm_lib.training import train

    chosen = {
        "base": str(folder / "base"),
        "data_dir": str(folder / "data"),
        "output_dir": str(folder / f"run_{time.time():.0f}"),
        "max_seq_length": LENGTH,
        "batch_size": BATCH,
        "lora_rank": RANK,
        "lora_alpha": ALPHA,
        "max_steps": arguments.steps,
        "evals_per_epoch": 1,
        "logging_steps": 5,
    }
    import os

    os.environ.setdefault("NEWLLM_CACHE", str(folder / "cache"))
    recipe = load_recipe("sft", chosen)
    run = train(recipe)
    rows = [row for row in run.metrics() if "loss" in row and row["step"] > WARM]
    log = run.log.read_text(encoding="utf-8")
    tokens = _tokens(folder)
    speed = len(rows) / sum(1 / row["dialogues_per_second"] for row in rows) * tokens
    micro = int(log.split(" dialogues at a time")[0].rsplit(" ", 1)[1])
    found = {"micro": micro, "recompute": "computed twice" in log, "dtype": _dtype(recipe)}
    (folder / "chosen.json").write_text(json.dumps(found))
    return {"tokens_per_second": speed, "gib": _gib(), "loss": rows[-1]["loss"], "note": _note(found)}


def by_trl(folder: Path, arguments: argparse.Namespace) -> dict:
    """TRL as its own documentation shows it, on the same dialogues as prompt and completion."""
    from dataclasses import fields

    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    chosen = json.loads((folder / "chosen.json").read_text())
    chosen["recompute"] |= arguments.way == "plain TRL"
    lines = (folder / "data" / "train.jsonl").read_text().splitlines()
    data = [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "completion": [{"role": "assistant", "content": row["completion"]}],
        }
        for row in map(json.loads, lines)
    ]
    known = {f.name for f in fields(SFTConfig)}
    recompute = next(n for n in ("activation_checkpointing", "gradient_checkpointing") if n in known)
    config = SFTConfig(
        output_dir=str(folder / "trl"),
        max_steps=arguments.steps,
        per_device_train_batch_size=chosen["micro"],
        gradient_accumulation_steps=BATCH // chosen["micro"],
        learning_rate=2e-4,
        max_length=LENGTH,
        logging_steps=5,
        save_strategy="no",
        report_to=[],
        bf16=chosen["dtype"] == "bf16",
        fp16=chosen["dtype"] == "fp16",
        use_cpu=not torch.cuda.is_available(),
        disable_tqdm=True,
        model_init_kwargs={"dtype": "float16" if chosen["dtype"] == "fp16" else "auto"},
        **{recompute: chosen["recompute"]},
    )

    class Clock(TrainerCallback):
        """When the steps that count began and ended."""

        at: dict[int, float] = {}

        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step in (WARM, arguments.steps):
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                self.at[state.global_step] = time.monotonic()

    trainer = SFTTrainer(
        str(folder / "base"),
        args=config,
        train_dataset=Dataset.from_list(data),
        processing_class=AutoTokenizer.from_pretrained(folder / "base"),
        peft_config=LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=[clock := Clock()],
    )
    trainer.train()
    seconds = clock.at[arguments.steps] - clock.at[WARM]
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    speed = (arguments.steps - WARM) * BATCH * _tokens(folder) / seconds
    return {"tokens_per_second": speed, "gib": _gib(), "loss": losses[-1], "note": _note(chosen)}


def _tokens(folder: Path) -> float:
    """Tokens of a training dialogue on the average."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    rows = map(json.loads, (folder / "data" / "train.jsonl").read_text().splitlines())
    lengths = [len(tokenizer(row["prompt"] + row["completion"])["input_ids"]) + 10 for row in rows]
    return sum(min(length, LENGTH) for length in lengths) / len(lengths)


def _dtype(recipe) -> str:
    from newllm_lib.device import probe
    from newllm_lib.training.compile import dtype_of

    return dtype_of(recipe, probe())


def _gib() -> float:
    import torch

    return torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0


def _note(chosen: dict) -> str:
    again = ", activations computed twice" if chosen["recompute"] else ""
    return f"{chosen['dtype']}, {chosen['micro']} at a time{again}"
