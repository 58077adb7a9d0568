"""A preference run measured again on its held-out pairs: what `newllm evaluate` shows for it."""

from __future__ import annotations

from newllm_lib.console import say
from newllm_lib.data.preferences import encode_pairs, load_preferences, shortcuts
from newllm_lib.evaluation.preferences import in_words, pair_log_probs, pair_rewards, preference_metrics


def evaluate_pairs(model, tokenizer, recipe, dtype=None) -> dict:
    """Accuracy and margin on the recipe's held-out pairs, also by kind, beside the shortcuts' accuracy.

    Raises:
        NewLLMError: the pairs cannot be read, or none fits.
    """
    pairs = load_preferences(recipe)
    encoded = encode_pairs(pairs.evaluation, tokenizer, recipe.max_seq_length)
    scores, unit = (pair_rewards, "of reward") if recipe.task == "reward" else (pair_log_probs, "nats")
    log_probs = scores(model, encoded.rows, tokenizer.pad_token_id, dtype)
    found = preference_metrics(log_probs, log_probs, encoded.pairs, recipe.beta)
    relative = ("loss", "reward_accuracy", "reward_margin")  # to the base, which is not asked here
    found = {name: value for name, value in found.items() if name not in relative}
    say(f"{pairs.title}, {found['pairs']:,} held-out pairs: {in_words(found, unit)}")
    for kind, figures in found.get("kinds", {}).items():
        say(f"  {kind}, {figures['pairs']} pairs: {in_words(figures, unit)}")
    found["shortcuts"] = shortcuts(pairs.train, encoded.pairs)
    for name, accuracy in found["shortcuts"].items():
        say(f"  a classifier that sees only the {name.replace('_', ' ')}: {100 * accuracy:.1f} %")
    return found
