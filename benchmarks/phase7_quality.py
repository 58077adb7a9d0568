"""What Phase 7's parts are worth: phase7_small against a GPT of equal size, and without each of its parts, on ChitChat.

    python benchmarks/phase7_quality.py --out benchmarks/phase7_quality.csv [--seeds 0 1 2 --only phase7 tiny_gpt2 --work DIR]

Every model has the same stored parameters within 1 % (a part that is left out is made up for by a wider MLP), reads the same
tokens in the same number of steps, and is trained by `newllm train`'s own path. Measured on the test split: bits per byte of the
run's best checkpoint, beside the bigram table. A run that is there already is only evaluated, so the script can be stopped and
started again.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from measuring import append_rows, machine

from newllm_lib.evaluation.comparison import trained_speed
from newllm_lib.evaluation.evaluate_run import evaluate_run
from newllm_lib.recipe import Recipe, load_recipe
from newllm_lib.training import train
from newllm_lib.training.model_config import count_parameters, model_config

VARIANTS = {
    "phase7": {},
    "tiny_gpt2": {"model": "tiny_gpt2"},
    "Euclidean attention": {"attention": "dot"},
    "no AR-SSM": {"ar_ssm": False},
    "dense embedding": {"embedding": "dense"},
    "no curvature schedule": {"curvature_schedule": "off"},
    "kernels off": {"kernels": "off", "flash_attention": False},
}


def recipe_of(variant: str, seed: int, work: Path, changes: dict) -> Recipe:
    """The variant's recipe, with the MLP widened or narrowed to phase7_small's stored parameters."""
    name = f"{variant.replace(' ', '_')}-seed{seed}"
    asked = {**changes, **VARIANTS[variant], "seed": seed, "output_dir": str(work / name)}
    wanted = _size(load_recipe("phase7_small", changes))
    if asked.get("model") == "tiny_gpt2":  # matched by itself
        return load_recipe("phase7_small", asked)
    return min(
        (load_recipe("phase7_small", {**asked, "mlp_size": size}) for size in _mlp_sizes(asked, wanted)),
        key=lambda recipe: abs(_size(recipe) - wanted),
    )


def _mlp_sizes(asked: dict, wanted: int) -> list[int]:
    """Multiples of 32 around the one that gives `wanted` parameters, which are linear in it."""
    recipe = load_recipe("phase7_small", asked)
    each = 3 * recipe.hidden_size * recipe.num_layers
    nearest = recipe.mlp_size + (wanted - _size(recipe)) / each
    return sorted({max(32, 32 * round(nearest / 32)), recipe.mlp_size})


def _size(recipe: Recipe) -> int:
    return count_parameters(model_config(recipe, recipe.vocab_size))


def measure(variant: str, seed: int, work: Path, changes: dict) -> dict:
    recipe = recipe_of(variant, seed, work, changes)
    run = train(recipe)
    result = evaluate_run(run, baselines=True)
    return {
        "variant": variant, "seed": seed, "parameters": _size(recipe), "mlp_size": recipe.mlp_size,
        "bits_per_byte": round(result["bits_per_byte"], 4), "perplexity": round(result["perplexity"], 3),
        "vocabulary": result["vocab_size"], "bigram_bits_per_byte": round(result["baselines"]["bigram"]["bits_per_byte"], 4),
        "training_tokens_per_second": round(trained_speed(run) or 0), **machine(),
    }  # fmt: skip


def table(rows: list[dict]) -> str:
    """Mean over the seeds, and how far they lie apart."""
    lines = ["| model | parameters | bits per byte (mean) | lowest | highest | seeds |", "|---|---|---|---|---|---|"]
    for variant in dict.fromkeys(row["variant"] for row in rows):
        found = [row["bits_per_byte"] for row in rows if row["variant"] == variant]
        size = next(row["parameters"] for row in rows if row["variant"] == variant)
        mean = statistics.mean(found)
        lines.append(f"| {variant} | {size:,} | {mean:.4f} | {min(found):.4f} | {max(found):.4f} | {len(found)} |")
    return "\n".join([*lines, f"| bigram table | | {rows[0]['bigram_bits_per_byte']:.4f} | | | |"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", help="append the rows to this CSV file")
    parser.add_argument("--work", default="checkpoints/phase7_quality", help="where the runs are kept")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--only", nargs="*", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="recipe keys for all of them alike")
    arguments = parser.parse_args()
    changes, rows = dict(pair.split("=", 1) for pair in arguments.set), []
    for seed in arguments.seeds:
        for variant in arguments.only:
            rows.append(measure(variant, seed, Path(arguments.work), changes))
            print(table(rows), flush=True)
            if arguments.out:
                append_rows(arguments.out, rows[-1:])


if __name__ == "__main__":
    main()
