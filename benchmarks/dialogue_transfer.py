"""Does pretraining on one kind of talk help with another? Bits per byte on held-out answers, before and after fine-tuning.

    python benchmarks/dialogue_transfer.py --data FOLDER [--sets dailydialog,code_alpaca,hh_rlhf] [--models new_llm,tiny_gpt2]

Pretrains on ChitChat (recipe `demo`), then for each set: measures that model as it is, fine-tunes it with the set's own recipe
(`--from`), and trains the same architecture and the recipe's own from scratch on the set alone. Each of the two ways gets its
trials, chosen on the validation split; the test split is looked at once for each way. FOLDER holds the pieces of the sets named
in `FILES`; each is cut into train, validation and test (80, 10, 10 %) by a hash of the record.

Writes OUT/results.json and OUT/answers.md, and prints each trial.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import time
from pathlib import Path

FILES = {
    "dailydialog": "dailydialog.validation.txt", "code_alpaca": "code_alpaca_2k.json",
    "hh_rlhf": "hh-rlhf.harmless.first-half.jsonl.gz",
}  # fmt: skip
SMALL = {"batch_size": 32, "logging_steps": 20, "keep_checkpoints": 1, "save_minutes": 60}  # these pieces are small
MUON = {"optimizer": "muon", "schedule": "wsd", "learning_rate": 6e-3, "learning_rate_batch_size": 128}
FINE_TUNING = ({"learning_rate": 1e-3}, {"learning_rate": 3e-3}, {"learning_rate": 3e-4})
SCRATCH = (  # `start`: with the sizes of the pretrained model; else the set's own recipe, one layer
    {"start": True, "learning_rate": 3e-3, "vocab_size": 1024},
    {"learning_rate": 3e-3, "vocab_size": 1024},
    {"learning_rate": 3e-3},
    {"start": True, **MUON, "vocab_size": 1024},
    {"start": True, **MUON},
)
SIZES = ("num_layers", "hidden_size", "context_dim", "mlp_size", "num_heads")


def records(name: str, path: Path) -> list[str]:
    """The records of a set's piece, each as one line of a file that `--data_dir` reads."""
    if name == "code_alpaca":
        return [json.dumps(row) for row in json.loads(path.read_text(encoding="utf-8"))]
    opened = gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8")
    with opened as file:
        return [line.rstrip("\n") for line in file if line.strip()]


def split_into(folder: Path, name: str, source: Path) -> None:
    """Write train, validation and test of a set into `folder`; equal records fall into the same split."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = {"train": [], "validation": [], "test": []}
    for record in records(name, source):
        share = hashlib.blake2b(record.encode(), digest_size=1).digest()[0] / 256
        parts["test" if share < 0.1 else "validation" if share < 0.2 else "train"].append(record)
    for split, rows in parts.items():
        ending = "txt" if source.suffix == ".txt" else "jsonl"
        (folder / f"{split}.{ending}").write_text("\n".join(rows) + "\n", encoding="utf-8")
    print(f"{name}: " + ", ".join(f"{len(rows)} {split}" for split, rows in parts.items()), flush=True)


def trial(recipe: str, label: str, number: int, folder: Path, common: dict, choices: dict) -> dict:
    """One training run (of before, if it is finished); its best validation and where it is."""
    from newllm_lib.recipe import load_recipe
    from newllm_lib.training import train

    began, choices = time.monotonic(), dict(choices)
    if choices.pop("start", False):
        choices |= {key: getattr(load_recipe("demo", {"model": common["model"]}), key) for key in SIZES}
    place = Path("runs") / f"{common['model']}_{recipe}_{label}_{number}"
    run = train(load_recipe(recipe, {**SMALL, **common, **choices, "data_dir": str(folder), "output_dir": str(place)}))
    scores = [(row["eval_bits_per_byte"], row["epoch"]) for row in run.metrics() if "eval_bits_per_byte" in row]
    found = {"label": label, "choices": choices, "run": str(place), "validation": min(scores)[0], "epoch": min(scores)[1]}
    print(f"TRIAL {recipe} {common['model']} {label} {choices}: {found['validation']:.4f} at epoch {found['epoch']:.1f} "
          f"({time.monotonic() - began:.1f} s)", flush=True)  # fmt: skip
    return found


def tested(run: str, data: Path) -> dict:
    """Test figures of a run on a set's held-out answers, and what it says to the fixed prompts."""
    from dataclasses import replace

    from newllm_lib.checkpoints import load_model
    from newllm_lib.device import probe
    from newllm_lib.evaluation import evaluate
    from newllm_lib.evaluation.evaluate_run import counted_baselines, packed_split
    from newllm_lib.evaluation.samples import Prompts, answer

    loaded = load_model(run, device=probe().torch_device)
    model, tokenizer = loaded.model, loaded.tokenizer
    recipe = replace(loaded.recipe, data_dir=str(data.absolute()), loss_on="answers", max_samples=None)
    split = packed_split(recipe, tokenizer, "test")
    figures = evaluate(model, split, tokenizer)
    figures["bigram"] = counted_baselines(recipe, tokenizer, split)["bigram"]["bits_per_byte"]
    return figures | {"answers": answer(model, tokenizer, Prompts(split, tokenizer), 40)}


