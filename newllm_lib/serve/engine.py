"""One model that answers one request after the other, and can be told to stop at any token."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace

from newllm_lib.checkpoints.load import LoadedModel
from newllm_lib.data.templates import encode_conversation, encode_text, has_turns
from newllm_lib.errors import UsageError
from newllm_lib.generation.chat import Pieces, answer_beginning
from newllm_lib.generation.decoding import Text
from newllm_lib.generation.sampling import Settings, reserved_tokens, stop_tokens
from newllm_lib.generation.stateful import eval_mode, window

_READ_AT_ONCE = 256  # tokens of a prompt between two looks at whether somebody still waits for the answer


@dataclass
class Answer:
    """What is asked, and what came of it.

    Attributes:
        ids: the prompt's token ids.
        chat: it is a turn of a conversation.
        stop: strings that end the answer, and are no part of it.
        seconds: the answer ends after so long, wherever it is.
        tokens: said so far.
        finish: why it ended: "stop" (by itself, or at one of `stop`) or "length" (tokens or time).
    """

    ids: list[int]
    settings: Settings
    chat: bool = False
    stop: Sequence[str] = ()
    seconds: float = 300.0
    tokens: int = 0
    finish: str = "length"


class Engine:
    """A loaded model and the text that it read last: a conversation that goes on is not read again."""

    def __init__(self, loaded: LoadedModel):
        self.model, self.tokenizer = loaded.model, loaded.tokenizer
        self.name = loaded.location.title()
        self.chats = has_turns(self.tokenizer)
        self.window = window(self.model)
        stop = stop_tokens(self.tokenizer, self.model)
        reserved = reserved_tokens(self.tokenizer, self.model.config.vocab_size, self.model)
        self._text = Text(self.model, stop, reserved)
        self._text.reset()
        self._known: list[int] = []  # token ids that were read, or wait in the text to be

    def prompt_of_chat(self, messages: Sequence[dict]) -> list[int]:
        """Token ids of a conversation, ready for the assistant.

        Raises:
            UsageError: the model has no turns.
            NewLLMError: its template cannot write this conversation.
        """
        if not self.chats:
            raise UsageError(
                f"{self.name} is a base model without a chat template: ask /v1/completions to go on with a "
                "text."
            )
        return encode_conversation(self.tokenizer, messages)

    def prompt_of_text(self, text: str) -> list[int]:
        """Token ids of the beginning of a document."""
        start = [] if self.tokenizer.bos_token_id is None else [self.tokenizer.bos_token_id]
        return start + encode_text(self.tokenizer, text)

    def room(self, ids: Sequence[int], wanted: int) -> int:
        """How many tokens may follow a prompt, at most `wanted`.

        Raises:
            UsageError: the prompt is empty, holds what is no token, or fills the model's window.
        """
        if not ids or not all(0 <= i < self.model.config.vocab_size for i in ids):
            raise UsageError("The prompt holds no token, or ids that are none of this model's.")
        if self.window is None:
            return wanted
        if len(ids) >= self.window:
            raise UsageError(
                f"The prompt has {len(ids):,} tokens, and {self.name} sees {self.window:,} at once: shorten "
                "it."
            )
        return min(wanted, self.window - len(ids))

    def answer(self, asked: Answer, left: Callable[[], bool]) -> Generator[str, None, None]:
        """The answer in pieces as they form.

        Args:
            asked: gets `tokens` and `finish`.
            left: whether nobody waits for the answer any more; asked between tokens.
        """
        end = time.monotonic() + asked.seconds
        pieces = Pieces(self.tokenizer, answer_beginning(self.tokenizer) if asked.chat else "")
        stops = _StopStrings(asked.stop)
        if not self._read(asked, lambda: left() or time.monotonic() > end):
            return
        tokens = self._text.write(asked.settings.max_new_tokens)
        try:
            for token in tokens:
                asked.tokens += 1
                piece = stops.add(pieces.add(token))
                if piece:
                    yield piece
                if stops.found or left() or time.monotonic() > end:
                    break
            if not stops.found and (piece := stops.add(pieces.rest()) + stops.rest()):
                yield piece
        finally:
            tokens.close()
            self._known += pieces.ids
            asked.finish = "stop" if stops.found or self._text.stopped else "length"

    def _read(self, asked: Answer, left: Callable[[], bool]) -> bool:
        """Read the prompt but for its end, from where it goes beyond what was read; whether that was done."""
        text = self._text
        settings = replace(asked.settings, max_new_tokens=1)  # which decides nothing about a token
        if settings != text.settings or settings.seed is not None:
            text.use(settings)
        unread = asked.ids[len(self._known) :]
        if not unread or asked.ids[: len(self._known)] != self._known:
            self._forget()
            unread = list(asked.ids)
        text.unread, text.recent = text.unread + unread, []
        try:
            while len(text.unread) > _READ_AT_ONCE:
                if left():
                    self._forget()
                    return False
                with eval_mode(self.model):
                    text.reader.read(text.unread[:_READ_AT_ONCE])
                text.unread = text.unread[_READ_AT_ONCE:]
        except BaseException:
            self._forget()
            raise
        self._known = list(asked.ids)
        return True

    def _forget(self) -> None:
        self._text.reset()
        self._known = []


class _StopStrings:
    """Text as it comes, held back where a stop string may have begun, and cut where one is."""

    def __init__(self, stop: Sequence[str]):
        self.stop, self.held, self.found = [s for s in stop if s], "", False

    def add(self, piece: str) -> str:
        """What of all that came may be shown now."""
        text = self.held + piece
        places = [at for s in self.stop if (at := text.find(s)) >= 0]
        if places:
            self.held, self.found = "", True
            return text[: min(places)]
        lengths = range(1, max(map(len, self.stop), default=0))
        begun = max((n for n in lengths if any(s.startswith(text[-n:]) for s in self.stop)), default=0)
        begun = min(begun, len(text))
        self.held = text[len(text) - begun :]
        return text[: len(text) - begun]

    def rest(self) -> str:
        """What is held back when the answer is over."""
        return self.held
