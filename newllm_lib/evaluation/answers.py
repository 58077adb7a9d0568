"""A model's answers to held-out prompts: whether they are empty or repeat, the distance from its base."""

from __future__ import annotations

from collections.abc import Sequence

from newllm_lib.data.preferences import Pair
from newllm_lib.data.preferences.encode import encode_prompt
from newllm_lib.evaluation.preferences import interval, pair_log_probs
from newllm_lib.generation.generate import complete, continue_ids, fit_window
from newllm_lib.generation.sampling import Settings, stop_tokens

_REPEATED = 0.5  # an answer repeats where this share of its pieces came before in it


def some_pairs(pairs: Sequence[Pair], count: int) -> list[Pair]:
    """`count` pairs, evenly spaced, with different prompts."""
    different = list({pair.prompt: pair for pair in pairs}.values())
    return [
        different[i * len(different) // min(count, len(different))] for i in range(min(count, len(different)))
    ]


def answers(model, tokenizer, pairs: Sequence[Pair], max_new_tokens: int, **settings) -> list[str]:
    """The model's answers to the prompts of `pairs`; greedy unless `settings` say otherwise."""
    prompts = [encode_prompt(tokenizer, pair.prompt) for pair in pairs]
    said = complete(
        model, tokenizer, prompts, **({"temperature": 0.0} | settings), max_new_tokens=max_new_tokens
    )
    return list(said)


def is_empty(answer: str) -> bool:
    """Whether the answer is empty: no letter and no number."""
    return not any(c.isalnum() for c in answer)


def repeats(answer: str) -> bool:
    """Whether at least half of the answer's 4-grams of characters repeat (short answers never do)."""
    pieces = [answer[i : i + 4] for i in range(len(answer) - 3)]
    return len(pieces) >= 12 and 1 - len(set(pieces)) / len(pieces) >= _REPEATED


def health(said: Sequence[str]) -> dict[str, float]:
    """`empty` and `repeating` (shares of the answers), and `length`, their mean in characters."""
    count = max(1, len(said))
    return {
        "empty": sum(map(is_empty, said)) / count,
        "repeating": sum(map(repeats, said)) / count,
        "length": sum(map(len, said)) / count,
    }


def collapsed(now: dict, before: dict) -> str | None:
    """A warning, one sentence, if clearly more answers are empty or repeat than before."""
    for name, what in (("empty", "empty"), ("repeating", "repeating themselves")):
        if now[name] >= 0.5 and now[name] >= before[name] + 0.25:
            return (
                f"{100 * now[name]:.0f} % of its answers are {what} (before training "
                f"{100 * before[name]:.0f} %)"
            )
    return None


def kl_from_base(
    model, tokenizer, pairs: Sequence[Pair], max_new_tokens: int, seed: int = 0, dtype=None
) -> dict:
    """Estimate of KL(model || base) in nats an answer: mean log p - log p_base over the model's samples.

    It is above 0 by definition, so an estimate that chance puts below counts as 0.

    Returns:
        kl, kl_low and kl_high (95 %, over the prompts); nothing where the base is not at hand (the model has
        no adapters to switch off).
    """
    if not hasattr(model, "disable_adapter"):
        return {}
    # prompts as the model will see them: what does not fit into its window is cut before it answers
    prompts, room = fit_window(
        model, [encode_prompt(tokenizer, pair.prompt) for pair in pairs], max_new_tokens
    )
    free, stop = (
        Settings(temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=room, seed=seed),
        set(stop_tokens(tokenizer, model)),
    )
    rows = []
    for prompt, said in zip(prompts, continue_ids(model, tokenizer, prompts, free), strict=True):
        # with the token that ends it
        end = next((i + 1 for i, token in enumerate(said) if token in stop), len(said))
        rows.append({"prompt_ids": prompt, "chosen_ids": said[:end], "rejected_ids": said[:1]})
    pad = tokenizer.pad_token_id
    ours = pair_log_probs(model, rows, pad, dtype)[:, 0]
    with model.disable_adapter():
        base = pair_log_probs(model, rows, pad, dtype)[:, 0]
    found = (ours - base).numpy()
    low, high = interval(found, [str(i) for i in range(len(found))])
    return {"kl": max(0.0, float(found.mean())), "kl_low": max(0.0, low), "kl_high": max(0.0, high)}
