"""How fast single tokens come, and what memory holds, after short and after long histories.

New-LLM by its captured step and by transformers' `generate`, and beside it transformers' GPT-2 of the same
size with its key-value cache, whose window is made as long as the history. Untrained weights: neither speed
nor memory depends on them.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time

import torch

from benchmarks import common
from benchmarks.common import Rows
from benchmarks.peers import SIZES, sized_recipe
from benchmarks.table import picture_of, record_and_draw
from newllm_lib.console import say
from newllm_lib.generation.decoding import Steps
from newllm_lib.generation.sampling import Sampler, Settings
from newllm_lib.generation.stateful import IncrementalDecoder, eval_mode
from newllm_lib.training.model_config import build_model

VOCABULARY = 4096
HISTORIES = (16, 65_536)
_TITLES = {
    "new_llm": "New-LLM, captured step",
    "new_llm_sampling": "New-LLM, captured step, sampling",
    "new_llm_generate": "New-LLM, transformers' generate",
    "gpt2_generate": "GPT-2, transformers' generate",
}
WAYS = tuple(_TITLES)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_out(parser, str(picture_of("decode")))
    parser.add_argument("--ways", nargs="+", metavar="WAY", help=f"only these (default: {' '.join(WAYS)})")
    parser.add_argument(
        "--histories",
        nargs="+",
        type=common.positive,
        default=list(HISTORIES),
        metavar="N",
        help="tokens read before (default: 16 65536)",
    )
    parser.add_argument(
        "--batches",
        nargs="+",
        type=common.positive,
        default=[1, 64],
        metavar="N",
        help="texts at a time (default: 1 64)",
    )
    parser.add_argument("--tokens", type=common.positive, default=512, help="tokens timed (default: 512)")


def main(arguments: argparse.Namespace) -> dict | None:
    ways = common.choose(arguments.ways, WAYS, "way")
    histories = arguments.histories
    say("Timing single tokens after " + " and ".join(f"{h:,}" for h in histories) + " tokens of history")
    rows = Rows("decode")
    run(rows, histories=histories, batches=arguments.batches, tokens=arguments.tokens, ways=ways)
    return record_and_draw(rows, arguments)


def run(
    rows: Rows, *, size: str = "4M", histories=HISTORIES, batches=(1, 64), tokens: int = 512, ways=WAYS
) -> None:
    """Measure and add rows: tokens a second of all texts together, MiB on the device while decoding."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        _greedy(size, 16, 1, 16, device)  # what libraries set aside for themselves once is nobody's
    for way in ways:
        for batch in batches if way == "new_llm" else batches[:1]:
            for history in histories:
                torch.manual_seed(0)
                found = _WAYS[way](size, history, batch, tokens, device)
                name, note = _TITLES[way], f"{size} parameters"
                after = f"after {history:,} tokens, batch {batch}"
                rows.add(name, f"decoding {after}", found["tokens_per_second"], "tokens/s", note)
                if found["mib"] is not None:
                    rows.add(name, f"memory {after}", found["mib"], "MiB", note)
                memory = "" if found["mib"] is None else f", {found['mib']:.1f} MiB"
                say(f"{name:<34}{after:<36} {found['tokens_per_second']:>9,.0f} tokens/s{memory}")


def _greedy(*arguments) -> dict:
    return _by_steps(Settings(temperature=0), *arguments)


def _sampling(*arguments) -> dict:
    return _by_steps(Settings(seed=0), *arguments)


def _by_steps(settings, size, history, batch, tokens, device) -> dict:
    before = _allocated(device)
    model = _new_llm(size, device)
    steps = Steps(model, batch, Sampler(settings, [], device), [])
    reader = IncrementalDecoder(model)
    with eval_mode(model):
        logits = reader.read(_history(history))
    steps.begin(reader.carried.expand(batch, -1, -1), logits.expand(batch, -1), [[]] * batch)
    times = []
    for _ in range(max(4, tokens // steps.at_once)):
        start = time.perf_counter()
        steps.run(steps.at_once)
        times.append(time.perf_counter() - start)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    steps.run(steps.at_once)
    held = (torch.cuda.max_memory_allocated() - before) / 2**20 if device.type == "cuda" else None
    return {"tokens_per_second": batch * steps.at_once / statistics.median(times), "mib": held}


def _by_generate(model, history, batch, tokens, device) -> dict:
    """The time of more tokens less that of few: reading the history is in both."""
    ids = torch.tensor([_history(history)] * batch, device=device)
    few, more = 8, 8 + min(tokens, 128)

    def seconds(count):
        start = time.perf_counter()
        with eval_mode(model):
            model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                min_new_tokens=count,
                max_new_tokens=count,
                pad_token_id=0,
            )
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    seconds(few)
    spent = statistics.median(seconds(more) for _ in range(2)) - statistics.median(
        seconds(few) for _ in range(2)
    )
    return {"tokens_per_second": batch * (more - few) / spent, "mib": None}


def _new_llm(size: str, device):
    return build_model(sized_recipe("new_llm", size, VOCABULARY, dropout=0.0), VOCABULARY).to(device).eval()


def _new_llm_generate(size, history, batch, tokens, device) -> dict:
    return _by_generate(_new_llm(size, device), history, batch, tokens, device)


def _gpt2_generate(size, history, batch, tokens, device) -> dict:
    from transformers import GPT2Config, GPT2LMHeadModel

    _, width, layers = SIZES[size]
    sizes = {"n_positions": history + tokens + 16, "n_embd": width, "n_layer": layers, "n_head": width // 64}
    config = GPT2Config(
        vocab_size=VOCABULARY, attn_implementation="sdpa", bos_token_id=None, eos_token_id=None, **sizes
    )
    model = GPT2LMHeadModel(config).to(device).eval()
    return _by_generate(model, history, batch, tokens, device)


_WAYS = {
    "new_llm": _greedy,
    "new_llm_sampling": _sampling,
    "new_llm_generate": _new_llm_generate,
    "gpt2_generate": _gpt2_generate,
}


def _history(length: int) -> list[int]:
    return torch.randint(1, VOCABULARY, (length,), generator=torch.Generator().manual_seed(0)).tolist()


def _allocated(device) -> int:
    """Bytes that others hold, garbage of the last measurement taken out."""
    gc.collect()
    return torch.cuda.memory_allocated() if device.type == "cuda" else 0
