"""Talking with a run in a notebook: a small chat window where widgets render, else printed turns.

An answer is made in a thread, so that a button can stop it while it forms.
"""

from __future__ import annotations

import html
import threading
import time

from newllm_lib.colab import buttons, pictures
from newllm_lib.colab.environment import widgets_render
from newllm_lib.console import say
from newllm_lib.errors import NewLLMError, UsageError

_REDRAW = 0.1  # seconds between two redraws of an answer that is still being written
_NOTE = ""  # the speaker of what the window itself says


def chat(run, first: str | None = None, settings=None, system: str | None = None) -> Chat:
    """Load a run and chat: `first` is sent at once, then the window waits (no widgets: `.ask(...)`).

    A run that is still in training answers with its best model so far.

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
    """A conversation and its window. `turns` holds (speaker, text), the newest last; what the window itself
    says has no speaker."""

    def __init__(self, session):
        self.session = session
        self.turns: list[tuple[str, str]] = []
        self.window: ChatWindow | None = None
        self.stopping = threading.Event()
        self._busy = threading.Lock()

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

        It is shown while it is formed, and ■ stops it.
        """
        thread = self.begin(text)
        try:
            while thread.is_alive():
                buttons.wait(0.05)
        except KeyboardInterrupt:
            self.stop()
            thread.join()
        answer = self.turns[-1][1] if self.turns else ""
        if not self.window:
            say(f"you> {text}\n{answer}")
        return answer

    def begin(self, text: str) -> threading.Thread:
        """The same without waiting for the answer; returns the thread that makes it."""
        thread = threading.Thread(target=self._turn, args=(text,), name="chat", daemon=True)
        thread.start()
        return thread

    def stop(self) -> None:
        """End the answer that is being formed; what was said stays said."""
        self.stopping.set()

    def _turn(self, text: str) -> None:
        from newllm_lib.generation.chat import spoken

        said = spoken(text)
        with self._busy:  # one answer at a time
            self.stopping.clear()
            self._draw(busy=True)
            try:
                if said is None:
                    self._obey(text)
                else:
                    self.turns.append(("you", said))
                    self._answer(said)
            except Exception as error:  # in a thread nobody else would say it, and the chat goes on
                self.turns.append((_NOTE, f"✗ {error}" if isinstance(error, NewLLMError) else f"✗ {error!r}"))
            self._draw(busy=False)

    def _obey(self, line: str) -> None:
        try:
            answer = self.session.command(line)
        except UsageError as error:  # a slip of the fingers must not end the conversation
            answer = str(error)
        if line.strip() == "/reset":
            self.turns.clear()
        self.turns.append((_NOTE, answer))

    def _answer(self, text: str) -> None:
        before = self.spoken()
        self.turns.append(("model", ""))
        answer, drawn = "", 0.0
        pieces = self.session.reply(text)
        try:
            for piece in pieces:
                answer += piece
                self.turns[-1] = ("model", answer)
                if self.stopping.is_set():
                    self.turns.append((_NOTE, "(stopped)"))
                    break
                if time.monotonic() - drawn > _REDRAW:
                    self._draw(busy=True)
                    drawn = time.monotonic()
        finally:
            pieces.close()
        if self.window and answer:
            self.window.look_at(before, answer)

    def spoken(self) -> list[dict]:
        """The conversation so far as messages."""
        roles = {"you": "user", "model": "assistant"}
        system = getattr(self.session, "system", None)
        first = [{"role": "system", "content": system}] if system else []
        return first + [{"role": roles[who], "content": text} for who, text in self.turns if who in roles]

    def _draw(self, busy: bool) -> None:
        if self.window:
            self.window.draw(busy)


