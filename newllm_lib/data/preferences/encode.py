"""Pairs as token ids, as the model will be asked: our control tokens, its chat template, plain turns.

What does not fit is counted: a pair whose prompt alone reaches the limit is left out (there would be nothing
to learn from), an answer that goes beyond it is cut at its end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from newllm_lib.data.preferences.pairs import Pair
from newllm_lib.data.records import Message
from newllm_lib.data.templates import (
    END_OF_TURN,
    PLAIN_TURNS,
    TemplateRefused,
    encode_conversation,
    encode_text,
    has_own_turns,
    render_conversation,
)
from newllm_lib.errors import NewLLMError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass
class EncodedPairs:
    """`rows`: prompt_ids, chosen_ids, rejected_ids of each of `pairs`, as TRL's collator takes them (and
    rejected_prompt_ids, where the rejected answer belongs to another prompt)."""

    pairs: list[Pair] = field(default_factory=list)
    rows: list[dict[str, list[int]]] = field(default_factory=list)
    long_prompts: int = 0  # pairs left out: the prompt alone reaches the limit
    cut_answers: int = 0  # answers that lost their end
    alike: int = 0  # pairs left out: equal once they were cut
    # pairs left out: the base's chat template raises on them, by what it says
    refused: Counter[str] = field(default_factory=Counter)

    def summary(self) -> str:
        """What did not fit, or nothing."""
        found = (
            *(
                (count, f"pairs left out that the base's chat template refuses ({said})")
                for said, count in self.refused.items()
            ),
            (self.long_prompts, "pairs left out for a prompt as long as the limit"),
            (self.alike, "pairs left out whose answers are equal once they are cut"),
            (self.cut_answers, "answers cut at their end"),
        )
        return ", ".join(f"{count:,} {what}" for count, what in found if count)


def with_template(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer, with a chat template and a padding token if it brings none.

    Raises:
        NewLLMError: it has no token that ends a text.
    """
    if tokenizer.eos_token is None:
        raise NewLLMError(
            f"The tokenizer of {tokenizer.name_or_path} has no end-of-text token: name another base model."
        )
    if not tokenizer.chat_template:
        tokenizer.chat_template = PLAIN_TURNS
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def encode_pairs(pairs: Iterable[Pair], tokenizer: PreTrainedTokenizerBase, max_length: int) -> EncodedPairs:
    """Token ids of pairs, at most `max_length` for prompt and answer together.

    Raises:
        NewLLMError: no pair fits.
    """
    encoded = EncodedPairs()
    for pair in pairs:
        other = pair.rejected_prompt or pair.prompt
        sides = ((pair.prompt, pair.chosen), (other, pair.rejected))
        try:
            prompts = [encode_prompt(tokenizer, asked) for asked in dict.fromkeys((pair.prompt, other))]
            answers = [encode_answer(tokenizer, asked, said) if said else [] for asked, said in sides]
        except TemplateRefused as error:  # many want user and assistant in turn, or no system message
            encoded.refused[error.cause[:100]] += 1
            continue
        room = max_length - max(map(len, prompts))
        if room < 1:
            encoded.long_prompts += 1
            continue
        kept = [ids[:room] for ids in answers]
        if kept[0] == kept[1]:
            encoded.alike += 1
            continue
        encoded.cut_answers += sum(len(ids) > room for ids in answers)
        encoded.pairs.append(pair)
        row = {"prompt_ids": prompts[0], "chosen_ids": kept[0], "rejected_ids": kept[1]}
        encoded.rows.append(row | ({"rejected_prompt_ids": prompts[1]} if len(prompts) > 1 else {}))
    if encoded.refused and not encoded.pairs:
        raise NewLLMError(
            f"No pair is left ({encoded.summary()}): take what it refuses out of the prompts, or name "
            "another --base."
        )
    if not encoded.pairs:
        raise NewLLMError(
            f"No pair fits into {max_length} tokens ({encoded.summary() or 'there are none'}): raise "
            "--max_seq_length, or give pairs with shorter prompts."
        )
    return encoded


def encode_prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """Token ids of a conversation up to where the assistant begins to speak."""
    return encode_conversation(tokenizer, messages)


def encode_answer(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], answer: str) -> list[int]:
    """Token ids of what the assistant says then, with the token that ends its turn."""
    if has_own_turns(tokenizer):
        return [*encode_text(tokenizer, answer), tokenizer.convert_tokens_to_ids(END_OF_TURN)]
    asked, end = [message._asdict() for message in messages], tokenizer.eos_token
    prompt = render_conversation(tokenizer, asked)
    whole = render_conversation(tokenizer, [*asked, {"role": "assistant", "content": answer}], False)
    text = (
        whole[len(prompt) :] if whole.startswith(prompt) and answer in whole[len(prompt) :] else answer + end
    )
    text = text.rstrip("\n") if text.rstrip("\n").endswith(end) else text
    return tokenizer(text, add_special_tokens=False)["input_ids"]
