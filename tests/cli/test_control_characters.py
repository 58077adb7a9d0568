"""Text of a run that came from elsewhere is shown, and not obeyed by the terminal."""

from __future__ import annotations

import io
import json

import pytest

from newllm_lib.cli import main
from newllm_lib.console import printable
from newllm_lib.runs import Run, write_status

# Clears the screen, sets the window's title, goes back over the line, turns the direction, a lone surrogate.
EVIL = "\x1b[2J\x1b]0;title\x07\x9b31m gone\x08\x08 \u202eback \ud800 end"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run whose log and status hold what a terminal would obey."""
    monkeypatch.chdir(tmp_path)
    run = Run("checkpoints/other\x1b[31m")
    write_status(run, state="failed", message="line")
    status = json.loads(run.status_path.read_text())
    run.status_path.write_text(
        json.dumps({**status, "message": f"{EVIL}\n$ rm", "step": EVIL, "total_steps": 3})
    )
    run.log.write_text(f"✓ 日本語\t1\n{EVIL}\n", encoding="utf-8", errors="replace")
    return run


def is_harmless(text: str) -> bool:
    return text.replace("\n", "").replace("\t", "").isprintable()


@pytest.mark.parametrize("words", [["list"], ["status"], ["logs"], ["logs", "--follow"]], ids=" ".join)
def test_it_is_made_visible(run, words, capsys):
    named = [] if words == ["list"] else [run.name]
    assert main(["runs", words[0], *named, *words[1:]]) == 0
    shown = capsys.readouterr()
    if words == ["list"]:  # a step that is no number is not shown at all
        assert "other\\u001b[31m" in shown.out
    else:
        assert "\\u001b[2J\\u001b]0;title\\u0007\\u009b31m" in shown.out
    assert is_harmless(shown.out + shown.err)
    if words[0] == "logs":
        assert "✓ 日本語\t1\n" in shown.out
    else:
        assert "\n$ rm" not in shown.out


def test_json_holds_it_escaped(run, capsys):
    assert main(["runs", "status", run.name, "--json"]) == 0
    shown = capsys.readouterr().out
    assert is_harmless(shown) and json.loads(shown)["message"] == f"{EVIL}\n$ rm"


def test_it_is_made_visible_in_an_error(run, capsys):
    assert main(["runs", "status", "no_such"]) == 2
    error = capsys.readouterr().err
    assert "there are other\\u001b[31m" in error and is_harmless(error) and error.count("\n") == 1


def test_what_is_no_control_character_stays():
    text = "✓ 12 % · “Ä” 日本語 👩‍💻\n\tjoined"
    assert printable(text) == text
    assert printable("50 %\r100 %\r\nend") == "50 %\n100 %\nend"


def test_a_models_answer_is_made_visible():
    from newllm_lib.generation.chat import _answer

    class Session:
        def reply(self, line):
            yield "fine \x1b[2J"

    out = io.StringIO()
    assert _answer(Session(), "hello", out) and out.getvalue() == "fine \\u001b[2J\n"
