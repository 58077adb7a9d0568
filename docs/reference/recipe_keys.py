"""Writes recipe-keys.md: each key of the recipe, in the recipe's own words, and why it is there.

    python docs/reference/recipe_keys.py

A key earns its place by a measurement (rows of benchmarks/results.csv, a page, the log), or by a user who
needs the choice. `WHY` says which: the reason, and where it was measured or written down.
"""

from __future__ import annotations

from dataclasses import Field, fields
from pathlib import Path

from newllm_lib.cli.help import SECTIONS
from newllm_lib.recipe import Recipe

PAGE = Path(__file__).with_name("recipe-keys.md")
LOG = "../log/2026-11.md"
PHASE7, LITTLE, QUALITY = "../results/phase7.md", "../results/little-memory.md", "../results/quality.md"
OWN, BASE, PREFERENCES = (f"../guides/{name}.md" for name in ("own-data", "any-base", "preferences"))
DRIVE, GPUS, T4 = (f"../guides/{name}.md" for name in ("resume-and-drive", "several-gpus", "t4"))
GUIDE = "the original's guide has it"
PHASE7_GUIDE = "the Phase 7 guide has it"

# key: why it is there, and its source: rows of results.csv (by their benchmark), a page, or nothing
WHY: dict[str, tuple[str, str]] = {
    "recipe": ("a run's record says which recipe it was", "../concepts/runs.md"),
    "sized_for": ("a run that moves to another GPU keeps the sizes it began with", DRIVE),
    "logging_steps": ("a step of a large model takes seconds, one of the demo's a millisecond", ""),
    "save_minutes": ("who may lose the machine saves often; on a slow disk a save costs time", DRIVE),
    "save_steps": ("the Phase 7 guide saves every so many steps", PHASE7),
    "log_style": ("the Phase 7 guide reads its log's lines", LOG),
    "keep_checkpoints": ("a checkpoint of 1.5 billion parameters is large: Drive is soon full", DRIVE),
    "sample_tokens": ("writing answers takes time, and not every data set has questions", "whole run"),
    "report_to": ("who keeps runs in TensorBoard, Weights & Biases or Trackio", LOG),
    "output_dir": ("another disk, another name", "../concepts/runs.md"),
    "run_name": ("several trainings of one recipe", "../concepts/runs.md"),
    "resume": ("start anew, or from an earlier checkpoint", DRIVE),
    "mirror_dir": ("a machine that may be taken away: Drive, the hub", DRIVE),
    "force": ("two small runs fit on one large GPU", ""),
    "num_gpus": ("measured: two GPUs against one", "scale"),
    "distribution": ("a model that does not fit on one GPU", "scale"),
    "data": ("which data", OWN),
    "data_dir": ("files of one's own in place of a recipe's data", OWN),
    "encoding": ("files of one's own that are not UTF-8", OWN),
    "documents": ("what one document is, where the file does not say it", OWN),
    "max_samples": ("a part of a large set; the guide's 100,000 dialogues of UltraChat", "streaming"),
    "streaming": ("measured: first batch and memory while it is prepared", "streaming"),
    "protocol": ("figures comparable with the original's", "../concepts/bits-per-byte.md"),
    "tokenizer": ("GPT-2's words for a teacher or Phase 7's guide; one's own language", PHASE7),
    "vocab_size": ("a small text fills few words, a large model more", "recipe text"),
    "template": ("dialogues as the original wrote them", "../results/dialogue.md"),
    "max_seq_length": ("longer texts, or less memory", "phase8"),
    "loss_on": ("answers alone, as instruction training does it", BASE),
    "model": ("New-LLM, what it is compared with, and Phase 7", "quality"),
    "match": ("a baseline with the same number of parameters", "phase7 quality"),
    "recurrence": ("the original's recurrence, to compare with; measured: how much slower", "speed on a CPU"),
    "time_scales": (f"{GUIDE}; measured: no gain, so it is not the default", LOG),
    "num_layers": ("the model's size: 4M, 10M and 25M parameters", "quality"),
    "hidden_size": ("the model's size: 4M, 10M and 25M parameters", "quality"),
    "context_dim": ("the model's size; expansion starts from a small one", "quality"),
    "mlp_size": ("the model's size: 4M, 10M and 25M parameters", "quality"),
    "num_heads": ("the model's size: 4M, 10M and 25M parameters", "quality"),
    "dropout": ("measured on a book that is read several times", "recipe text"),
    "attention": ("measured: hyperbolic beside Euclidean, linear in long texts", "phase8"),
    "attention_window": ("measured: time and memory of long texts with a window", "hyperbolic attention"),
    "flash_attention": (f"{PHASE7_GUIDE}; measured: beside eager torch", "hyperbolic attention"),
    "curvature_schedule": (f"{PHASE7_GUIDE}; measured: no difference", "phase7 quality"),
    "ar_ssm": ("measured: what the branch is worth", "phase7 quality"),
    "ssm_ranks": ("each of Phase 7's sizes has its own", PHASE7),
    "embedding": ("measured: quality and memory of htt beside dense", "phase7 quality"),
    "htt_rank": ("measured: time and memory of a smaller and a larger head", "phase7"),
    "from_run": ("measured: from ChitChat's weights to other dialogues", "dialogue transfer"),
    "seed": ("the spread over seeds is what a difference has to beat", "quality"),
    "epochs": ("measured: a small text is learned by heart after some passes", "recipe text"),
    "max_steps": ("a short look, or a fixed budget", ""),
    "batch_size": ("memory, and how often a step is taken", ""),
    "micro_batch_size": ("measured: one or two sequences at a time", "phase7"),
    "optimizer": ("measured: quality and memory of each", "lowmem quality"),
    "learning_rate": ("every model and data set has its own", "quality"),
    "learning_rate_batch_size": (f"square-root scaling: {GUIDE}", "../results/dialogue.md"),
    "muon_learning_rate": ("measured: a grid for each model", "quality"),
    "warmup_steps": ("every model and data set has its own", ""),
    "schedule": ("measured: linear decay beside cosine", LOG),
    "min_learning_rate_ratio": ("preference training falls to 0, pretraining does not", LOG),
    "weight_decay": ("measured on a book that is read several times", "recipe text"),
    "adam_beta2": ("0.999 as TRL for a base, less for a fresh model", LOG),
    "max_grad_norm": ("other people's recipes clip at other norms, or never", ""),
    "patience": (f"{GUIDE}: dialogue trainings stop when nothing gets better", "../results/dialogue.md"),
    "carry_state": ("measured: better with Muon, worse with AdamW alone", LOG),
    "evals_per_epoch": ("measured: what an evaluation costs beside training", "evaluation"),
    "eval_tokens": ("a large validation split would cost more than training", "evaluation"),
    "dtype": ("measured: float16 beside bfloat16; float32 to look for an error", "300 steps"),
    "gradient_checkpointing": ("measured: memory of 1.5 billion parameters", "phase7"),
    "fused_optimizer": (PHASE7_GUIDE, PHASE7),
    "kernels": ("measured: the same quality without them; where Triton fails", "phase7 quality"),
    "deterministic": ("who looks for a difference needs the same bits", LITTLE),
    "compile": ("measured: each way to run a step", "training speed"),
    "weights_dtype": ("measured: memory of 1.5 billion parameters", "phase7"),
    "momentum_bits": ("measured: loss at 0, 4 and 8 bits", "lowmem quality"),
    "optimizer_in_backward": ("measured: memory of 1.5 billion parameters", "phase7"),
    "teacher": (f"distillation: {GUIDE}", LOG),
    "distill_weight": ("how much the teacher counts, 0 for comparison", LOG),
    "task": ("what is learned", BASE),
    "base": ("which model learns it; measured beside --from", "the ladder"),
    "load_in": ("a base that does not fit in half precision", BASE),
    "packing": ("short dialogues fill their rows", BASE),
    "neftune_alpha": ("other people's recipes for instruction training use it", BASE),
    "beta": ("how far a model may go from its base", "preferences"),
    "loss_type": ("TRL's other losses for pairs", PREFERENCES),
    "eval_pairs": ("the interval of an accuracy is narrower with more", "preferences"),
    "sft_warm_start": ("measured: the base must know both answers", LOG),
    "sft_learning_rate": ("of that warm start: a base of its own needs its own", PREFERENCES),
    "reward": ("what GRPO learns by", PREFERENCES),
    "num_generations": ("GRPO compares so many; memory and time", PREFERENCES),
    "max_completion_length": ("how long GRPO's answers may be; memory and time", PREFERENCES),
    "lora_rank": ("memory: adapters beside frozen weights", "instruction training"),
    "lora_alpha": ("other people's recipes name it", BASE),
    "lora_dropout": ("other people's recipes name it", BASE),
}

