"""Answers to a fixed set of prompts, and whether they degenerate: empty, repeating, all the same.

A validation loss falls smoothly while the answers it stands for may be one phrase for ever; so the same
prompts are answered at each evaluation, greedily, and looked at beside each other.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from newllm_lib.console import markdown_cell
from newllm_lib.data.templates import (
    ROLE_TOKENS,
    encode_conversation,
    encode_text,
    has_own_turns,
    has_turns,
)
from newllm_lib.generation.generate import complete
from newllm_lib.generation.sampling import Settings, token_id

QUESTIONS = (
    "Hello! How are you today?",
    "What did you do last weekend?",
    "I have a headache. What should I do?",
    "Shall we go out for dinner tonight?",
    "Why is the sky blue?",
    "Name three things that are good for your health.",
    "Write a Python function that adds two numbers.",
    "Thank you very much. Goodbye!",
)
QUESTIONS_JA = (
    "こんにちは。お元気ですか？",
    "週末は何をしましたか？",
    "頭が痛いです。どうすればいいですか？",
    "空はなぜ青いのですか？",
    "健康に良いことを三つ教えてください。",
    "ありがとうございました。さようなら。",
)
BEGINNINGS = (
    "The city was founded in",
    "The film was first shown",
    "In the last week of the war",
    "She began to write when",
)
_LOOKED_AT = 20_000  # tokens of a split that tell what kind of text it is
_KANA = re.compile("[\u3040-\u30ff]")
_REPEATING = 0.5  # an answer in which fewer of the pairs of tokens are different
_LONG_ENOUGH = 8  # tokens: shorter answers cannot repeat much


class Prompts:
    """Prompts that fit a split: questions for dialogues (Japanese for Japanese), else beginnings.

    Attributes:
        texts: what people see. ids: the same as token ids, as the model reads them.
    """

    def __init__(self, split, tokenizer):
        head = split.ids[:_LOOKED_AT].astype(int).tolist()
        foreign = has_turns(tokenizer) and not has_own_turns(tokenizer)  # a base, asked by its template
        self.dialogue = foreign or token_id(tokenizer, ROLE_TOKENS["assistant"]) in head
        japanese = bool(_KANA.search(tokenizer.decode(head[:2000])))
        self.texts: Sequence[str] = (QUESTIONS_JA if japanese else QUESTIONS) if self.dialogue else BEGINNINGS
        self.ids = [_as_read(tokenizer, text, self.dialogue) for text in self.texts]


def _as_read(tokenizer, text: str, dialogue: bool) -> list[int]:
    if dialogue:
        return encode_conversation(tokenizer, [{"role": "user", "content": text}])
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    return start + encode_text(tokenizer, text)


def answer(model, tokenizer, prompts: Prompts, tokens: int) -> dict:
    """The most probable answers of at most `tokens` tokens, and the figures of `variety`."""
    answers = complete(model, tokenizer, prompts.ids, Settings(temperature=0, max_new_tokens=tokens))
    return {"prompts": list(prompts.texts), "answers": answers, **variety(tokenizer, answers)}


def variety(tokenizer, answers: Sequence[str]) -> dict:
    """How different the answers are, in tokens.

    Returns:
        distinct_1, distinct_2: share of different tokens, and of different pairs, in all answers (Li et al.,
        2016, arXiv 1510.03055); mean_tokens; empty, repeating: how many answers are; same: how many equal an
        earlier one; warning: one sentence, or None.
    """
    ids = [encode_text(tokenizer, text.strip()) for text in answers]
    said = [" ".join(text.split()) for text in answers if text.strip()]
    result = {
        "distinct_1": _distinct(ids, 1),
        "distinct_2": _distinct(ids, 2),
        "mean_tokens": sum(map(len, ids)) / max(1, len(ids)),
        "empty": len(answers) - len(said),
        "same": len(said) - len(set(said)),
        "repeating": sum(len(i) >= _LONG_ENOUGH and _distinct([i], 2) < _REPEATING for i in ids),
    }
    return result | {"warning": _warning(result, len(answers))}


def _distinct(texts: list[list[int]], n: int) -> float:
    grams = [tuple(ids[i : i + n]) for ids in texts for i in range(len(ids) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def _warning(found: dict, count: int) -> str | None:
    """The gravest, where at least half of the answers are so."""
    for key, what in (
        ("empty", "are empty"),
        ("repeating", "repeat themselves"),
        ("same", "are the same as another"),
    ):
        if 2 * found[key] >= count > 0:
            return f"{found[key]} of {count} sample answers {what}"
    return None


def as_markdown(rows: Sequence[dict], name: str, most: int = 12) -> str:
    """Rows of `answer` with step, epoch and bits_per_byte as a page: for each prompt its answers over time.

    `most`: so many evaluations are shown, the first, the last and others evenly between (all are in
    samples.jsonl).
    """
    if len(rows) > most:
        rows = [rows[round(i * (len(rows) - 1) / (most - 1))] for i in range(most)]
    lines = [
        f"# What {name} says",
        "",
        "The most probable answers at each evaluation, cut at a fixed length.",
    ]
    lines += [
        "distinct-n: share of different n-tuples of tokens in all answers; low where a model repeats itself.",
        "",
    ]
    lines += [
        "| step | epoch | bits/byte | distinct-1 | distinct-2 | tokens | empty | repeating | |",
        "|---:" * 8 + "|---|",
    ]
    for row in rows:
        figures = (
            f"{row['epoch']:.3g} | {row['bits_per_byte']:.3f} | {row['distinct_1']:.2f} | "
            f"{row['distinct_2']:.2f}"
        )
        more = f"{row['mean_tokens']:.1f} | {row['empty']} | {row['repeating']} | {row.get('warning') or ''}"
        lines.append(f"| {row['step']} | {figures} | {more} |")
    for number, prompt in enumerate(rows[-1]["prompts"]):
        lines += ["", f"## {markdown_cell(prompt)}", "", "| step | answer |", "|---:|---|"]
        lines += [
            f"| {row['step']} | {markdown_cell(row['answers'][number].strip())} |"
            for row in rows
            if number < len(row["answers"])
        ]
    return "\n".join(lines) + "\n"
