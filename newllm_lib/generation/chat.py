"""Chatting with a trained model, in the words that it was trained on.

Between our own control tokens the conversation is in the model's state, and no token is ever read twice. A
model of the hub speaks by its chat template: what the template writes after each turn is read from where it
goes beyond what was read. `ChatSession` is used by the terminal below and by the notebooks' widget:
`for piece in session.reply(text): show(piece)`.
"""

from __future__ import annotations

import contextlib
import re
import select
import sys
from collections.abc import Callable, Generator

from newllm_lib.console import printable, say
from newllm_lib.data.templates import (
    END_OF_TURN,
    ROLE_TOKENS,
    encode_conversation,
    encode_messages,
    encode_text,
    has_own_turns,
    has_turns,
    render_turn,
    template_of,
)
from newllm_lib.errors import NewLLMError, UsageError
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
        dialogue: in turns, between our control tokens or by the tokenizer's chat template; or False: the
            model continues plain text. None: in turns if it has a template, or, of a model of ours, if it
            expects a speaker after <|endoftext|>.
        system: instructions before the first turn (dialogue only).

    Raises:
        UsageError: turns or a system message are asked of a model that can only continue text.
        NewLLMError: the template cannot write a conversation, or none with a system message.
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
        self.system = system
        self.dialogue = speaks_in_turns(model, tokenizer) if dialogue is None else dialogue
        self._own = has_own_turns(tokenizer)  # else by the template
        if self.dialogue and not has_turns(tokenizer):
            raise UsageError(
                "This model's tokenizer has no chat template, nor <|user|> and <|assistant|>: it can only "
                "continue text."
            )
        if system and not self.dialogue:
            raise UsageError(f"{self.about} It reads no system message: leave it out.")
        stop = stop_tokens(tokenizer, model)
        self._text = Text(model, stop, reserved_tokens(tokenizer, model.config.vocab_size, model))
        self.reset()
        if self.dialogue and not self._own:  # what the template cannot write is said before anyone speaks
            encode_conversation(tokenizer, [*self._said, {"role": "user", "content": "?"}])

    @property
    def about(self) -> str:
        """How to talk with it, in one sentence."""
        if self.dialogue:
            return "It answers turn by turn."
        if has_turns(self.tokenizer):
            return "This model was trained on plain text: it continues what you write."
        return "This is a base model without a chat template: it continues what you write as plain text."

    def reset(self) -> None:
        """Forget the conversation."""
        self._text.reset()
        self._text.use(self.settings)
        self.turns = 0
        self._said = [{"role": "system", "content": _whole(self.system)}] if self.system else []
        self._known: list[int] = []  # of a template's conversation, what was read or waits to be
        if self.dialogue and not self._own:
            return
        bos = self.tokenizer.bos_token_id
        self._text.unread += [] if bos is None else [bos]
        if self._own:
            self._text.unread += encode_messages(self.tokenizer, self._said)

    def use(self, settings: Settings) -> None:
        """Choose by these settings from the next answer on."""
        self.settings = settings
        self._text.use(settings)

    def reply(self, text: str) -> Generator[str, None, None]:
        """The answer to `text` in pieces as they form; one may stop at any time, the chat goes on.

        It ends where a turn or a text ends (`stop_tokens`) or after `settings.max_new_tokens`, and never
        holds a control token.
        """
        self._read_turn(text)
        self.turns += 1
        if not self._text.unread:
            return
        pieces = Pieces(self.tokenizer, answer_beginning(self.tokenizer) if self.dialogue else "")
        tokens = self._text.write(self.settings.max_new_tokens)
        try:
            for token in tokens:
                if piece := pieces.add(token):
                    yield piece
            if piece := pieces.rest():
                yield piece
        finally:
            tokens.close()
            self._end_turn(pieces)

    def _read_turn(self, text: str) -> None:
        """Give the model what the user says, ready for its answer."""
        if not self.dialogue:  # goes on where the model stopped
            self._text.unread += self._encode(f" {text}" if self.turns and not text[:1].isspace() else text)
            return
        turn = {"role": "user", "content": _whole(text)}
        if self._own:
            self._text.unread += encode_messages(self.tokenizer, [turn], add_generation_prompt=True)
            return
        whole = encode_conversation(self.tokenizer, [*self._said, turn])
        self._said.append(turn)
        if whole[: len(self._known)] == self._known:
            self._text.unread += whole[len(self._known) :]
        else:  # earlier turns are written otherwise now, or an answer has other tokens than it was said in
            self._text.reset()
            self._text.unread = list(whole)
        self._known = whole

    def _end_turn(self, pieces: Pieces) -> None:
        """Close the answer as training data does, whether the model, the length or the user ended it."""
        if not self.dialogue:
            if self._text.stopped:  # the text is over: the next one starts anew
                self.reset()
        elif self._own:
            self._text.unread.append(self.tokenizer.convert_tokens_to_ids(END_OF_TURN))
        else:
            self._said.append({"role": "assistant", "content": pieces.text()})
            self._known = self._known + pieces.ids

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
        if name == "quit":
            raise UsageError("/quit stands alone; with // before it, it is said to the model.")
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
    """Whether the model was trained on dialogues: it has a chat template, or, where that is one of ours,
    which every model here has, a speaker is this probable after <|endoftext|>."""
    if not has_own_turns(tokenizer) or tokenizer.bos_token_id is None:
        return has_turns(tokenizer)
    roles = [token_id(tokenizer, token) for token in ROLE_TOKENS.values()]
    with eval_mode(model):
        logits = IncrementalDecoder(model).read([tokenizer.bos_token_id])
    return float(logits.float().softmax(-1)[roles].sum()) >= at_least


