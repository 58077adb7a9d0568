"""Chatting with a trained model: the conversation is in the model's state, so no token is ever read twice.

`ChatSession` is used by the terminal below and by the notebooks' widget: `for piece in session.reply(text):
show(piece)`.
"""

from __future__ import annotations

import re
import select
import sys
from collections.abc import Callable, Generator
from typing import Any

from newllm_lib.console import printable, say
from newllm_lib.data.templates import (
    END_OF_TURN,
    ROLE_TOKENS,
    encode_messages,
    encode_text,
    render_turn,
    template_of,
)
from newllm_lib.errors import UsageError
from newllm_lib.generation.decoding import Text
from newllm_lib.generation.sampling import Settings, reserved_tokens, stop_tokens, token_id
from newllm_lib.generation.stateful import IncrementalDecoder, eval_mode

COMMANDS = (
    "/reset  forget the conversation\n"
    "/settings  show the settings; change one with /temperature 0.7, /max_new_tokens 50, …\n"
    "/quit  leave (also Ctrl-D; Ctrl-C stops an answer, a second one leaves)\n"
    "//…  say something that begins with /; several lines pasted at once are one message"
)
# one word behind the slash: a path, a comment or a regular expression is something to say
_COMMAND = re.compile(r"/(?:[A-Za-z_]+(?![^\s=]).*)?", re.DOTALL)
_PASTED = 0.05  # seconds within which a paste's next line is there


class ChatSession:
    """A conversation with one model.

    Args:
        dialogue: turns between <|user|> and <|assistant|>; or False: the model continues plain text. None: by
            what the model expects after <|endoftext|>.
        system: instructions before the first turn (dialogue only).
    """

    def __init__(
        self,
        model,
        tokenizer,
        settings: Settings | None = None,
        dialogue: bool | None = None,
        system: str | None = None,
    ):
        self.model, self.tokenizer = model, tokenizer
        self.settings = settings or Settings()
        self._control: dict[str, Any] = {
            role: token_id(tokenizer, token) for role, token in ROLE_TOKENS.items()
        }
        self._control["end"] = token_id(tokenizer, END_OF_TURN)
        self._text = Text(model, stop_tokens(tokenizer), reserved_tokens(tokenizer, model.config.vocab_size))
        self.system = system
        self.dialogue = speaks_in_turns(model, tokenizer) if dialogue is None else dialogue
        if self.dialogue and None in self._control.values():
            raise UsageError(
                "This model's tokenizer has no <|user|> and <|assistant|>: it can only continue text."
            )
        self.reset()

    def reset(self) -> None:
        """Forget the conversation."""
        self._text.reset()
        self._text.use(self.settings)
        self.turns = 0
        bos = self.tokenizer.bos_token_id
        self._text.unread += [] if bos is None else [bos]
        if self.dialogue and self.system:
            self._text.unread += encode_messages(
                self.tokenizer, [{"role": "system", "content": _whole(self.system)}]
            )

    def use(self, settings: Settings) -> None:
        """Choose by these settings from the next answer on."""
        self.settings = settings
        self._text.use(settings)

    def reply(self, text: str) -> Generator[str, None, None]:
        """The answer to `text` in pieces as they form; one may stop at any time, the chat goes on.

        It ends at <|end|>, <|endoftext|> or `settings.max_new_tokens`, and never holds a control token.
        """
        self._text.unread += self._turn(text)
        self.turns += 1
        if not self._text.unread:
            return
        _, beginning = render_turn(template_of(self.tokenizer), "assistant", "")
        pieces = _Pieces(self.tokenizer, beginning if self.dialogue else "")
        tokens = self._text.write(self.settings.max_new_tokens)
        try:
            for token in tokens:
                if piece := pieces.add(token):
                    yield piece
            if piece := pieces.rest():
                yield piece
        finally:
            tokens.close()
            self._end_turn()

    def _turn(self, text: str) -> list[int]:
        if not self.dialogue:  # goes on where the model stopped
            return self._encode(f" {text}" if self.turns and not text[:1].isspace() else text)
        return encode_messages(
            self.tokenizer, [{"role": "user", "content": _whole(text)}], add_generation_prompt=True
        )

    def _end_turn(self) -> None:
        """Close the answer as training data does, whether the model, the length or the user ended it."""
        if self.dialogue:
            self._text.unread.append(self._control["end"])
        elif self._text.stopped:  # the text is over: the next one starts anew
            self.reset()

    def _encode(self, text: str) -> list[int]:
        return encode_text(self.tokenizer, _whole(text))

    def command(self, line: str) -> str:
        """Do what a "/" command asks; returns what to tell the user. /quit is the caller's business.

        Raises:
            UsageError: no such command or setting, or a bad value.
        """
        name, _, value = line.strip()[1:].replace("=", " ").partition(" ")
        if name == "settings" and value.strip():
            name, _, value = value.strip().lstrip("/").partition(" ")
        value = value.strip()
        if name == "reset":
            self.reset()
            return "The conversation is forgotten."
        if name == "settings":
            return str(self.settings)
        if name in ("help", ""):
            return COMMANDS
        if not hasattr(self.settings, name):
            raise UsageError(
                f"There is no /{name}: use /reset, /settings, /quit, or a setting (/temperature 0.7); "
                f"//{name} says it to the model."
            )
        self.use(self.settings.changed(name, value))
        return f"{name} is {getattr(self.settings, name)}."


