"""Instruction training of a base: tokens a second and memory, here and by a script on TRL.

    newllm bench sft --folder F                       a base of Qwen2.5-0.5B's sizes, LoRA of rank 16
    NEWLLM_DEVICE=t4 newllm bench sft --folder F      as a T4 would: fp16, checkpointing where it is needed
    newllm bench sft --folder F --base 1.5b --ways here --set load_in=4bit micro_batch_size=4 --cap 4

The base has random weights, so no hub is needed, and figures of quality mean nothing. 1,000 dialogues of at
most 512 tokens, the same batch and adapters. "plain TRL" is a script as a user would write it: `SFTTrainer`
with TRL's defaults (activations computed twice), beside "here, computed twice"; "tuned TRL" has what the
recipe has chosen here. Each way is a process of its own; speed is that of the steps after the first ones,
without evaluation and saving.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import sys
import time
from pathlib import Path

from benchmarks import common
from benchmarks.common import Rows
from newllm_lib.console import say
from newllm_lib.errors import NewLLMError
from newllm_lib.runs import mark_folder

WAYS = ("here", "tuned TRL", "here, computed twice", "plain TRL")
BATCH, RANK, ALPHA, LENGTH, RECORDS, STEPS = 16, 16, 32, 512, 1000, 50
WARM = 10  # first steps whose time does not count
SIZES = {
    "0.5b": dict(hidden_size=896, num_hidden_layers=24, num_attention_heads=14, intermediate_size=4864),
    "1.5b": dict(hidden_size=1536, num_hidden_layers=28, num_attention_heads=12, intermediate_size=8960),
    "tiny": dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128),
}  # Qwen2.5's
_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_out(parser)
    common.add_set(parser)
    parser.add_argument("--folder", type=Path, required=True, help="where base, data and runs go")
    parser.add_argument("--ways", nargs="+", metavar="WAY", help=f"some of {', '.join(WAYS)} (default: all)")
    parser.add_argument("--base", choices=SIZES, default="0.5b", help="whose sizes (default: 0.5b)")
    parser.add_argument("--steps", type=common.positive, default=STEPS, help=f"default: {STEPS}")
    parser.add_argument("--cap", type=float, metavar="GIB", help="refuse each process more GPU memory")


def main(arguments: argparse.Namespace) -> dict | None:
    os.environ["HF_HUB_OFFLINE"] = "1"  # TRL and PEFT would wait for a network that is not there
    ways = common.choose(arguments.ways, WAYS, "way")
    folder = arguments.folder.absolute()
    mark_folder(folder, "benchmark", "sft")
    in_a_process(make_base, folder / "base" / arguments.base, SIZES[arguments.base])
    write_dialogues(folder / "data")
    measured = [(way, in_a_process(by_trl if "TRL" in way else here, folder, arguments, way)) for way in ways]
    rows = Rows("instruction training", packages=("torch", "transformers", "trl", "peft"))
    sizes = f"Qwen2.5-{arguments.base}'s sizes"
    for way, found in measured:
        note = f"{found['note']}; {BATCH} dialogues a step, at most {LENGTH} tokens, LoRA of rank {RANK}"
        rows.add(f"{way}, {sizes}", "training", found["tokens_per_second"], "tokens/s", note)
        rows.add(f"{way}, {sizes}", "main thread, a step", found["thread_ms_a_step"], "ms", note)
        for peak, gib in found["memory"].items():
            rows.add(f"{way}, {sizes}", peak, gib, "GiB", note)
    return common.record(rows, arguments)


def in_a_process(function, *arguments):
    """What a function returns in a new process, whose output goes to the error stream.

    Raises:
        NewLLMError: it failed.
    """
    context = multiprocessing.get_context("spawn")  # a forked one could not use a GPU
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(sender, function, arguments))
    process.start()
    sender.close()
    try:
        result = receiver.recv()
    except EOFError:
        raise NewLLMError(f"{function.__name__} failed, as said above: {arguments[-1]}") from None
    process.join()
    if result is not None:
        say(f"{arguments[-1]}: {json.dumps(result)}")
    return result


def _work(sender, function, arguments: tuple) -> None:
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    sender.send(function(*arguments))
    sender.close()


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
    vocabulary = 1000 if sizes["hidden_size"] < 100 else 151_936
    config = Qwen2Config(
        **sizes,
        num_key_value_heads=2,
        vocab_size=vocabulary,
        tie_word_embeddings=True,
        rope_theta=1e6,
        max_position_embeddings=4096,
        eos_token_id=2,
        pad_token_id=0,
    )
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = Qwen2ForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder)
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


def here(folder: Path, arguments: argparse.Namespace, way: str) -> dict:
    """The library's own path; what it chooses by itself is noted for the other ways."""
    from newllm_lib.recipe import load_recipe
    from newllm_lib.training import train
    from newllm_lib.training.sft import sft_task

    _set_cap(arguments)
    twice = {"gradient_checkpointing": "on"} if way != "here" else {}
    chosen = {
        "base": str(folder / "base" / arguments.base),
        "data_dir": str(folder / "data"),
        "output_dir": str(folder / f"run_{time.time():.0f}"),
        "max_seq_length": LENGTH,
        "batch_size": BATCH,
        "lora_rank": RANK,
        "lora_alpha": ALPHA,
        "max_steps": arguments.steps,
        "evals_per_epoch": 1,
        "logging_steps": 5,
        "sample_tokens": 8,
    }
    os.environ.setdefault("NEWLLM_CACHE", str(folder / "cache"))
    recipe = load_recipe("sft", chosen | twice | common.changes(arguments.set))
    clock = make_clock(arguments.steps)
    sft_trainer = sft_task.sft_trainer
    sft_task.sft_trainer = lambda *a, **k: sft_trainer(*a, **k, callbacks=[clock])
    run = train(recipe)
    rows = [row for row in run.metrics() if "loss" in row]
    log = run.log.read_text(encoding="utf-8")
    micro = int(log.split(" dialogues at a time")[0].rsplit(" ", 1)[1])
    found = {"micro": micro, "recompute": "computed twice" in log, "dtype": _dtype(recipe)}
    if not twice:
        _chosen(folder).write_text(json.dumps(found))
    return figures(clock, folder, arguments.steps, rows[-1]["loss"], found)


