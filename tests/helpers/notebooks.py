"""The notebooks, and what makes them small enough for a test."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

from tests.helpers.preference_bases import make_base

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


# What a notebook is told to be small: fields of its form and recipe keys.
TINY = {
    "01_wikitext_pretraining": {
        "recipe": "demo",
        "num_layers": 1,
        "hidden_size": 64,
        "context_dim": 32,
        "mlp_size": 64,
        "num_heads": 2,
        "vocab_size": 512,
        "max_samples": 300,
        "max_steps": 30,
        "logging_steps": 5,
        "batch_size": 8,
    },
    "02_dolly": {
        "num_layers": 1,
        "hidden_size": 64,
        "context_dim": 32,
        "mlp_size": 64,
        "vocab_size": 400,
        "max_steps": 20,
        "logging_steps": 5,
        "batch_size": 8,
        "evals_per_epoch": 2,
        "epochs": 1,
    },
    "03_ultrachat": {
        "size": "10k",
        "num_layers": 1,
        "hidden_size": 64,
        "context_dim": 32,
        "mlp_size": 64,
        "vocab_size": 400,
        "max_samples": 150,
        "max_steps": 20,
        "logging_steps": 5,
        "batch_size": 8,
        "evals_per_epoch": 2,
        "epochs": 1,
    },
    "04_dpo_lora": {
        "max_samples": 24,
        "eval_pairs": 6,
        "max_steps": 2,
        "epochs": 1,
        "batch_size": 4,
        "lora_rank": 2,
        "max_seq_length": 96,
        "evals_per_epoch": 1,
        "learning_rate": 1e-4,
    },
    "05_phase7_1p5b": {
        "num_layers": 1,
        "hidden_size": 32,
        "num_heads": 2,
        "context_dim": 32,
        "mlp_size": 64,
        "htt_rank": 4,
        "vocab_size": 400,
        "attention_window": 16,
        "max_steps": 20,
        "logging_steps": 5,
        "batch_size": 8,
        "evals_per_epoch": 2,
        "mix_documents": 120,
    },
}


_WORDS = (
    "water house red tree seven people learn to write a good answer about small models in the morning".split()
)


def write_data(name: str, folder: Path) -> dict:
    """Rows as the notebook's data set has them, for it to train on; the fields that say where they are."""
    if name == "04_dpo_lora":
        return {"base": str(make_base(folder / "base", "new_llm"))}
    if name == "05_phase7_1p5b":
        folder.mkdir()
        (folder / "train.txt").write_text(
            "".join(f"Sentence {i} of my own.\n\n" for i in range(200)), encoding="utf-8"
        )
        return {"weights": f"demo=3,{folder}=1"}
    random = Random(0)
    text = lambda: " ".join(random.choices(_WORDS, k=random.randint(3, 20)))  # noqa: E731
    rows = {
        "02_dolly": lambda: {
            "instruction": text(),
            "context": random.choice(["", text()]),
            "response": text(),
        },
        "03_ultrachat": lambda: {"id": "x", "data": [text() for _ in range(4)]},
    }.get(name)
    if rows is None:
        return {}
    folder.mkdir()
    (folder / "train.jsonl").write_text(
        "".join(json.dumps(rows()) + "\n" for _ in range(200)), encoding="utf-8"
    )
    return {"data_dir": str(folder)}
