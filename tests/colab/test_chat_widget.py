"""The chat of the notebooks: streamed answers, commands, and the same conversation in a window and
in text.
"""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest
import torch

from newllm_lib.colab import chat_widget, next_token
from newllm_lib.colab.chat_widget import Chat, ChatWindow
from newllm_lib.data.templates import encode_conversation
from newllm_lib.errors import NewLLMError, UsageError
from newllm_lib.generation.chat import ChatSession, open_session
from newllm_lib.generation.sampling import Sampler, Settings
from newllm_lib.generation.stateful import IncrementalDecoder
from newllm_lib.recipe import load_recipe

ipywidgets = pytest.importorskip("ipywidgets")


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
    assert chat.turns == [("", "The conversation is forgotten.")]  # signed by nobody


def test_a_model_of_plain_text_says_so(capsys):
    session = FakeSession()
    session.dialogue = False
    session.about = "It continues what you write."
    Chat(session).show()
    assert "continues what you write" in capsys.readouterr().out


@pytest.fixture
def window(monkeypatch):
    monkeypatch.setattr(chat_widget, "_REDRAW", 0.0)
    monkeypatch.setattr(ipywidgets.Text, "on_submit", lambda self, action: setattr(self, "submit", action))
    chat = Chat(FakeSession())
    chat.window = ChatWindow(chat)
    return chat.window


def test_the_window_talks(window, monkeypatch):
    drawn, chat = [], window.chat
    draw = window.draw
    monkeypatch.setattr(window, "draw", lambda busy=False: (draw(busy), drawn.append(window.said.value)))
    window.line.value = "a <b> c"
    window.line.submit(window.line)
    window.thread.join()
    assert window.line.value == "" and chat.turns[-1] == ("model", "c <b> a ")
    assert "a &lt;b&gt; c" in window.said.value and "<b> c" not in window.said.value
    assert len(drawn) >= 3 and any("c </div>" in text for text in drawn)  # piece by piece
    window.line.value = "   "
    window.send.click()
    assert len(chat.turns) == 2
    window.reset.click()
    window.thread.join()
    assert chat.session.forgotten == 1 and "forgotten" in window.said.value
    assert [slider.value for slider in window.sliders] == [0.8, 0.95, 400]
    window.sliders[0].value = 0.0
    assert chat.session.settings.temperature == 0.0


def test_a_draft_stays_a_draft(window):
    window.line.value = "half a mess"  # as a browser sends it with each key, and when the box loses the focus
    window.line.value = "half a message"
    assert window.chat.turns == [] and window.line.value == "half a message"
    window.more.value = True  # several lines: the draft goes along
    assert window.lines.value == "half a message" and window.line.layout.display == "none"
    window.lines.value = "two\nlines"
    assert window.chat.turns == []
    window.send.click()
    window.thread.join()
    assert window.chat.turns[0] == ("you", "two\nlines") and window.lines.value == ""


def test_an_answer_can_be_stopped_and_the_chat_goes_on(window):
    chat, answering, closed = window.chat, threading.Event(), []

    def endless(text):
        try:
            while True:
                yield "word "
                answering.set()
                time.sleep(0.01)
        finally:
            closed.append(text)

    chat.session.reply = endless
    window.line.value = "go on"
    window.send.click()
    assert answering.wait(5) and not window.end.disabled
    window.end.click()
    window.thread.join(5)
    assert closed == ["go on"] and chat.turns[-1] == ("", "(stopped)") and window.end.disabled
    chat.session.reply = FakeSession().reply
    assert chat.ask("how are you") == "you are how "


def test_what_goes_wrong_in_an_answer_is_said(window):
    def broken(text):
        yield "well"
        raise NewLLMError("the template cannot write this")

    window.chat.session.reply = broken
    window.chat.ask("hello")
    assert window.chat.turns[-1] == ("", "✗ the template cannot write this")


def test_a_long_conversation_scrolls(window):
    window.chat.ask("hello")
    assert "overflow-y:auto" in window.said.value and "column-reverse" in window.said.value


def test_the_next_tokens_probabilities_are_those_of_the_sampler():
    """For temperature, top-k and top-p: how often `Sampler` chooses each token, over all uniform numbers."""
    logits = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -3.0])
    for settings in (
        Settings(temperature=0.0),
        Settings(temperature=0.7, top_k=0, top_p=1.0),
        Settings(temperature=1.3, top_k=3, top_p=1.0),
        Settings(temperature=1.0, top_k=0, top_p=0.8),
        Settings(temperature=1.5, top_k=5, top_p=0.9),
    ):
        uniform = (torch.arange(20_000) + 0.5) / 20_000
        rows = logits.expand(len(uniform), -1)
        chosen = Sampler(settings, [], "cpu").choose(rows, None, uniform)
        often = torch.bincount(chosen, minlength=len(logits)) / len(uniform)
        assert torch.allclose(often, next_token.probabilities(logits, settings), atol=2e-4), settings


def test_the_panel_shows_what_the_answer_was_chosen_from(tmp_path):
    """The logits behind each token of an answer are those that the model itself gives, token by token."""
    session = tiny_session(tmp_path)
    turns = [{"role": "user", "content": "hello"}]
    found = next_token.chosen_from(session, turns, "a good answer")
    decoder = IncrementalDecoder(session.model)
    logits = decoder.read(encode_conversation(session.tokenizer, turns))
    for token, expected in zip(found.ids, found.logits, strict=True):
        kept = torch.isfinite(expected)
        assert torch.allclose(logits[kept], expected[kept], atol=1e-4)
        logits = decoder.read([token])
    assert "good" in session.tokenizer.decode(found.ids)
    shown = next_token.bars(session.tokenizer, found, 0, session.settings)
    assert shown.count("<tr>") in (10, 11) and "◀" in shown


def tiny_session(folder) -> ChatSession:
    from tests.helpers.preference_bases import make_base

    base = make_base(folder / "base", "new_llm")
    session = open_session(str(base))
    return ChatSession(session.model, session.tokenizer, dialogue=True)


def test_a_model_that_learned_which_answers_are_better_speaks_in_turns(tmp_path, monkeypatch):
    """Though random weights, asked who speaks first, would not say so."""
    own = tiny_session(tmp_path)
    loaded = SimpleNamespace(model=own.model, tokenizer=own.tokenizer, recipe=None)
    monkeypatch.setattr("newllm_lib.checkpoints.load_model", lambda *_, **__: loaded)
    assert not open_session("run").dialogue
    loaded.recipe = load_recipe("dpo", {"sized_for": "cpu"})
    assert open_session("run").dialogue
