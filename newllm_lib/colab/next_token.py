"""The next token's probabilities: what the model says, and what temperature, top-k and top-p make of it."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from newllm_lib.colab import pictures
from newllm_lib.data.templates import encode_conversation, encode_text
from newllm_lib.generation.sampling import Settings, reserved_tokens
from newllm_lib.generation.stateful import eval_mode, model_device

MOST = 64  # tokens of an answer that are looked at


@dataclass
class Answer:
    """An answer's tokens, each with the logits that it was chosen from: ids (tokens,), logits (tokens,
    vocab)."""

    ids: list[int]
    logits: torch.Tensor


def chosen_from(session, turns: Sequence[dict], answer: str) -> Answer:
    """The logits behind each token of an answer, in one forward pass.

    Args:
        session: a `ChatSession`.
        turns: the conversation before the answer: roles and contents.
        answer: what was said.
    """
    tokenizer, model = session.tokenizer, session.model
    if session.dialogue:
        before = encode_conversation(tokenizer, turns)
        ids = encode_conversation(tokenizer, [*turns, {"role": "assistant", "content": answer}], False)
        ids = ids[len(before) :]
    else:
        text = "".join(turn["content"] for turn in turns)
        before = [i for i in [tokenizer.bos_token_id] if i is not None] + encode_text(tokenizer, text)
        ids = encode_text(tokenizer, answer)
    ids = ids[:MOST]
    tokens = torch.tensor([before + ids], device=model_device(model))
    with eval_mode(model):
        logits = model(input_ids=tokens).logits[0, len(before) - 1 : len(before) + len(ids) - 1]
    logits = logits.float().cpu()
    logits[:, reserved_tokens(tokenizer, model.config.vocab_size, model)] = -torch.inf
    return Answer(ids, logits)


def probabilities(logits: torch.Tensor, settings: Settings) -> torch.Tensor:
    """(vocab,) what `sampling.Sampler` chooses with from logits (vocab,), without a repetition penalty."""
    if settings.temperature == 0:
        return torch.nn.functional.one_hot(logits.argmax(), len(logits)).float()
    scores, order = (logits.float() / settings.temperature).sort(descending=True)
    if settings.top_k:
        scores[settings.top_k :] = -torch.inf
    chances = scores.softmax(-1)
    if settings.top_p < 1:
        chances[chances.cumsum(-1) - chances >= settings.top_p] = 0.0
        chances = chances / chances.sum()
    return torch.zeros_like(chances).scatter(0, order, chances)


def bars(tokenizer, answer: Answer, place: int, settings: Settings, count: int = 10) -> str:
    """HTML: the likeliest tokens at one place of an answer; grey the model's own probability, blue what the
    settings make of it; the token that was said is marked."""
    said, logits = answer.ids[place], answer.logits[place]
    plain, shaped = logits.softmax(-1), probabilities(logits, settings)
    top = plain.topk(min(count, len(plain))).indices.tolist()
    top += [said] if said not in top else []
    rows = []
    for token in top:
        mark = " ◀" if token == said else ""
        text = html.escape(tokenizer.decode([token]).replace("\n", "⏎").replace(" ", "␣") or "…")
        rows.append(
            f"<tr><td style='text-align:right;white-space:nowrap'>{text}{mark}</td><td style='width:70%'>"
            f"{_bar(float(plain[token]), '#6b7280')}{_bar(float(shaped[token]), '#0072b2')}</td>"
            f"<td style='text-align:right;white-space:nowrap'>{100 * float(plain[token]):.1f} % → "
            f"{100 * float(shaped[token]):.1f} %</td></tr>"
        )
    before = html.escape(tokenizer.decode(answer.ids[:place])[-60:])
    head = f"after “…{before}”: the model's own probability (grey) → with these settings (blue), ◀ was said"
    return f"<div>{head}</div><table style='width:100%'>{''.join(rows)}</table>"


def _bar(share: float, colour: str) -> str:
    return (
        "<div "
        f"style='height:7px;width:{100 * share:.2f}%;min-width:1px;background:{pictures.themed(colour)}'>"
        "</div>"
    )
