"""A dialogue in the words of another model's tokenizer: its chat template, with the answers marked.

The tokens are those of `apply_chat_template`, which that model was trained on and is asked with later. What
the assistant says is found in the rendered text: between where the template asks for an answer and where the
turn ends, its end token included.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from newllm_lib.data.records import Message, Record
from newllm_lib.data.templates import TemplateRefused, render_conversation
from newllm_lib.data.tokenizer import interruptibly
from newllm_lib.errors import NewLLMError

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer
    from transformers import PreTrainedTokenizerBase


class Answer(NamedTuple):
    """What the assistant says in a rendered dialogue."""

    begin: int  # first character of its turn
    end: int  # one after its last, the end of the turn included
    content: str  # what was said, as the data has it


class Rendered(NamedTuple):
    """A dialogue as text, with the assistant's turns in it."""

    text: str
    answers: list[Answer]
    messages: tuple[Message, ...]  # all that it writes


class Document(NamedTuple):
    """A dialogue as tokens."""

    ids: list[int]
    answers: list[tuple[int, int]]  # from where to where in `ids` the assistant speaks
    bytes: int  # of what counts, in UTF-8
    lost_bytes: int  # those of them that the tokens cannot give back
    words: int


class TemplateEncoder:
    """Token ids of dialogues by a tokenizer's chat template. What people typed is never a control token.

    Args:
        tokenizer: with a chat template.
        lossless: whether its tokens give back every text.
        answers_only: count only what the assistant says.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, lossless: bool, answers_only: bool):
        import tokenizers

        self.renderer = Renderer(tokenizer)
        self.lossless, self.answers_only = lossless, answers_only
        self.backend = tokenizers.Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self.plain = tokenizers.Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self.plain.encode_special_tokens = True
        for backend in (self.backend, self.plain):
            backend.no_padding()
            backend.no_truncation()
        self.written = 0

    def encode(self, dialogues: Sequence[Record]) -> list[list[Document]]:
        """The documents of each dialogue: one, several (see `Renderer.render`), or none."""
        rendered = [self.renderer.render(record.messages, record.muted) for record in dialogues]
        whole = [one for some in rendered for one in some]
        encodings = iter(_encoded(self.backend, [one.text for one in whole]))
        self.written += sum(map(bool, rendered))
        return [[self._document(one, next(encodings)) for one in some] for some in rendered]

    def check(self) -> None:
        """Raise NewLLMError where the template refused more than a twentieth of all dialogues."""
        if self.renderer.refused > 0.05 * (self.renderer.refused + self.written):
            raise NewLLMError(
                f"{self.renderer.refused:,} of {self.renderer.refused + self.written:,} dialogues cannot be "
                f"written: {self.renderer.reason}"
            )

    def _document(self, one: Rendered, encoding: Encoding) -> Document:
        ids, offsets = self._without_spelled_tokens(one, encoding)
        spans = []
        for answer in one.answers:
            inside = [
                i for i, (begin, end) in enumerate(offsets) if begin < answer.end and end > answer.begin
            ]
            if inside:
                spans.append((inside[0], inside[-1] + 1))
        counted = [a.content for a in one.answers] if self.answers_only else [m.content for m in one.messages]
        lost = self._lost(one, ids, spans)
        size, words = sum(len(text.encode()) for text in counted), sum(len(text.split()) for text in counted)
        return Document(ids, spans, size, lost, words)

    def _without_spelled_tokens(
        self, one: Rendered, encoding: Encoding
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids and what of the text each stands for; what people typed as plain text."""
        spelled = self.renderer.spelled(one)
        if not spelled:
            return encoding.ids, encoding.offsets
        ids, offsets, done = [], [], 0
        for begin, end in [*spelled, (len(one.text), len(one.text))]:
            for backend, first, last in ((self.backend, done, begin), (self.plain, begin, end)):
                piece = _encoded(backend, [one.text[first:last]])[0]
                ids += piece.ids
                offsets += [(a + first, b + first) for a, b in piece.offsets]
            done = end
        return ids, offsets

    def _lost(self, one: Rendered, ids: list[int], spans: list[tuple[int, int]]) -> int:
        """Bytes of what counts that the tokens, or the template, cannot give back."""
        if not self.answers_only:
            said = one.text if self.lossless else self._decoded(ids)
            return sum(_missing_bytes(message.content, said) for message in one.messages)
        lost = 0
        for answer, (begin, end) in zip(one.answers, spans, strict=True):
            said = one.text[answer.begin : answer.end]
            if not self.lossless:
                said = self._decoded(ids[begin:end])
            lost += _missing_bytes(answer.content, said)
        return lost

    def _decoded(self, ids: list[int]) -> str:
        back = interruptibly(lambda: self.backend.decode_batch([ids], skip_special_tokens=False), len(ids))
        return back[0]


def _encoded(backend: Tokenizer, texts: list[str]) -> list[Encoding]:
    size = sum(map(len, texts))
    return interruptibly(lambda: backend.encode_batch(texts, add_special_tokens=False), size)


