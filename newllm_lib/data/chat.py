"""How a record becomes tokens: the control tokens, the chat template, and the safe way to encode a user's text.

A dialogue is `<|user|>text<|end|><|assistant|>text<|end|>…`, a document its text; in the packed stream
`<|endoftext|>` stands before each and at the end. The template in the tokenizer writes the same for
`apply_chat_template`, beginning with the `<|endoftext|>` that begins every dialogue. With the template `instruction` the turns
read `Instruction: … Context: … Response: …`, a line each, as in the original.
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
_TEMPLATE = (
    "{{ '<|endoftext|>' }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "{{ '<|assistant|>LEAD' }}{% generation %}{{ 'SPACE' + message['content'] + '<|end|>' }}{% endgeneration %}"
    "{% else %}"
    "OTHERS"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>LEAD' }}{% endif %}"
)
CHAT_TEMPLATE = (
    _TEMPLATE.replace("LEAD", "").replace("'SPACE' + ", "")
    .replace("OTHERS", "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}")
)  # fmt: skip
# the same turns in the words of the original's training text; the control tokens around them read as nothing
INSTRUCTION_TEMPLATE = _TEMPLATE.replace("LEAD", "Response:").replace("SPACE", " ").replace(
    "OTHERS",
    "{{ '<|' + message['role'] + '|>' + ('System: ' if message['role'] == 'system' else 'Instruction: ') "
    "+ message['content'] + '\n' + ('Context: ' + message['context'] + '\n' if message['context'] else '') + '<|end|>' }}",
)  # fmt: skip
TEMPLATES = {"chat": CHAT_TEMPLATE, "instruction": INSTRUCTION_TEMPLATE}


def encode_text(tokenizer, text: str) -> list[int]:
    """Token ids of `text` as plain text: a literal "<|end|>" in it is seven characters, never the control token."""
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def template_of(tokenizer) -> str:
    """The name of the template that a tokenizer holds, one of `TEMPLATES`."""
    return next((name for name, text in TEMPLATES.items() if text == tokenizer.chat_template), "chat")


def below_instruction(instruction: str, context: str) -> str:
    """What a user says who gives a context to an instruction."""
    return f"{instruction}\n\n{context}" if context else instruction


def spoken(template: str, role: str, content: str, context: str = "") -> tuple[str, str]:
    """How a turn is written between its speaker's token and <|end|>: (what leads to it, the turn itself).

    Args:
        context: what stands below the instruction at the end of `content`.
    """
    if template == "chat":
        return "", content
    if role == "assistant":
        return "Response:", f" {content}"
    if role == "system":
        return "", f"System: {content}\n"
    if not context:
        return "", f"Instruction: {content}\n"
    instruction = content.removesuffix(below_instruction("", context))
    return "", f"Instruction: {instruction}\nContext: {context}\n"


def encode_messages(tokenizer, messages: Iterable[Message | dict], add_generation_prompt: bool = False) -> list[int]:
    """Token ids of a dialogue as it is packed.

    The same as `tokenizer.apply_chat_template` after its `<|endoftext|>`, but for text that spells a control token, which stays
    text here.
    """
    ids, template = [], template_of(tokenizer)
    for message in messages:
        role, content = (message["role"], message["content"]) if isinstance(message, dict) else message
        label = tokenizer.convert_tokens_to_ids(ROLE_TOKENS[role])
        turn = [i for text in spoken(template, role, content) if text for i in encode_text(tokenizer, text)]
        ids += [label, *turn, tokenizer.convert_tokens_to_ids(END_OF_TURN)]
    if add_generation_prompt:
        lead, _ = spoken(template, "assistant", "")
        ids += [tokenizer.convert_tokens_to_ids(ROLE_TOKENS["assistant"]), *(encode_text(tokenizer, lead) if lead else [])]
    return ids
