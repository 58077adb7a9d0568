"""How a record becomes tokens: control tokens, chat templates, and the safe encoding of a user's text.

A dialogue is `<|user|>text<|end|><|assistant|>text<|end|>…`, a document its text; in the packed stream
`<|endoftext|>` stands before each and at the end. What stands around a turn's text is in one table, `TURNS`:
from it come the Jinja templates that are saved with a tokenizer (for `apply_chat_template`; they begin with
the `<|endoftext|>` that begins every dialogue) and `render_turn`, from which everything here is encoded.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from newllm_lib.data.records import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

END_OF_TEXT, PAD, END_OF_TURN = "<|endoftext|>", "<|pad|>", "<|end|>"
ROLE_TOKENS = {"user": "<|user|>", "assistant": "<|assistant|>", "system": "<|system|>"}
# a tokenizer trained here gives them the ids from 0, in this order
CONTROL_TOKENS = (END_OF_TEXT, PAD, *ROLE_TOKENS.values(), END_OF_TURN)
UNKNOWN = "<unk>"

TEMPLATE_VERSION = 1  # part of the key of everything packed


class Turn(NamedTuple):
    """What stands around a turn's text, between its speaker's token and <|end|>."""

    lead: str = ""  # leads to the turn, and is no part of it: who asks for an answer writes it
    before: str = ""
    after: str = ""  # of the system the same as of the user
    # before the context of an instruction, on a line of its own; empty: it is part of the text
    context: str = ""


TURNS: dict[str, dict[str, Turn]] = {
    "chat": {"user": Turn(), "assistant": Turn(), "system": Turn()},
    # the same turns in the original's words; the control tokens around them read as nothing
    "instruction": {
        "user": Turn(before="Instruction: ", after="\n", context="Context: "),
        "assistant": Turn(lead="Response:", before=" "),
        "system": Turn(before="System: ", after="\n"),
    },
}


def _jinja(turns: dict[str, Turn]) -> str:
    """The template for `apply_chat_template`. A tokenizer's template is recognised by its text
    (`template_of`), so for a name it never changes."""
    user, assistant, system = turns["user"], turns["assistant"], turns["system"]
    words = f"'{user.before}'" if user.before else ""
    if system.before != user.before:
        words = f"('{system.before}' if message['role'] == 'system' else {words})"
    after = f"'{user.after}'" if user.after else ""
    context = (
        f"('{user.context}' + message['context'] + '\n' if message['context'] else '')"
        if user.context
        else ""
    )
    spoken_by = "'<|' + message['role'] + '|>'"
    others = " + ".join(filter(None, (spoken_by, words, "message['content']", after, context, "'<|end|>'")))
    answer = " + ".join(
        filter(None, (assistant.before and f"'{assistant.before}'", "message['content']", "'<|end|>'"))
    )
    lead = f"{{{{ '<|assistant|>{assistant.lead}' }}}}"
    # `generation` marks what the assistant says: what TRL's assistant_only_loss learns from
    return (
        "{{ '<|endoftext|>' }}{% for message in messages %}{% if message['role'] == 'assistant' %}"
        + lead
        + "{% generation %}{{ "
        + answer
        + " }}{% endgeneration %}"
        + "{% else %}{{ "
        + others
        + " }}{% endif %}{% endfor %}"
        + "{% if add_generation_prompt %}"
        + lead
        + "{% endif %}"
    )


TEMPLATES = {name: _jinja(turns) for name, turns in TURNS.items()}
CHAT_TEMPLATE = TEMPLATES["chat"]


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of `text` as plain text: a literal "<|end|>" in it is never the control token."""
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def template_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """The name of the template that a tokenizer holds, one of `TEMPLATES`."""
    return next((name for name, text in TEMPLATES.items() if text == tokenizer.chat_template), "chat")


def join_context(instruction: str, context: str) -> str:
    """What a user says who gives a context to an instruction."""
    return f"{instruction}\n\n{context}" if context else instruction


def render_turn(template: str, role: str, content: str, context: str = "") -> tuple[str, str]:
    """How a turn is written between its speaker's token and <|end|>: (what leads to it, the turn itself).

    Args:
        template: its name, one of `TURNS`.
        context: what stands below the instruction at the end of `content`.
    """
    turn = TURNS[template][role]
    below = ""
    if context and turn.context:
        content = content.removesuffix(join_context("", context))
        below = f"{turn.context}{context}\n"
    return turn.lead, turn.before + content + turn.after + below


def encode_messages(
    tokenizer: PreTrainedTokenizerBase,
    messages: Iterable[Message | dict],
    add_generation_prompt: bool = False,
) -> list[int]:
    """Token ids of a dialogue as it is packed.

    The same as `tokenizer.apply_chat_template` after its `<|endoftext|>`, but for text that spells a control
    token, which stays text here.
    """
    ids, template = [], template_of(tokenizer)
    for message in messages:
        role, content = (message["role"], message["content"]) if isinstance(message, dict) else message
        label = tokenizer.convert_tokens_to_ids(ROLE_TOKENS[role])
        turn = [
            i for text in render_turn(template, role, content) if text for i in encode_text(tokenizer, text)
        ]
        ids += [label, *turn, tokenizer.convert_tokens_to_ids(END_OF_TURN)]
    if add_generation_prompt:
        lead, _ = render_turn(template, "assistant", "")
        ids += [
            tokenizer.convert_tokens_to_ids(ROLE_TOKENS["assistant"]),
            *(encode_text(tokenizer, lead) if lead else []),
        ]
    return ids
