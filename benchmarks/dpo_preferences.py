"""Does preference training work? Small bases that know some Japanese are made here, trained by DPO with LoRA, and measured.

    python benchmarks/dpo_preferences.py --folder /tmp/dpo --hh /path/to/hh-rlhf.jsonl.gz

TinyGPT2 and New-LLM (0.9M parameters) learn ChitChat and both answers of the Japanese training pairs, with a tokenizer trained on
both. Then DPO with LoRA adapters on 1,000 Japanese pairs (and, with --hh, on as many of HH-RLHF): accuracy and margin on pairs
about facts that neither has seen, before and after, for each kind of rejected answer, beside classifiers that only see length or
words. Of the HH-RLHF file two fifths are held out (by prompt), so that there are some hundred to measure on.
Everything runs offline; about three minutes on a GPU, a quarter of an hour on two CPU cores.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import time
from itertools import islice
from pathlib import Path

MODELS = ("tiny_gpt2", "new_llm")
SETS = ("preferences_ja", "hh_rlhf")  # the second needs --hh
SIZES = {
    "vocab_size": 4096, "num_layers": 2, "hidden_size": 128, "context_dim": 128, "mlp_size": 384, "num_heads": 2,
    "max_seq_length": 256, "batch_size": 32,
}  # fmt: skip
SMALL = SIZES | {
    "vocab_size": 3000, "hidden_size": 96, "context_dim": 96, "mlp_size": 256, "max_seq_length": 96, "batch_size": 16,
}  # fmt: skip
REPEATED = 6  # the Japanese answers are few beside ChitChat


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="where data and runs go")
    parser.add_argument("--hh", type=Path, help="HH-RLHF pairs (.jsonl.gz)")
    parser.add_argument("--small", action="store_true", help="smaller bases (0.5M parameters), for a processor")
    parser.add_argument("--conversations", type=int, help="use only so many of ChitChat's")
    parser.add_argument("--base_steps", type=int, default=1200)
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--learning_rate", type=float, nargs="+", default=[2e-3], help="one for all models, or one for each")
    parser.add_argument("--beta", type=float, default=0.02)
    parser.add_argument("--tag", default="", help="added to the names of the runs, for another try on the same bases")
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--sets", nargs="+", default=SETS, choices=SETS)
    arguments = parser.parse_args()
    folder = arguments.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("NEWLLM_CACHE", str(folder / "cache"))
    sizes = SMALL if arguments.small else SIZES
    write_texts(folder / "texts", arguments.conversations)
    results = []
    sets = {"preferences_ja": {"data": "preferences_ja"}} if "preferences_ja" in arguments.sets else {}
    if "hh_rlhf" in arguments.sets and arguments.hh:
        sets["hh_rlhf"] = {"data_dir": str(split_file(arguments.hh, folder / "hh"))}
    rates = arguments.learning_rate * (len(arguments.models) if len(arguments.learning_rate) == 1 else 1)
    for model, rate in zip(arguments.models, rates, strict=True):
        started = time.monotonic()
        base = train_base(model, folder, arguments.base_steps, sizes)
        print(f"## base {model}: {time.monotonic() - started:.0f} s", flush=True)
        for name, data in sets.items():
            changes = {**data, "learning_rate": rate, "max_seq_length": sizes["max_seq_length"]}
            results.append({"model": model, "data": name, **prefer(model, base, name, changes, folder, arguments)})
            print(json.dumps(results[-1], ensure_ascii=False), flush=True)
    (folder / f"results{arguments.tag}.json").write_text(json.dumps(results, ensure_ascii=False, indent=1))
    print(table(results))


def write_texts(folder: Path, conversations: int | None) -> None:
    """train.jsonl: ChitChat's conversations, and questions of the Japanese training pairs with both of their answers."""
    from newllm_lib.data.cache import cache_root
    from newllm_lib.data.datasets import open_source
    from newllm_lib.data.preferences import generate
    from newllm_lib.data.records import Tally
    from newllm_lib.recipe import load_recipe

    if (folder / "train.jsonl").exists():
        return
    folder.mkdir(parents=True)
    source = open_source(load_recipe("demo", {"sized_for": "cpu"}), cache_root())
    rows = [[m._asdict() for m in record.messages] for record in islice(source.records("train", Tally()), conversations)]
    for pair in generate():
        if pair.split == "train":
            question = pair.prompt[0]._asdict()
            rows += REPEATED * [[question, {"role": "assistant", "content": side}] for side in (pair.chosen, pair.rejected)]
    text = "".join(json.dumps({"messages": row}, ensure_ascii=False) + "\n" for row in rows)
    (folder / "train.jsonl").write_text(text, encoding="utf-8")


