"""How a record becomes tokens: the control tokens, the chat template, and the safe way to encode a user's text.

A dialogue is `<|user|>text<|end|><|assistant|>text<|end|>…`, a document its text; in the packed stream
`<|endoftext|>` stands before each and at the end. The template in the tokenizer writes the same for
`apply_chat_template`, beginning with the `<|endoftext|>` that begins every dialogue.
"""

from __future__ import annotations

from collections.abc import Iterable

from newllm_lib.data.records import Message

END_OF_TEXT, PAD, END_OF_TURN = "<|endoftext|>", "<|pad|>", "<|end|>"
ROLE_TOKENS = {"user": "<|user|>", "assistant": "<|assistant|>", "system": "<|system|>"}
# a tokenizer trained here gives them the ids from 0, in this order
CONTROL_TOKENS = (END_OF_TEXT, PAD, *ROLE_TOKENS.values(), END_OF_TURN)
UNKNOWN = "<unk>"

TEMPLATE_VERSION = 1  # part of the key of everything packed
# `generation` marks what the assistant says: what TRL's assistant_only_loss learns from
CHAT_TEMPLATE = (
    "{{ '<|endoftext|>' }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "{{ '<|assistant|>' }}{% generation %}{{ message['content'] + '<|end|>' }}{% endgeneration %}"
    "{% else %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def encode_text(tokenizer, text: str) -> list[int]:
    """Token ids of `text` as plain text: a literal "<|end|>" in it is seven characters, never the control token."""
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def encode_messages(tokenizer, messages: Iterable[Message | dict], add_generation_prompt: bool = False) -> list[int]:
    """Token ids of a dialogue as it is packed.

    The same as `tokenizer.apply_chat_template` after its `<|endoftext|>`, but for text that spells a control token, which stays
    text here.
    """
    ids = []
    for message in messages:
        role, content = (message["role"], message["content"]) if isinstance(message, dict) else message
        label = tokenizer.convert_tokens_to_ids(ROLE_TOKENS[role])
        ids += [label, *encode_text(tokenizer, content), tokenizer.convert_tokens_to_ids(END_OF_TURN)]
    if add_generation_prompt:
        ids.append(tokenizer.convert_tokens_to_ids(ROLE_TOKENS["assistant"]))
    return ids
