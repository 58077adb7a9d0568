"""How a conversation becomes tokens: control tokens, chat templates, and the safe encoding of a user's text.

A dialogue is `<|user|>text<|end|><|assistant|>text<|end|>…`, a document its text; in the packed stream
`<|endoftext|>` stands before each and at the end. What stands around a turn's text is in one table, `TURNS`:
from it come the Jinja templates that are saved with a tokenizer (for `apply_chat_template`; they begin with
the `<|endoftext|>` that begins every dialogue) and `render_turn`, from which everything here is encoded.

A model of the hub speaks in words of its own: `encode_conversation` is the one place that turns a
conversation into tokens for whichever model it is. Its template is a program from elsewhere: transformers
runs it in Jinja's sandbox, and here it gets a few seconds.

How others write dialogues as text is in `written_turns`.
"""

from __future__ import annotations

import contextlib
import re
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from newllm_lib.data.records import Message
from newllm_lib.errors import NewLLMError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

END_OF_TEXT, PAD, END_OF_TURN = "<|endoftext|>", "<|pad|>", "<|end|>"
ROLE_TOKENS = {"user": "<|user|>", "assistant": "<|assistant|>", "system": "<|system|>"}
# a tokenizer trained here gives them the ids from 0, in this order
CONTROL_TOKENS = (END_OF_TEXT, PAD, *ROLE_TOKENS.values(), END_OF_TURN)
UNKNOWN = "<unk>"

# For a base whose turns end with the end of text and that brings no template, as DialoGPT's.
PLAIN_TURNS = (
    "{% if bos_token and bos_token != eos_token %}{{ bos_token }}{% endif %}"
    "{% for message in messages %}{{ message['content'] + eos_token }}{% endfor %}"
)
RENDER_SECONDS = 5.0  # a template that takes longer has lost itself
_PROBE = "0123456789"  # an answer to look for in what a template writes

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


def has_own_turns(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer's turns stand between our control tokens; another's may have the same names."""
    known = {token.content for token in tokenizer.added_tokens_decoder.values()}
    template = getattr(tokenizer, "chat_template", None)
    return known >= {*ROLE_TOKENS.values(), END_OF_TURN} and (not template or template in TEMPLATES.values())


def has_turns(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer can write a conversation; else its model can only continue text."""
    return has_own_turns(tokenizer) or bool(getattr(tokenizer, "chat_template", None))


def encode_conversation(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message | dict],
    add_generation_prompt: bool = True,
) -> list[int]:
    """Token ids of a conversation from its very beginning, in the tokenizer's own words.

    The same as `tokenizer.apply_chat_template`, but for what a user types that spells a control token, which
    stays text here.

    Args:
        tokenizer: one for which `has_turns` is true.
        messages: roles and contents in order.
        add_generation_prompt: end where the assistant begins to speak.

    Raises:
        NewLLMError: the tokenizer's template cannot write it.
    """
    if has_own_turns(tokenizer):
        return [tokenizer.bos_token_id, *encode_messages(tokenizer, messages, add_generation_prompt)]
    rows = [m if isinstance(m, dict) else m._asdict() for m in messages]
    text = render_conversation(tokenizer, rows, add_generation_prompt)
    control = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    typed = [row["content"] for row in rows if row["role"] != "assistant"]
    ids, done = [], 0
    for content in typed if any(token in content for token in control for content in typed) else ():
        at = text.find(content.strip(), done)
        if at >= 0:
            ids += tokenizer(text[done:at], add_special_tokens=False)["input_ids"]
            ids += encode_text(tokenizer, content.strip())
            done = at + len(content.strip())
    return ids + tokenizer(text[done:], add_special_tokens=False)["input_ids"]


class TemplateRefused(NewLLMError):
    """A chat template raised an error on this conversation; `cause`: what it said."""

    def __init__(self, cause: str, message: str):
        super().__init__(message)
        self.cause = cause


def render_conversation(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict], add_generation_prompt: bool = True
) -> str:
    """A conversation as the tokenizer's chat template writes it.

    Raises:
        TemplateRefused: the template raises an error.
        NewLLMError: it computes longer than `RENDER_SECONDS`, as it would on the next conversation too, or
            may do so in one operation.
    """
    rows = [{"role": m["role"], "content": m["content"]} for m in messages]
    name = tokenizer.name_or_path or "this model"
    try:
        if _has_powers(tokenizer.get_chat_template()):
            raise TimeoutError("it raises to a power, which may take for ever")
        with _time_limit_for_templates(RENDER_SECONDS):
            return tokenizer.apply_chat_template(
                rows, tokenize=False, add_generation_prompt=add_generation_prompt
            )
    except Exception as error:  # whatever a program from elsewhere comes to
        cause = (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")
        said = f"The chat template of {name} cannot write this conversation ({cause})"
        if isinstance(error, TimeoutError):
            raise NewLLMError(f"{said}: take another model.") from error
        raise TemplateRefused(
            cause, f"{said}: leave out a system message if there is one, or take another model."
        ) from error


@lru_cache(maxsize=16)
def _has_powers(template: str) -> bool:
    """Whether a template computes `a ** b`: Python does that in one operation, which nothing can cut off."""
    from jinja2 import Environment, TemplateSyntaxError

    try:
        return any(kind == "operator" and word == "**" for _, kind, word in Environment().lex(template))
    except TemplateSyntaxError:  # said when it is compiled
        return False


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that ends an answer, found in what the template writes after one; None: it writes none.

    Raises:
        NewLLMError: the template cannot write a question and an answer.
    """
    if has_own_turns(tokenizer):
        return tokenizer.convert_tokens_to_ids(END_OF_TURN)
    if not has_turns(tokenizer):
        return None
    answered = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _PROBE}]
    after = render_conversation(tokenizer, answered, add_generation_prompt=False).rpartition(_PROBE)[2]
    ids = tokenizer(after, add_special_tokens=False)["input_ids"]
    return next((i for i in ids if i in tokenizer.added_tokens_decoder), None)


@contextlib.contextmanager
def _time_limit_for_templates(seconds: float) -> Iterator[None]:
    """Within it, a Jinja template of this thread that computes longer raises TimeoutError.

    Jinja turns a template into Python, whose lines can be traced; a signal would need the main thread, and
    another process the seconds that transformers takes to import.
    """
    end, before = time.thread_time() + seconds, sys.gettrace()  # a busy machine is no endless template

    def trace(frame, event, argument):
        if time.thread_time() > end:
            raise TimeoutError(f"it was not done after {seconds:g} s")
        return trace if frame.f_code.co_filename == "<template>" else None  # its lines, not others'

    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


# Never text: what trainers and tokenizers write between documents.
MARKER = re.compile(
    r"<\|(?:(?:end|start|begin|beginning)_?of_?(?:text|document|doc|story|sentence|sequence)|[be]os|"
    r"endofdoc|document|doc_?sep|sep)\|>[ \t]*(?:\r?\n)?",
    re.IGNORECASE,
)


def split_at_markers(text: str) -> list[str]:
    """The documents in the text of a row that has markers, or the text itself."""
    if "<|" not in text or not MARKER.search(text):
        return [text]
    return [part for part in MARKER.split(text) if part.strip()]