def spoken(line: str) -> str | None:
    """What a user's line says to the model; None: it is a "/" command. `//` or a space before it says it."""
    text = line.strip()
    if text.startswith("//"):
        return text[1:]
    is_command = line.startswith("/") and "\n" not in text and _COMMAND.fullmatch(text)
    return None if is_command else text


def speaks_in_turns(model, tokenizer, at_least: float = 0.05) -> bool:
    """Whether the model was trained on dialogues: a speaker is this probable after <|endoftext|>."""
    roles = [token_id(tokenizer, token) for token in ROLE_TOKENS.values()]
    if None in roles or tokenizer.bos_token_id is None:
        return False
    with eval_mode(model):
        logits = IncrementalDecoder(model).read([tokenizer.bos_token_id])
    return float(logits.float().softmax(-1)[roles].sum()) >= at_least


def _whole(text: str) -> str:
    return text.encode("utf-8", "ignore").decode()  # a terminal may give lone surrogates


class _Pieces:
    """Token ids to text piece by piece: a character waits until all of its bytes are there."""

    def __init__(self, tokenizer, beginning: str = ""):
        self.tokenizer, self.beginning = tokenizer, beginning  # the template's own, before the first word
        self.ids: list[int] = []
        # ids before `shown` are out; those from `context` on still shape what follows
        self.context = self.shown = 0

    def add(self, token: int) -> str:
        self.ids.append(token)
        before, now = (
            self._decode(self.ids[self.context : self.shown]),
            self._decode(self.ids[self.context :]),
        )
        if now.endswith("\ufffd") or len(now) <= len(before):
            return ""
        self.context, self.shown = self.shown, len(self.ids)
        return self._new(before, now)

    def rest(self) -> str:
        """What still waits when the answer is over."""
        return self._new(
            self._decode(self.ids[self.context : self.shown]), self._decode(self.ids[self.context :])
        )

    def _new(self, before: str, now: str) -> str:
        text = now[len(before) :].removeprefix(self.beginning)
        self.beginning = ""
        return text

    def _decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)


def ask_terminal(prompt: str) -> str:
    """A line that the user types, or all lines of what they paste."""
    lines = [input(prompt)]
    while sys.stdin.isatty() and select.select([sys.stdin], [], [], _PASTED)[0]:
        try:
            lines.append(input())
        except EOFError:
            break
    return "\n".join(lines)


def run_terminal(session: ChatSession, ask: Callable[[str], str] = ask_terminal, out=None) -> None:
    """Talk in the terminal until /quit, Ctrl-D, or a second Ctrl-C in a row.

    Args:
        ask: shows a prompt and returns what the user says.
        out: where the answers go (standard output).
    """
    out = out or sys.stdout
    plain = "This model was trained on plain text: it continues what you write."
    say("It answers turn by turn." if session.dialogue else plain)
    say(COMMANDS)
    interrupted = False  # Ctrl-C came, and no line since
    while True:
        try:
            line = ask("\nyou> ")
        except EOFError:
            break
        except KeyboardInterrupt:
            if interrupted:
                break
            interrupted = True
            say("\n(Ctrl-C again leaves)")
            continue
        interrupted = False
        text = spoken(line)
        if text is None and line.strip() == "/quit":
            break
        if text is None:
            _obey(session, line)
        elif text:
            interrupted = not _answer(session, text, out)
    say("\nBye.")


def _obey(session: ChatSession, line: str) -> None:
    try:
        say(session.command(line))
    except UsageError as error:  # a slip of the fingers must not end the conversation
        say(str(error))


def _answer(session: ChatSession, line: str, out) -> bool:
    """Write the answer as it comes. Returns False if Ctrl-C stopped it."""
    pieces = session.reply(line)
    try:
        for piece in pieces:
            out.write(printable(piece))
            out.flush()
    except KeyboardInterrupt:
        pieces.close()
        say(" … (stopped; Ctrl-C again leaves)")
        return False
    out.write("\n")
    out.flush()
    return True


def chat(run, settings: Settings | None = None, which: str = "best", device: str | None = None) -> None:
    """`newllm chat MODEL`: load it and talk with it in the terminal.

    Raises:
        UsageError, NewLLMError: the model cannot be loaded (see `load_model`).
    """
    run_terminal(open_session(run, settings, which, device))


def open_session(
    run, settings: Settings | None = None, which: str = "best", device: str | None = None
) -> ChatSession:
    """A conversation with a model from `load_model`: in turns if its record says it learned answers.

    A model that learned answers alone was never asked who speaks first, so its own guess (`speaks_in_turns`)
    says nothing.

    Raises:
        UsageError, NewLLMError: the model cannot be loaded (see `load_model`).
    """
    from newllm_lib.checkpoints import load_model
    from newllm_lib.device import probe

    loaded = load_model(run, which, device=device or probe().torch_device)
    answers = loaded.recipe is not None and loaded.recipe.loss_on == "answers"
    return ChatSession(loaded.model, loaded.tokenizer, settings, dialogue=True if answers else None)