def by_trl(folder: Path, arguments: argparse.Namespace, way: str) -> dict:
    """TRL as its own documentation shows it, on the same dialogues as prompt and completion."""
    from dataclasses import fields

    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    _set_cap(arguments)
    chosen = json.loads(_chosen(folder).read_text())
    chosen["recompute"] |= way == "plain TRL"
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
    base = folder / "base" / arguments.base
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

    trainer = SFTTrainer(
        str(base),
        args=config,
        train_dataset=Dataset.from_list(data),
        processing_class=AutoTokenizer.from_pretrained(base, trust_remote_code=False),
        peft_config=LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=[clock := make_clock(arguments.steps)],
    )
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return figures(clock, folder, arguments.steps, losses[-1], chosen)


def make_clock(steps: int):
    """A callback that knows when the steps that count began and ended, by the clock and by what the main
    thread computed: that one hardly depends on what else runs on the machine."""
    import torch
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        at: dict[int, tuple[float, float]] = {}

        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step in (WARM, steps):
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                self.at[state.global_step] = time.monotonic(), time.thread_time()

    return Clock()


def figures(clock, folder: Path, steps: int, loss: float, chosen: dict) -> dict:
    """What a way's process gives."""
    seconds, computed = (end - begin for begin, end in zip(clock.at[WARM], clock.at[steps], strict=True))
    speed = (steps - WARM) * BATCH * _tokens(folder) / seconds
    own = {"tokens_per_second": speed, "thread_ms_a_step": 1e3 * computed / (steps - WARM), "loss": loss}
    return own | {"memory": _memory(), "note": _note(chosen)}


def _chosen(folder: Path) -> Path:
    return folder / f"chosen_{os.environ.get('NEWLLM_DEVICE', 'here')}.json"


def _set_cap(arguments: argparse.Namespace) -> None:
    import torch

    if arguments.cap:
        whole = torch.cuda.get_device_properties(0).total_memory / 2**30
        torch.cuda.set_per_process_memory_fraction(arguments.cap / whole)


def _tokens(folder: Path) -> float:
    """Tokens of a training dialogue on the average."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(next((folder / "base").iterdir()))
    rows = map(json.loads, (folder / "data" / "train.jsonl").read_text().splitlines())
    lengths = [len(tokenizer(row["prompt"] + row["completion"])["input_ids"]) + 10 for row in rows]
    return sum(min(length, LENGTH) for length in lengths) / len(lengths)


def _dtype(recipe) -> str:
    from newllm_lib.device import probe
    from newllm_lib.training.compile import dtype_of

    return dtype_of(recipe, probe())


def _memory() -> dict:
    """GiB at the peak, of a GPU: that tensors filled, and that the process kept for them."""
    import torch

    if not torch.cuda.is_available():
        return {}
    peaks = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    return {"peak allocated": peaks[0] / 2**30, "peak reserved": peaks[1] / 2**30}


def _note(chosen: dict) -> str:
    again = ", activations computed twice" if chosen["recompute"] else ""
    return f"{chosen['dtype']}, {chosen['micro']} at a time{again}"