def split_file(path: Path, folder: Path) -> Path:
    """train.jsonl and test.jsonl from one file of pairs: what is asked first decides where a pair goes."""
    from newllm_lib.data.readers.folder import read_table

    if not folder.exists():
        folder.mkdir(parents=True)
        rows = [row for _, row in read_table(path)]
        held_out = [hashlib.sha256(row["chosen"].split("\n\nAssistant:")[0].encode()).digest()[0] < 0.4 * 256 for row in rows]
        for name, side in (("train", False), ("test", True)):
            part = "".join(json.dumps(row) + "\n" for row, out in zip(rows, held_out, strict=True) if out == side)
            (folder / f"{name}.jsonl").write_text(part, encoding="utf-8")
    return folder


def train_base(model: str, folder: Path, steps: int, sizes: dict) -> Path:
    from newllm_lib.recipe import load_recipe
    from newllm_lib.training import train

    changes = {
        **sizes, "sized_for": "cpu", "model": model, "data_dir": str(folder / "texts"), "epochs": 50, "max_steps": steps,
        "output_dir": str(folder / f"base_{model}"), "compile": "off", "force": True,
        "learning_rate": 6e-3 if model == "new_llm" else 3e-3, "evals_per_epoch": 1, "sample_tokens": 0,
    }  # fmt: skip
    return train(load_recipe("demo", changes)).path


def prefer(model: str, base: Path, name: str, changes: dict, folder: Path, arguments) -> dict:
    """DPO from `base` on the data that `changes` name: what was measured before and after, the first loss, the shortcuts."""
    from newllm_lib.data.preferences import load_preferences, shortcuts
    from newllm_lib.errors import Interrupted, NewLLMError
    from newllm_lib.recipe import load_recipe
    from newllm_lib.runs import Run
    from newllm_lib.training import train

    recipe = load_recipe("dpo", {
        "sized_for": "cpu", "base": str(base), "output_dir": str(folder / f"dpo_{model}_{name}{arguments.tag}"),
        "max_samples": 1000, "eval_pairs": 700, "batch_size": 16, "epochs": arguments.epochs, "beta": arguments.beta,
        "evals_per_epoch": 1, "logging_steps": 5, "force": True, **changes,
    })  # fmt: skip
    started = time.monotonic()
    problem = None
    try:
        train(recipe)
    except Interrupted:
        raise
    except NewLLMError as error:  # a collapsed run is a result too
        problem = str(error)
    run = Run(recipe.run_path())
    result = json.loads((run.path / "preferences.json").read_text(encoding="utf-8"))
    rows = [row for row in run.metrics() if "loss" in row]
    pairs = load_preferences(recipe)
    return {
        "first_loss": rows[0]["loss"], "last_loss": rows[-1]["loss"], "seconds": round(time.monotonic() - started, 1),
        "before": result["before"]["figures"], "after": result["after"]["figures"], "clearly_better": result["clearly_better"],
        "problem": problem, "shortcuts": shortcuts(pairs.train, pairs.evaluation),
    }  # fmt: skip


def table(results: list[dict]) -> str:
    lines = []
    for r in results:
        seen = ", ".join(f"{name} {100 * score:.1f} %" for name, score in r["shortcuts"].items())
        lines += [
            "", f"### {r['model']}, {r['data']}: loss {r['first_loss']:.4f} at the first step, {r['last_loss']:.4f} at the last; "
            f"clearly better: {r['clearly_better']}; {r['seconds']} s", f"classifiers: {seen}",
            "| pairs | accuracy before | after | margin before | after |",
        ]  # fmt: skip
        kinds = {"all": (r["before"], r["after"])}
        kinds |= {kind: (r["before"]["kinds"][kind], now) for kind, now in r["after"].get("kinds", {}).items()}
        for kind, (before, after) in kinds.items():
            cells = [_interval(f, *how) for how in (("accuracy", 100), ("margin", 1)) for f in (before, after)]
            lines.append(f"| {kind} {after['pairs']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _interval(figures: dict, name: str, scale: int) -> str:
    return f"{scale * figures[name]:.1f} ({scale * figures[name + '_low']:.1f} to {scale * figures[name + '_high']:.1f})"


if __name__ == "__main__":
    main()
