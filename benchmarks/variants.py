"""What parts are worth: a recipe trained by `newllm train` with each and without, at equal sizes and tokens.

    newllm bench variants phase7       Phase 7 without each of its parts, and a GPT of equal size, on ChitChat
    newllm bench variants low_memory   the optimizers that need less memory, beside AdamW on float32 weights

In the set `phase7` every model has the stored parameters of `phase7_small` within 1 % (a part that is left
out is made up for by a wider MLP). Measured on the test split: bits per byte of the run's best checkpoint,
beside the bigram table. A run that is there already is only evaluated, so the command can be stopped and
started again.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import common
from benchmarks.common import Rows
from newllm_lib.console import say
from newllm_lib.evaluation.compare.compare import trained_speed
from newllm_lib.evaluation.evaluate_run import evaluate_run
from newllm_lib.recipe import Recipe, load_recipe
from newllm_lib.training import train
from newllm_lib.training.model_config import count_parameters, model_config

_LIGHT = {"weights_dtype": "bf16", "optimizer_in_backward": True, "gradient_checkpointing": "on"}


@dataclass(frozen=True)
class Set:
    """Variants of a recipe.

    Args:
        benchmark: its name in results.csv.
        recipe: what all of them train.
        keys: what all of them have.
        variants: what each has beside that; the first is what the others are compared with.
        matched: give all the parameters of the first, by the MLP's width.
        small: keys for any machine.
    """

    benchmark: str
    recipe: str
    keys: dict
    variants: dict[str, dict]
    matched: bool = False
    small: dict = field(default_factory=dict)


SETS = {
    "phase7": Set(
        "phase7 quality",
        "phase7_small",
        {},
        {
            "phase7": {},
            "tiny_gpt2": {"model": "tiny_gpt2"},
            "Euclidean attention": {"attention": "dot"},
            "no AR-SSM": {"ar_ssm": False},
            "dense embedding": {"embedding": "dense"},
            "no curvature schedule": {"curvature_schedule": "off"},
            "kernels off": {"kernels": "off", "flash_attention": False},
        },
        matched=True,
    ),
    "low_memory": Set(
        "lowmem quality",
        "demo",
        {  # New-LLM of 104M parameters
            "sized_for": "h100",
            "hidden_size": 1024,
            "context_dim": 1024,
            "mlp_size": 4096,
            "num_layers": 8,
            "batch_size": 16,
            "micro_batch_size": 16,
            "max_seq_length": 128,
            "max_steps": 1000,
            "epochs": 100,
            "dropout": 0.0,
            "learning_rate": 1e-3,
            "learning_rate_batch_size": 16,
            "warmup_steps": 0.1,
            "schedule": "cosine",
            "compile": "replay",
            "carry_state": False,
            "save_minutes": 1000,
            "evals_per_epoch": 1,
        },
        {
            "AdamW float32": {"optimizer": "adamw"},
            "Adafactor 8-bit": {**_LIGHT, "optimizer": "adafactor", "momentum_bits": 8},
            "Adafactor 4-bit": {**_LIGHT, "optimizer": "adafactor", "momentum_bits": 4},
            "Adafactor without momentum": {**_LIGHT, "optimizer": "adafactor", "momentum_bits": 0},
            "Muon float32": {"optimizer": "muon"},
            "Muon 4-bit": {**_LIGHT, "optimizer": "muon", "momentum_bits": 4},
            "torchao AdamW 8-bit": {**_LIGHT, "optimizer": "adamw8bit"},
            "torchao AdamW 4-bit": {**_LIGHT, "optimizer": "adamw4bit"},
        },
        small={"hidden_size": 128, "context_dim": 128, "mlp_size": 384, "num_layers": 3},
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_out(parser)
    parser.add_argument("set_name", metavar="SET", choices=tuple(SETS), help=" or ".join(SETS))
    parser.add_argument("--only", nargs="+", metavar="VARIANT", help="only these (default: all)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="one run each (default: 0)")
    parser.add_argument("--work", help="where the runs are kept (default: checkpoints/variants_SET)")
    parser.add_argument("--small", action="store_true", help="low_memory: 0.9M parameters, for any machine")
    common.add_set(parser)


def main(arguments: argparse.Namespace) -> dict | None:
    chosen = SETS[arguments.set_name]
    names = common.choose(arguments.only, list(chosen.variants), "variant")
    work = Path(arguments.work or f"checkpoints/variants_{arguments.set_name}")
    keys = {**chosen.keys, **(chosen.small if arguments.small else {}), **common.changes(arguments.set)}
    rows, found = Rows(chosen.benchmark), []
    for seed in arguments.seeds:
        for name in names:
            recipe = recipe_of(
                chosen, name, {**keys, "seed": seed}, work / f"{name.replace(' ', '_')}-seed{seed}"
            )
            found.append({"variant": name, **measured(recipe)})
            _add(rows, found[-1], seed)
            say(table(found))
    return common.record(rows, arguments)


def recipe_of(chosen: Set, variant: str, keys: dict, folder: Path) -> Recipe:
    """The variant's recipe; in a matched set its MLP is resized to the first's parameters."""
    asked = {**keys, **chosen.variants[variant], "output_dir": str(folder)}
    plain = load_recipe(chosen.recipe, asked)
    if not chosen.matched or plain.model == "tiny_gpt2":  # which is matched by itself
        return plain
    wanted = _size(load_recipe(chosen.recipe, keys))
    nearest = plain.mlp_size + (wanted - _size(plain)) / (3 * plain.hidden_size * plain.num_layers)
    sizes = {max(32, 32 * round(nearest / 32)), plain.mlp_size}
    tried = [load_recipe(chosen.recipe, {**asked, "mlp_size": size}) for size in sorted(sizes)]
    return min(tried, key=lambda recipe: abs(_size(recipe) - wanted))


def _size(recipe: Recipe) -> int:
    return count_parameters(model_config(recipe, recipe.vocab_size))


def measured(recipe: Recipe) -> dict:
    """Train, then evaluate."""
    run = train(recipe)
    result = evaluate_run(run, baselines=True)
    return {
        "parameters": count_parameters(model_config(recipe, result["vocab_size"])),
        "bits_per_byte": result["bits_per_byte"],
        "bigram": result["baselines"]["bigram"]["bits_per_byte"],
        "tokens_per_second": trained_speed(run) or 0.0,
    }


def _add(rows: Rows, found: dict, seed: int) -> None:
    note = f"{found['parameters']:,} parameters, seed {seed}; bigram table {found['bigram']:.4f}"
    rows.add(found["variant"], f"bits per byte, seed {seed}", found["bits_per_byte"], "bit/byte", note)
    rows.add(
        found["variant"], f"training as logged, seed {seed}", found["tokens_per_second"], "tokens/s", note
    )


def table(found: list[dict]) -> str:
    """Mean over the seeds, how far they lie apart, and how far from the first variant."""
    lines = [
        "| variant | parameters | bits per byte | lowest | highest | against the first |",
        "|---" + 5 * "|---:" + "|",
    ]
    first = statistics.mean(f["bits_per_byte"] for f in found if f["variant"] == found[0]["variant"])
    for variant in dict.fromkeys(f["variant"] for f in found):
        mine = [f for f in found if f["variant"] == variant]
        bits = [f["bits_per_byte"] for f in mine]
        mean = statistics.mean(bits)
        cells = [f"{mine[0]['parameters']:,}", *(f"{x:.4f}" for x in (mean, min(bits), max(bits)))]
        lines.append(f"| {variant} | {' | '.join(cells)} | {100 * (mean / first - 1):+.2f} % |")
    return "\n".join([*lines, f"| bigram table | | {found[0]['bigram']:.4f} | | | |"])