HEAD = """# Keys of a recipe

Each key of a recipe, which is also a flag of `newllm train`, and why it is there: because it was measured, or
because a user needs the choice. A key with neither goes. `python docs/reference/recipe_keys.py` writes this
page from the recipe's own descriptions.

Rows are those of a benchmark in
[results.csv](https://github.com/rato-tokyo/new-llm/blob/main/benchmarks/results.csv).
"""


def render() -> str:
    """The page."""
    lines = [HEAD]
    for section, title in SECTIONS.items():
        lines += [
            f"## {title}",
            "",
            "| key | default | what it does | why it is there |",
            "|---|---|---|---|",
        ]
        lines += [_row(f) for f in fields(Recipe) if f.metadata["section"] == section] + [""]
    return "\n".join(lines).rstrip() + "\n"


def _row(key: Field) -> str:
    why, source = WHY[key.name]
    if source:
        linked = source.endswith(".md")
        why += f" ([{Path(source).stem}]({source}))" if linked else f" (rows of `{source}`)"
    value = str(key.default).lower() if isinstance(key.default, bool) else key.default
    default = "" if value is None else f"`{value}`"
    return f"| `{key.metadata['flag'] or key.name}` | {default} | {_cell(key.metadata['help'])} | {why} |"


def _cell(text: str) -> str:
    return text.replace("|", r"\|").replace("<", "&lt;").replace("*", r"\*")


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
