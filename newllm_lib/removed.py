"""Options that older versions had. What those versions wrote is read where the option did nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from newllm_lib.errors import NewLLMError


@dataclass(frozen=True)
class Removed:
    """`what` the option was for; `neutral`: the value at which it did nothing (None: each value)."""

    what: str
    neutral: Any


_WORDS = "a memory of words"
MODEL_OPTIONS = {  # in recipes, and in a model's config.json
    "word_memory": Removed(_WORDS, 0),
    "word_slots": Removed(_WORDS, 0),
    "word_history": Removed(_WORDS, 0),
    "word_trust": Removed(_WORDS, False),
    "mlp_conv": Removed("a convolution before the token MLP", False),
    "embedding_skip": Removed("a share of the embeddings in each block", False),
}
RECIPE_KEYS = MODEL_OPTIONS | {
    "rank_cost": Removed("a price on AR-SSM's ranks", 0),
    "conv_width": Removed("convolutions over other than 4 tokens", 4),
    "tie_embeddings": Removed("a head beside the embedding", True),
    "linear_features": Removed("other than 64 features a head", 64),
    "separate_documents": Removed("documents that see each other", True),
    "curvature_start": Removed("another curvature schedule", 0.1),
    "curvature_steps": Removed("another curvature schedule", 0.5),
    "distill_temperature": Removed("another temperature than 2", 2),
    "precompute_ref_log_probs": Removed("a slower way to the same", None),
}


def without_removed(
    values: dict[str, Any],
    options: Mapping[str, Removed],
    where: str,
    error: type[NewLLMError] = NewLLMError,
) -> dict[str, Any]:
    """`values` without the options that are gone.

    Args:
        values: by name; as they were read, or as text.
        options: those that may be among them.
        where: what holds the values, for the error.
        error: its class.

    Raises:
        NewLLMError: an option that is gone did something.
    """
    for name, option in options.items():
        if name in values and option.neutral is not None:
            if _value(values[name]) != option.neutral:
                raise error(
                    f"{where} has {name} {values[name]} ({option.what}), which is gone since 0.2.0; "
                    "commit 6e07e55 reads it."
                )
    return {name: value for name, value in values.items() if name not in options}


def _value(said: object) -> object:
    """A number or a truth value, also where it was said as text (exports have this, and no YAML)."""
    if not isinstance(said, str):
        return said
    text = said.strip().lower()
    if text in ("true", "yes", "on", "false", "no", "off"):
        return text in ("true", "yes", "on")
    try:
        return float(text)
    except ValueError:
        return said
