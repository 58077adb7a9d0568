"""The chat of the notebooks: streamed answers, commands, and the same conversation in a window and
in text.
"""

from __future__ import annotations

import pytest

from newllm_lib.colab import chat_widget
from newllm_lib.colab.chat_widget import Chat, ChatWindow
from newllm_lib.errors import UsageError
from newllm_lib.generation.sampling import Settings


class FakeSession:
    """Answers with the words it was given, turned around; knows one command."""

    dialogue = True
    about = "It answers turn by turn."

    def __init__(self):
        self.forgotten = 0
        self.settings = Settings(max_new_tokens=1000)

    def reply(self, text):
        for word in reversed(text.split()):
            yield f"{word} "

    def command(self, line):
        if line.startswith("/temperature "):
            self.settings = self.settings.changed("temperature", line.split()[1])
            return "changed"
        if line != "/reset":
            raise UsageError(f"There is no {line}.")
        self.forgotten += 1
        return "The conversation is forgotten."


def test_in_text_the_turns_are_printed(capsys):
    chat = Chat(FakeSession())
    chat.show()
    assert chat.ask("how are you") == "you are how "
    shown = capsys.readouterr().out
    assert '.ask("hello")' in shown and "you> how are you\nyou are how" in shown
    assert chat.turns == [("you", "how are you"), ("model", "you are how ")]


def test_commands_reach_the_session_and_slips_do_not_end_it():
    chat = Chat(FakeSession())
    chat.ask("hello")
    assert chat.ask("/wrong") == "There is no /wrong."
    assert chat.ask("/reset") == "The conversation is forgotten." and chat.session.forgotten == 1
    assert chat.turns == [("New-LLM", "The conversation is forgotten.")]


def test_a_model_of_plain_text_says_so(capsys):
    session = FakeSession()
    session.dialogue = False
    session.about = "It continues what you write."
    Chat(session).show()
    assert "continues what you write" in capsys.readouterr().out


def test_the_window_talks(monkeypatch):
    pytest.importorskip("ipywidgets")
    drawn = []
    monkeypatch.setattr(chat_widget, "_REDRAW", 0.0)
    chat = Chat(FakeSession())
    chat.window = window = ChatWindow(chat)
    draw = window.draw
    monkeypatch.setattr(window, "draw", lambda: (draw(), drawn.append(window.said.value)))
    window.line.value = "a <b> c"
    assert window.line.value == "" and chat.turns[-1] == ("model", "c <b> a ")
    assert "a &lt;b&gt; c" in window.said.value and "<b> c" not in window.said.value
    assert len(drawn) >= 3 and "c </div>" in drawn[0]  # piece by piece
    window.line.value = "   "
    assert len(chat.turns) == 2
    window.reset.click()
    assert chat.session.forgotten == 1 and "forgotten" in window.said.value
    assert [slider.value for slider in window.sliders] == [0.8, 400]
    window.sliders[0].value = 0.0
    assert chat.session.settings.temperature == 0.0
