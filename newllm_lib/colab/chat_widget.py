"""Talking with a run in a notebook: a small chat window where widgets render, else printed turns."""

from __future__ import annotations

import html
import time

from newllm_lib.colab.environment import widgets_render
from newllm_lib.console import say
from newllm_lib.errors import UsageError

_REDRAW = 0.1  # seconds between two redraws of an answer that is still being written


def chat(run, first: str | None = None, settings=None, system: str | None = None) -> Chat:
    """Load a run and chat: `first` is sent at once, then the window waits (no widgets: `.ask(...)`).

    Args:
        run: as for `checkpoints.load_model`.
        settings: `evaluation.Settings`.
        system: instructions that the model reads before the first turn.
    Raises:
        UsageError, NewLLMError: the model cannot be loaded.
    """
    from newllm_lib.generation.chat import open_session

    conversation = Chat(open_session(run, settings, system=system))
    conversation.show()
    if first:
        conversation.ask(first)
    return conversation


class Chat:
    """A conversation and its window. `turns` holds (speaker, text), the newest last."""

    def __init__(self, session):
        self.session = session
        self.turns: list[tuple[str, str]] = []
        self.window: ChatWindow | None = None

    def show(self) -> None:
        """Draw the window, or say how to talk without one."""
        plain = "" if self.session.dialogue else f" {self.session.about}"
        if widgets_render():
            self.window = ChatWindow(self, plain)
        else:
            say(
                'Talk with .ask("hello"), start anew with .ask("/reset"), change with .ask("/top_k '
                f'10").{plain}'
            )

    def ask(self, text: str) -> str:
        """Say `text` (or a command such as /reset; `//` says what begins with /) and return the answer.

        It is shown while it is formed.
        """
        from newllm_lib.generation.chat import spoken

        said = spoken(text)
        self.turns.append(("you", text if said is None else said))
        answer = self._obey(text) if said is None else self._answer(said)
        if self.window:
            self.window.draw()
        else:
            say(f"you> {text}\n{answer}")
        return answer

    def _obey(self, line: str) -> str:
        try:
            answer = self.session.command(line)
        except UsageError as error:  # a slip of the fingers must not end the conversation
            answer = str(error)
        if line.strip() == "/reset":
            self.turns.clear()
        self.turns.append(("New-LLM", answer))
        return answer

    def _answer(self, text: str) -> str:
        self.turns.append(("model", ""))
        answer, drawn = "", 0.0
        for piece in self.session.reply(text):
            answer += piece
            self.turns[-1] = ("model", answer)
            if self.window and time.monotonic() - drawn > _REDRAW:
                self.window.draw()
                drawn = time.monotonic()
        return answer


class ChatWindow:
    """The widgets: the conversation, an input line, and buttons."""

    def __init__(self, conversation: Chat, hint: str = ""):
        import ipywidgets
        from IPython.display import display

        self.chat = conversation
        self.said = ipywidgets.HTML()
        self.line = ipywidgets.Text(
            placeholder="Write and press Enter · 入力して Enter", layout={"width": "70%"}
        )
        self.send = ipywidgets.Button(description="Send · 送信", button_style="primary")
        self.reset = ipywidgets.Button(description="Reset · やり直し", tooltip="Forget the conversation")
        self.sliders = [
            self._slider("temperature", 0.0, 2.0, 0.05),
            self._slider("max_new_tokens", 10, 400, 10),
        ]
        self.line.continuous_update = False  # the value arrives with Enter
        self.line.observe(lambda change: self._say(), "value")
        self.send.on_click(lambda _: self._say())
        self.reset.on_click(lambda _: self.chat.ask("/reset"))
        head = ipywidgets.HTML(f"<b>Chat</b> <span style='color:#6b7280'>{html.escape(hint)}</span>")
        rows = [ipywidgets.HBox([self.line, self.send, self.reset]), ipywidgets.HBox(self.sliders)]
        display(ipywidgets.VBox([head, self.said, *rows]))

    def _slider(self, name: str, lowest, highest, step):
        """A setting of the conversation, changed as `/temperature 0.7` changes it."""
        import ipywidgets

        kind = ipywidgets.IntSlider if isinstance(lowest, int) else ipywidgets.FloatSlider
        value = min(highest, getattr(self.chat.session.settings, name))
        slider = kind(
            value,
            min=lowest,
            max=highest,
            step=step,
            description=name.split("_")[-1],
            continuous_update=False,
            style={"description_width": "initial"},
        )
        slider.observe(lambda change: self.chat.session.command(f"/{name} {change['new']}"), "value")
        return slider

    def _say(self) -> None:
        text = self.line.value
        if text.strip():
            self.line.value = ""
            self.chat.ask(text)

    def draw(self) -> None:
        """Show the conversation as it is now."""
        self.said.value = "".join(_bubble(*turn) for turn in self.chat.turns)


def _bubble(speaker: str, text: str) -> str:
    colour = "#0072B2" if speaker == "you" else "#D55E00" if speaker == "model" else "#6b7280"
    shown = html.escape(text).replace("\n", "<br>") or "…"
    return (
        f'<div style="margin:4px 0; white-space:pre-wrap"><b style="color:{colour}">{speaker}</b> '
        f"{shown}</div>"
    )
