"""Completing prompts in batches: models with a state by our own decoding, others by `generate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from newllm_lib.data.templates import encode_text
from newllm_lib.generation.sampling import Settings, reserved_tokens, stop_tokens, until_stop


def complete(
    model,
    tokenizer,
    prompts: str | Sequence[str] | Sequence[Sequence[int]],
    settings: Settings | None = None,
    **changes,
) -> str | list[str]:
    """Continue prompts.

    A prompt is the beginning of a document: <|endoftext|> is put before text (not before token ids, which are
    taken as they are). The answer ends where a turn or a text ends (`stop_tokens`), holds no control tokens,
    and does not repeat the prompt. A model with a window (TinyGPT2) reads the end of a prompt that is too
    long and stops where its window is full. Torch's global random state is left as it was.

    Args:
        prompts: one text, or a list of texts or of lists of token ids.
        changes: settings by name, e.g. `temperature=0, max_new_tokens=50`.

    Returns:
        the continuation, or one for each prompt.

    Raises:
        UsageError: a setting out of its range.
    """
    settings = replace(settings or Settings(), **changes)
    single = isinstance(prompts, str)
    several: Sequence[Any] = [prompts] if single else prompts
    ids = [_prompt_ids(tokenizer, p) for p in several]
    said, stop = continue_ids(model, tokenizer, ids, settings), set(stop_tokens(tokenizer, model))
    answers = [tokenizer.decode(until_stop(row, stop), skip_special_tokens=True) for row in said]
    return answers[0] if single else answers


def continue_ids(model, tokenizer, ids: list[list[int]], settings: Settings) -> list[list[int]]:
    """The token ids that follow each prompt of token ids; what comes after a stop token means nothing."""
    from newllm_lib.generation.stateful import is_recurrent

    if not ids:
        return []
    continued = _by_state if is_recurrent(model) else _by_generate
    return continued(model, tokenizer, ids, settings)


def fit_window(model, prompts: list[list[int]], new: int) -> tuple[list[list[int]], int]:
    """Prompts cut at the left, and how many tokens may follow, so that both fit into the model's window."""
    from newllm_lib.generation.stateful import window

    size = window(model)
    if size is None:
        return prompts, new
    kept = max(size - new, size // 2)
    prompts = [p[-kept:] for p in prompts]
    return prompts, min(new, size - max(map(len, prompts)))


def _by_state(model, tokenizer, prompts: list[list[int]], settings: Settings) -> list[list[int]]:
    from newllm_lib.generation.decoding import continue_texts

    reserved = reserved_tokens(tokenizer, model.config.vocab_size, model)
    return continue_texts(model, prompts, settings, stop_tokens(tokenizer, model), reserved)


def _by_generate(model, tokenizer, prompts: list[list[int]], settings: Settings) -> list[list[int]]:
    import torch

    from newllm_lib.generation.stateful import eval_mode, model_device

    prompts, room = fit_window(model, prompts, settings.max_new_tokens)
    settings = replace(settings, max_new_tokens=room)
    device = model_device(model)
    tokens, mask = _left_padded(tokenizer, prompts, device)
    random_devices = [device] if device.type == "cuda" else []
    with eval_mode(model), torch.random.fork_rng(random_devices):
        if settings.seed is not None:
            torch.manual_seed(settings.seed)
        output = model.generate(
            input_ids=tokens,
            attention_mask=mask,
            generation_config=_generation_config(model, tokenizer, settings),
        )
    return output[:, tokens.shape[1] :].tolist()


def _prompt_ids(tokenizer, prompt: str | Sequence[int]) -> list[int]:
    if not isinstance(prompt, str):
        return [int(i) for i in prompt]
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    return start + encode_text(tokenizer, prompt)


def _left_padded(tokenizer, prompts: list[list[int]], device):
    """Token ids (batch, time) and the mask (batch, time) that is 0 on padding."""
    import torch

    width = max(map(len, prompts))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    rows = [[pad] * (width - len(p)) + p for p in prompts]
    mask = [[0] * (width - len(p)) + [1] * len(p) for p in prompts]
    return torch.tensor(rows, device=device), torch.tensor(mask, device=device)


def _generation_config(model, tokenizer, settings: Settings):
    from transformers import GenerationConfig

    stop = stop_tokens(tokenizer, model)
    return GenerationConfig(
        **settings.for_generate(),
        eos_token_id=stop,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else stop[0],
        suppress_tokens=reserved_tokens(tokenizer, model.config.vocab_size, model) or None,
    )