class ChatWindow:
    """The widgets: the conversation, a line (or several) to write in, and buttons.

    Nothing is sent but by Enter in the line or the button: a draft stays a draft when the box loses the
    focus."""

    def __init__(self, conversation: Chat, hint: str = ""):
        import ipywidgets
        from IPython.display import display

        self.chat = conversation
        self.said = ipywidgets.HTML()
        self.line = ipywidgets.Text(
            placeholder="Write and press Enter · 入力して Enter", layout={"width": "60%"}
        )
        self.lines = ipywidgets.Textarea(
            placeholder="Several lines; Send sends them · 複数行。送信ボタンで送ります",
            rows=5,
            layout={"width": "60%", "display": "none"},
        )
        self.more = ipywidgets.ToggleButton(
            description="¶", tooltip="Several lines · 複数行", layout={"width": "3em"}
        )
        self.send = self._button("Send · 送信", self._say, button_style="primary")
        self.end = self._button("Stop · 停止", self.chat.stop, disabled=True)
        self.reset = self._button(
            "Reset · やり直し", lambda: self._begin("/reset"), tooltip="Forget the conversation"
        )
        self.sliders = [
            self._slider("temperature", 0.0, 2.0, 0.05),
            self._slider("top_p", 0.05, 1.0, 0.05),
            self._slider("max_new_tokens", 10, 400, 10),
        ]
        self.line.on_submit(lambda _: self._say())  # Enter, and nothing else
        self.more.observe(lambda change: self._switch(change["new"]), "value")
        self.answer = None  # the newest, with the logits behind it
        self.place = ipywidgets.IntSlider(description="token", min=0, max=0, layout={"width": "60%"})
        self.place.observe(lambda change: self._show_chances(), "value")
        self.chances = ipywidgets.HTML("Say something first · 先に何か話しかけてください")
        head = ipywidgets.HTML(f"<b>Chat</b> {html.escape(hint)}")
        row = ipywidgets.HBox([self.line, self.lines, self.more, self.send, self.end, self.reset])
        self.panel = ipywidgets.Accordion([ipywidgets.VBox([self.place, self.chances])], selected_index=None)
        self.panel.set_title(0, "The next token's probabilities · 次のトークンの確率")
        display(ipywidgets.VBox([head, self.said, row, ipywidgets.HBox(self.sliders), self.panel]))

    def _button(self, label: str, action, **look):
        import ipywidgets

        button = ipywidgets.Button(description=label, layout={"width": "auto"}, **look)
        button.on_click(lambda _: action())
        buttons.answer_on_its_own_thread(button)
        return button

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
            description=name.split("_")[-1] if name != "top_p" else "top-p",
            continuous_update=False,
            style={"description_width": "initial"},
        )

        def change(event) -> None:
            self.chat.session.command(f"/{name} {event['new']}")
            self._show_chances()

        slider.observe(change, "value")
        return slider

    def _switch(self, several: bool) -> None:
        """One line or several; what was written goes along."""
        text = (self.line if several else self.lines).value
        (self.lines if several else self.line).value = text
        self.lines.layout.display, self.line.layout.display = ("", "none") if several else ("none", "")

    def _say(self) -> None:
        box = self.lines if self.more.value else self.line
        text = box.value
        if text.strip():
            box.value = ""
            self._begin(text)

    def _begin(self, text: str) -> None:
        self.thread = self.chat.begin(text)

    def look_at(self, before: list[dict], answer: str) -> None:
        """Keep the logits behind an answer, for the panel."""
        from newllm_lib.colab import next_token

        if not hasattr(self.chat.session, "model"):
            return
        self.answer = next_token.chosen_from(self.chat.session, before, answer)
        self.place.max = max(0, len(self.answer.ids) - 1)
        self.place.value = 0
        self._show_chances()

    def _show_chances(self) -> None:
        from newllm_lib.colab import next_token

        if self.answer is not None and self.answer.ids:
            session = self.chat.session
            found = next_token.bars(session.tokenizer, self.answer, self.place.value, session.settings)
            self.chances.value = pictures.page(found)

    def draw(self, busy: bool = False) -> None:
        """Show the conversation as it is now, its end in sight."""
        turns = "".join(_bubble(*turn) for turn in self.chat.turns)
        self.said.value = pictures.page(
            "<div style='max-height:420px;overflow-y:auto;display:flex;flex-direction:column-reverse'>"
            f"<div>{turns}</div></div>"
        )
        self.end.disabled = not busy


def _bubble(speaker: str, text: str) -> str:
    shown = html.escape(text).replace("\n", "<br>") or "…"
    if speaker == _NOTE:  # the window's own word, signed by nobody
        grey = pictures.themed("#6b7280")
        return f'<div style="margin:4px 0;color:{grey};font-style:italic">{shown}</div>'
    colour = pictures.themed("#0072b2" if speaker == "you" else "#d55e00")
    who = f'<b style="color:{colour}">{speaker}</b>'
    return f'<div style="margin:4px 0;white-space:pre-wrap">{who} {shown}</div>'
