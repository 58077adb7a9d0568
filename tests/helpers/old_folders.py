"""What version 0.1.0 left behind (tests/fixtures/v0.1.0), put where a test can work with it, and the commands
that made it.
"""

from __future__ import annotations

import shutil
from pathlib import Path

FIXTURES = Path(__file__).parents[1] / "fixtures" / "v0.1.0"
_SIZES = (
    "--data_dir text --num_layers 1 --vocab_size 300 --max_seq_length 32 --deterministic true "
    "--keep_checkpoints 1"
).split()
HALF_DONE = [
    *("train", "demo", *_SIZES, *"--logging_steps 2 --hidden_size 8 --context_dim 8 --mlp_size 16".split()),
    *"--batch_size 4 --max_steps 12 --evals_per_epoch 10 --carry_state true".split(),
]
PHASE7 = [
    *(
        "train",
        "phase7_small",
        *_SIZES,
        *"--logging_steps 2 --hidden_size 16 --num_heads 2 --mlp_size 32".split(),
    ),
    *"--context_dim 16 --attention_window 16 --ssm_ranks 4 --htt_rank 2 --batch_size 8 --epochs 4".split(),
    *"--evals_per_epoch 1".split(),
]


def put(into: Path, *names: str) -> Path:
    """Copy the named fixtures (and their text) into the folder `into`, as if they had been made there;
    returns it.
    """
    for name in ("text", *names):
        shutil.copytree(FIXTURES / name, into / name, dirs_exist_ok=True)
    for record in [*into.rglob("recipe.yaml"), *into.rglob("mirror.json")]:
        record.write_text(
            record.read_text(encoding="utf-8").replace("/fixtures", str(into)), encoding="utf-8"
        )
    return into
