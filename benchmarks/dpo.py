"""Preference training: what it costs beside plain TRL, and whether it works.

    newllm bench dpo --parts speed           time and memory, here and by a script on TRL
    newllm bench dpo --parts preferences [--hh hh-rlhf.jsonl.gz]

speed: the base has GPT-2 small's sizes (124M parameters, vocabulary 50,257) and random weights, so no hub is
needed, and figures of quality mean nothing. "plain TRL" is a script as a user would write it: `DPOTrainer`
with TRL's defaults and the guide's 1 x 4 (a few steps of it); "tuned TRL" is the same without recomputed
activations and with the whole batch at a time, as here.

preferences: TinyGPT2 and New-LLM (0.9M parameters) learn ChitChat and both answers of the Japanese training
pairs, with a tokenizer trained on both. Then DPO with LoRA adapters on 1,000 Japanese pairs (and, with --hh,
on as many of HH-RLHF): accuracy and margin on pairs about facts that neither has seen, before and after, for
each kind of rejected answer, beside classifiers that only see length or words. Of the HH-RLHF file two fifths
are held out (by prompt), so that there are some hundred to measure on. About three minutes on a GPU, a
quarter of an hour on two CPU cores.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import time
from itertools import islice
from pathlib import Path

from benchmarks import common, dpo_speed
from benchmarks.common import Rows
from newllm_lib.console import say
from newllm_lib.runs import mark_folder

PARTS = ("speed", "preferences")
MODELS = ("tiny_gpt2", "new_llm")
SETS = ("preferences_ja", "hh_rlhf")  # the second needs --hh
SIZES = {
    "vocab_size": 4096,
    "num_layers": 2,
    "hidden_size": 128,
    "context_dim": 128,
    "mlp_size": 384,
    "num_heads": 2,
    "max_seq_length": 256,
    "batch_size": 32,
}
SMALL = SIZES | {
    "vocab_size": 3000,
    "hidden_size": 96,
    "context_dim": 96,
    "mlp_size": 256,
    "max_seq_length": 96,
    "batch_size": 16,
}
REPEATED = 6  # the Japanese answers are few beside ChitChat


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_out(parser)
    parser.add_argument(
        "--parts", nargs="+", metavar="PART", help=f"some of {' '.join(PARTS)} (default: both)"
    )
    parser.add_argument("--folder", type=Path, required=True, help="where bases, data and runs go")
    parser.add_argument("--layers", type=common.positive, default=12, help="speed: of the base (default: 12)")
    parser.add_argument("--hh", type=Path, help="preferences: HH-RLHF pairs (.jsonl.gz)")
    parser.add_argument("--small", action="store_true", help="preferences: smaller bases (0.5M), for a CPU")
    parser.add_argument("--conversations", type=int, help="preferences: use only so many of ChitChat's")
    parser.add_argument("--base_steps", type=common.positive, default=1200, help="of a base (default: 1200)")
    parser.add_argument("--epochs", type=float, default=3, help="of preference training (default: 3)")
    parser.add_argument(
        "--learning_rate",
        type=float,
        nargs="+",
        default=[2e-3],
        help="one for all models, or one for each (default: 0.002)",
    )
    parser.add_argument("--beta", type=float, default=0.02, help="default: 0.02")
    parser.add_argument(
        "--tag", default="", help="added to the runs' names, for another try on the same bases"
    )
    parser.add_argument("--models", nargs="+", metavar="MODEL", help=f"some of {' '.join(MODELS)}")
    parser.add_argument("--sets", nargs="+", metavar="SET", help=f"some of {' '.join(SETS)}")


def main(arguments: argparse.Namespace) -> dict | None:
    folder = arguments.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    mark_folder(folder, "benchmark", "dpo")
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("NEWLLM_CACHE", str(folder / "cache"))
    parts, rows = common.choose(arguments.parts, PARTS, "part"), Rows("preferences")
    if "speed" in parts:
        dpo_speed.speed(rows, folder, arguments.layers)
    if "preferences" in parts:
        preferences(rows, folder, arguments)
    return common.record(rows, arguments)


def preferences(rows: Rows, folder: Path, arguments: argparse.Namespace) -> None:
    """Make the bases, train each on each set, and measure before and after."""
    sizes = SMALL if arguments.small else SIZES
    write_texts(folder / "texts", arguments.conversations)
    wanted = common.choose(arguments.sets, SETS, "set")
    sets = {"preferences_ja": {"data": "preferences_ja"}} if "preferences_ja" in wanted else {}
    if "hh_rlhf" in wanted and arguments.hh:
        sets["hh_rlhf"] = {"data_dir": str(split_file(arguments.hh, folder / "hh"))}
    models, results = common.choose(arguments.models, MODELS, "model"), []
    rates = arguments.learning_rate * (len(models) if len(arguments.learning_rate) == 1 else 1)
    for model, rate in zip(models, rates, strict=True):
        base = train_base(model, folder, arguments.base_steps, sizes)
        for name, data in sets.items():
            changes = {**data, "learning_rate": rate, "max_seq_length": sizes["max_seq_length"]}
            found = prefer(model, base, name, changes, folder, arguments)
            results.append({"model": model, "data": name, **found})
            say(json.dumps(results[-1], ensure_ascii=False))
            for when in ("before", "after"):
                figures, note = found[when], f"{found[when]['pairs']} held-out pairs, 95 % intervals"
                for metric, unit, scale in (("accuracy", "%", 100), ("margin", "nats", 1)):
                    low, high = (scale * figures[f"{metric}_{end}"] for end in ("low", "high"))
                    interval = f"{note}: {low:.1f} to {high:.1f}"
                    rows.add(f"{model}, {name}, {when}", metric, scale * figures[metric], unit, interval)
    (folder / f"results{arguments.tag}.json").write_text(json.dumps(results, ensure_ascii=False, indent=1))
    say(table(results))


def write_texts(folder: Path, conversations: int | None) -> None:
    """train.jsonl: ChitChat's conversations, and the Japanese pairs' questions with both answers."""
    from newllm_lib.data.cache import cache_root
    from newllm_lib.data.datasets import open_source
    from newllm_lib.data.preferences import generate
    from newllm_lib.data.records import RowStats
    from newllm_lib.recipe import load_recipe

    if (folder / "train.jsonl").exists():
        return
    folder.mkdir(parents=True)
    source = open_source(load_recipe("demo", {"sized_for": "cpu"}), cache_root())
    rows = [
        [m._asdict() for m in record.messages]
        for record in islice(source.records("train", RowStats()), conversations)
    ]
    for pair in generate():
        if pair.split == "train":
            question = pair.prompt[0]._asdict()
            rows += REPEATED * [
                [question, {"role": "assistant", "content": side}] for side in (pair.chosen, pair.rejected)
            ]
    text = "".join(json.dumps({"messages": row}, ensure_ascii=False) + "\n" for row in rows)
    (folder / "train.jsonl").write_text(text, encoding="utf-8")


def split_file(path: Path, folder: Path) -> Path:
    """train.jsonl and test.jsonl from one file of pairs: what is asked first decides where a pair goes."""
    from newllm_lib.data.readers.folder import read_table

    if not folder.exists():
        folder.mkdir(parents=True)
        rows = [row for _, row in read_table(path)]
        held_out = [
            hashlib.sha256(row["chosen"].split("\n\nAssistant:")[0].encode()).digest()[0] < 0.4 * 256
            for row in rows
        ]
        for name, side in (("train", False), ("test", True)):
            part = "".join(
                json.dumps(row) + "\n" for row, out in zip(rows, held_out, strict=True) if out == side
            )
            (folder / f"{name}.jsonl").write_text(part, encoding="utf-8")
    return folder


def train_base(model: str, folder: Path, steps: int, sizes: dict) -> Path:
    from newllm_lib.recipe import load_recipe
    from newllm_lib.training import train

    changes = {
        **sizes,
        "sized_for": "cpu",
        "model": model,
        "data_dir": str(folder / "texts"),
        "epochs": 50,
        "max_steps": steps,
        "output_dir": str(folder / f"base_{model}"),
        "compile": "off",
        "force": True,
        "learning_rate": 6e-3 if model == "new_llm" else 3e-3,
        "evals_per_epoch": 1,
        "sample_tokens": 0,
    }
    return train(load_recipe("demo", changes)).path


def prefer(model: str, base: Path, name: str, changes: dict, folder: Path, arguments) -> dict:
    """DPO from `base` with `changes`: figures before and after, the first loss, the shortcuts."""
    from newllm_lib.data.preferences import load_preferences, shortcuts
    from newllm_lib.errors import Interrupted, NewLLMError
    from newllm_lib.recipe import load_recipe
    from newllm_lib.runs import Run
    from newllm_lib.training import train

    recipe = load_recipe(
        "dpo",
        {
            "sized_for": "cpu",
            "base": str(base),
            "output_dir": str(folder / f"dpo_{model}_{name}{arguments.tag}"),
            "max_samples": 1000,
            "eval_pairs": 700,
            "batch_size": 16,
            "epochs": arguments.epochs,
            "beta": arguments.beta,
            "evals_per_epoch": 1,
            "logging_steps": 5,
            "force": True,
            **changes,
        },
    )
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
        "first_loss": rows[0]["loss"],
        "last_loss": rows[-1]["loss"],
        "seconds": round(time.monotonic() - started, 1),
        "before": result["before"]["figures"],
        "after": result["after"]["figures"],
        "clearly_better": result["clearly_better"],
        "problem": problem,
        "shortcuts": shortcuts(pairs.train, pairs.evaluation),
    }


def table(results: list[dict]) -> str:
    lines = []
    for r in results:
        seen = ", ".join(f"{name} {100 * score:.1f} %" for name, score in r["shortcuts"].items())
        lines += [
            "",
            f"### {r['model']}, {r['data']}: loss {r['first_loss']:.4f} at the first step, "
            f"{r['last_loss']:.4f} at the last; clearly better: {r['clearly_better']}; {r['seconds']} s",
            f"classifiers: {seen}",
            "| pairs | accuracy before | after | margin before | after |",
        ]
        kinds = {"all": (r["before"], r["after"])}
        kinds |= {
            kind: (r["before"]["kinds"][kind], now) for kind, now in r["after"].get("kinds", {}).items()
        }
        for kind, (before, after) in kinds.items():
            cells = [
                _interval(f, *how) for how in (("accuracy", 100), ("margin", 1)) for f in (before, after)
            ]
            lines.append(f"| {kind} {after['pairs']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _interval(figures: dict, name: str, scale: int) -> str:
    value, low, high = (scale * figures[name + end] for end in ("", "_low", "_high"))
    return f"{value:.1f} ({low:.1f} to {high:.1f})"
