"""Recipes of a small model, and the keys that save memory."""

from newllm_lib.recipe import load_recipe

LIGHT = {
    "weights_dtype": "bf16",
    "optimizer": "adafactor",
    "optimizer_in_backward": True,
    "gradient_checkpointing": "offload",
    "micro_batch_size": 2,
}


def recipe(folder, name="run", **changes):
    return load_recipe(
        "demo",
        {
            "sized_for": "cpu",
            "data_dir": str(folder / "text"),
            "vocab_size": 300,
            "max_seq_length": 16,
            "batch_size": 4,
            "hidden_size": 128,
            "context_dim": 128,
            "mlp_size": 128,
            "num_layers": 1,
            "epochs": 1,
            "max_steps": 12,
            "logging_steps": 1,
            "output_dir": str(folder / name),
            "dropout": 0.1,
            "carry_state": False,
            **changes,
        },
    )