def _missing_bytes(content: str, said: str) -> int:
    """Bytes of `content` that are not in `said`: from the first character that differs to the last."""
    if content in said:
        return 0
    bare = content.strip()
    if bare in said:
        return len(content.encode()) - len(bare.encode())
    return differing_bytes(content, said)


def differing_bytes(text: str, decoded: str) -> int:
    """UTF-8 bytes of `text` from the first character that is another in `decoded` to the last."""
    if text == decoded:
        return 0
    same = len(os.path.commonprefix([text, decoded]))
    rest, other = text[same:][::-1], decoded[same:][::-1]
    same_end = len(os.path.commonprefix([rest, other]))
    return len(rest[same_end:].encode("utf-8"))


class Renderer:
    """Writes dialogues by a tokenizer's chat template.

    Attributes:
        tokenizer: with a chat template.
        refused: how many dialogues the template could not write, which are left out.
        reason: what it said to the first of them.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        self._control = [token.content for token in tokenizer.added_tokens_decoder.values()]
        self.refused, self.reason = 0, ""

    def render(self, messages: Sequence[Message], muted: Sequence[int] = ()) -> list[Rendered]:
        """The dialogue, or, where the template writes a turn otherwise once others follow it, what leads to
        each answer with that answer; nothing where the template refuses it.

        Args:
            muted: which of the messages are no answers to be learned.

        Raises:
            NewLLMError: the template does not end.
        """
        try:
            return self._rendered(messages, muted)
        except TemplateRefused as first:
            # Gemma's, for one, knows no system and wants user and assistant in turn
            simple, muted = _without_system(messages, muted)
            try:
                return self._rendered(simple, muted) if simple != tuple(messages) else self._refuse(first)
            except TemplateRefused:
                return self._refuse(first)

    def _refuse(self, error: NewLLMError) -> list[Rendered]:
        self.refused += 1
        self.reason = self.reason or str(error)
        return []

    def summary(self) -> str:
        """How many were left out, and why."""
        return f"{self.refused:,} dialogues are left out. {self.reason}"

    def _rendered(self, messages: Sequence[Message], muted: Sequence[int]) -> list[Rendered]:
        whole, answers = self._text(messages, False), []
        for number, message in enumerate(messages):
            if message.role != "assistant" or number in muted:
                continue
            asked = self._text(messages[:number], True) if number else ""
            said = self._text(messages[: number + 1], False)
            if not (whole.startswith(said) or said.rstrip() == whole[: len(said.rstrip())]):
                return self._one_by_one(messages, muted)
            if not said.startswith(asked):  # it asks in other words than those that stand before an answer
                asked = said[: self._place(said, message.content)]
            answers.append(Answer(len(asked), self._end(said, len(asked)), message.content))
        return [Rendered(whole, answers, tuple(messages))]

    def _one_by_one(self, messages: Sequence[Message], muted: Sequence[int]) -> list[Rendered]:
        found = []
        for number, message in enumerate(messages):
            if message.role == "assistant" and number not in muted:
                asked = self._text(messages[:number], True) if number else ""
                said = self._text(messages[: number + 1], False)
                if not said.startswith(asked):
                    asked = said[: self._place(said, message.content)]
                answer = Answer(len(asked), self._end(said, len(asked)), message.content)
                found.append(Rendered(said, [answer], tuple(messages[: number + 1])))
        return found

    def _place(self, said: str, content: str) -> int:
        place = said.rfind(content.strip())
        if place < 0:
            cause = "it does not write what the assistant says"
            raise TemplateRefused(cause, f"The chat template cannot be learned from: {cause}")
        return place

    def _end(self, said: str, begin: int) -> int:
        """Where the turn ends: behind its end token; the line break behind that leads to the next turn."""
        bare = said.rstrip()
        ends = len(bare) > begin and any(token and bare.endswith(token) for token in self._control)
        return len(bare) if ends else len(said)

    def _text(self, messages: Sequence[Message], asks: bool) -> str:
        return render_conversation(self.tokenizer, [message._asdict() for message in messages], asks)

    def spelled(self, rendered: Rendered) -> list[tuple[int, int]]:
        """Where, in a rendered text, people have typed something that spells a control token."""
        found, place = [], 0
        for message in rendered.messages:
            content = message.content.strip()
            if any(token and token in content for token in self._control):
                begin = rendered.text.find(content, place)
                if begin >= 0:
                    found.append((begin, begin + len(content)))
                    place = begin + len(content)
        return found


def _without_system(
    messages: Sequence[Message], muted: Sequence[int]
) -> tuple[tuple[Message, ...], tuple[int, ...]]:
    """The same dialogue with what the system says at the beginning of what the user says next, and turns of
    one speaker that follow each other as one; and which of its messages are muted."""
    simple: list[Message] = []
    silent: list[int] = []
    for number, (role, content) in enumerate(messages):
        role = "user" if role == "system" else role
        if simple and simple[-1].role == role:
            simple[-1] = Message(role, f"{simple[-1].content}\n\n{content}")
        else:
            simple.append(Message(role, content))
        silent += [len(simple) - 1] if number in muted else []
    return tuple(simple), tuple(silent)