def all_trials(name: str, start: str | None, common: dict, most: int) -> list[dict]:
    """Fine-tuning from `start` (none: left out) and from scratch."""
    ways = {"scratch": (SCRATCH, {"from_run": "none", "sample_tokens": 0})}
    if start is not None:
        ways = {"from-chitchat": (FINE_TUNING, {"from_run": start}), **ways}
    return [
        trial(name, label, number, Path("sets") / name, common, {**choices, **way})
        for label, (those, way) in ways.items() for number, choices in enumerate(those[:most])
    ]  # fmt: skip


def one_set(name: str, model: str, start: str, common: dict, most: int) -> dict:
    """Start, fine-tuned and from scratch on one set; each way by its best trial on the validation split."""
    data = Path("sets") / name
    trials = all_trials(name, start, {**common, "model": model}, most)
    result = {"set": name, "model": model, "trials": trials, "start": tested(start, data)}
    for label in ("from-chitchat", "scratch"):
        best = min((t for t in trials if t["label"] == label), key=lambda t: t["validation"])
        result[label] = {**tested(best["run"], data), "trial": best}
    ours, before, alone = (result[k]["bits_per_byte"] for k in ("from-chitchat", "start", "scratch"))
    result["against_start_percent"] = 100 * (ours - before) / before
    result["against_scratch_percent"] = 100 * (ours - alone) / alone
    print(f"RESULT {name} {model}: start {before:.4f}, fine-tuned {ours:.4f} ({result['against_start_percent']:+.1f} %), from "
          f"scratch {alone:.4f} ({result['against_scratch_percent']:+.1f} %), bigram {result['from-chitchat']['bigram']:.4f}; "
          f"test answers {result['start']['bytes']:,} bytes", flush=True)  # fmt: skip
    return result


def answers_page(results: list[dict]) -> str:
    """Answers of the start, the fine-tuned model and the one from scratch, beside each other."""
    lines = []
    for result in results:
        ways = [("before", result["start"]), ("fine-tuned", result["from-chitchat"]), ("from scratch", result["scratch"])]
        lines += [f"## {result['set']}, {result['model']}", "", "| prompt | " + " | ".join(w for w, _ in ways) + " |"]
        lines.append("|---" * 4 + "|")
        for i, prompt in enumerate(ways[0][1]["answers"]["prompts"]):
            cells = [prompt, *(w["answers"]["answers"][i] for _, w in ways)]
            lines.append("| " + " | ".join(" ".join(c.replace("|", "/").split()) or "(nothing)" for c in cells) + " |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sets", default="dailydialog")
    parser.add_argument("--models", default="new_llm")
    parser.add_argument("--compile", default="off", help="short runs: compiling takes longer than it gains")
    parser.add_argument("--work", type=Path, default=Path("dialogue_transfer"), help="runs and split data")
    parser.add_argument("--out", type=Path, default=Path("out"))
    parser.add_argument("--epochs", type=float, default=16, help="at most so many on a set")
    parser.add_argument("--scratch-only", action="store_true", help="only these runs; a later call finds them finished")
    parser.add_argument("--trials", type=int, default=5, help="at most so many for each way")
    parser.add_argument("--force", action="store_true", help="beside other runs on the same GPU")
    parser.add_argument("--start", help="a run that was pretrained already")
    parser.add_argument("--quick", action="store_true", help="a few steps only: to see that it works")
    arguments = parser.parse_args()
    sources = {name: (arguments.data / FILES[name]).absolute() for name in arguments.sets.split(",")}
    out = arguments.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    arguments.work.mkdir(parents=True, exist_ok=True)
    arguments.start = arguments.start and os.path.abspath(arguments.start)
    os.chdir(arguments.work)
    for name, source in sources.items():
        split_into(Path("sets") / name, name, source)

    from newllm_lib.recipe import load_recipe
    from newllm_lib.training import train

    few = {"max_steps": 6, "patience": 1} if arguments.quick else {}
    common = {"compile": arguments.compile, "epochs": arguments.epochs, "patience": 3, "force": arguments.force, **few}
    results = []
    for model in arguments.models.split(","):
        most = 1 if arguments.quick else arguments.trials
        if arguments.scratch_only:
            for name in sources:
                all_trials(name, None, {**common, "model": model}, most)
            continue
        began = time.monotonic()
        pretraining = {"model": model, "evals_per_epoch": 1, **few, "output_dir": f"runs/{model}_demo"}
        start = arguments.start or str(train(load_recipe("demo", pretraining)).path)
        print(f"PRETRAINED {start} ({time.monotonic() - began:.1f} s)", flush=True)
        for name in sources:
            results.append(one_set(name, model, start, common, most))
            (out / "results.json").write_text(json.dumps(results, indent=1, ensure_ascii=False), encoding="utf-8")
            (out / "answers.md").write_text(answers_page(results), encoding="utf-8")


if __name__ == "__main__":
    main()