def _whole(text: str) -> str:
    return text.encode("utf-8", "ignore").decode()  # a terminal may give lone surrogates


def answer_beginning(tokenizer) -> str:
    """What a template of ours writes before an answer's first word, and is no part of the answer."""
    return render_turn(template_of(tokenizer), "assistant", "")[1] if has_own_turns(tokenizer) else ""


class Pieces:
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

    def text(self) -> str:
        """All of it."""
        return self._decode(self.ids)

    def _new(self, before: str, now: str) -> str:
        text = now[len(before) :].removeprefix(self.beginning)
        self.beginning = ""
        return text

    def _decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)


def ask_terminal(prompt: str) -> str:
    """A line that the user types, or all lines of what they paste."""
    with contextlib.suppress(ImportError):  # by itself, a terminal keeps a paste's last line until it ends
        import readline  # noqa: F401
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
    say(session.about)
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
    except NewLLMError as error:  # the template cannot write this turn: the next one may do
        say(str(error))
    except KeyboardInterrupt:
        pieces.close()
        say(" … (stopped; Ctrl-C again leaves)")
        return False
    out.write("\n")
    out.flush()
    return True


def open_session(
    run,
    settings: Settings | None = None,
    which: str = "best",
    device: str | None = None,
    system: str | None = None,
) -> ChatSession:
    """A conversation with a model from `load_model`: in turns if its record says it learned answers, or which
    answers are better.

    A model that learned answers alone was never asked who speaks first, so its own guess (`speaks_in_turns`)
    says nothing.

    Raises:
        UsageError, NewLLMError: the model cannot be loaded (see `load_model`), or see `ChatSession`.
    """
    from newllm_lib.checkpoints import load_model
    from newllm_lib.device import probe

    loaded = load_model(run, which, device=device or probe().torch_device)
    answers = loaded.recipe is not None and loaded.recipe.loss_on == "answers"
    taught = loaded.recipe is not None and loaded.recipe.task != "train" and has_turns(loaded.tokenizer)
    turns = True if answers or taught else None
    return ChatSession(loaded.model, loaded.tokenizer, settings, dialogue=turns, system=system)
