"""A model with its tokenizer and recipe as three values, for the tests that want no more of it."""

from __future__ import annotations

from newllm_lib.checkpoints import load_model


def load_run(run, which: str = "best"):
    """(model, tokenizer, recipe), as `load_model` loads them."""
    loaded = load_model(run, which)
    return loaded.model, loaded.tokenizer, loaded.recipe
