"""Where we are, and errors of ours as one line in a cell."""

from __future__ import annotations

import io
import os
import signal
import warnings
from contextlib import redirect_stderr, redirect_stdout

import pytest

from newllm_lib.colab import environment
from newllm_lib.errors import NewLLMError


@pytest.fixture(autouse=True)
def _hears_again():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_terminal_is_no_notebook(monkeypatch):
    assert not environment.on_colab() and environment.shell() is None and not environment.widgets_render()
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab_20260801")
    assert environment.on_colab()


def test_colab_is_known_by_its_package(colab):
    assert environment.on_colab()


def test_the_clone_is_found_from_inside(tmp_path):
    inside = tmp_path / "clone" / "notebooks" / "src"
    inside.mkdir(parents=True)
    assert environment.clone_root(inside) is None
    (tmp_path / "clone" / "colab_bootstrap.sh").write_text("#!/bin/bash\n")
    assert environment.clone_root(inside) == (tmp_path / "clone").resolve()


def test_ready_works_from_the_top_of_the_clone(tmp_path, monkeypatch, capsys):
    (tmp_path / "colab_bootstrap.sh").write_text("#!/bin/bash\n")
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    environment.ready()
    assert os.getcwd() == str(tmp_path.resolve())
    assert capsys.readouterr().out.count("\n") == 1


def test_ready_names_what_is_missing(monkeypatch):
    monkeypatch.setattr(
        environment.importlib.util, "find_spec", lambda name: None if name == "datasets" else name
    )
    with pytest.raises(NewLLMError, match="^datasets missing"):
        environment.ready()


def test_widgets_can_be_turned_off(monkeypatch):
    monkeypatch.setattr(environment, "shell", lambda: object())
    assert environment.widgets_render()
    monkeypatch.setenv("NEWLLM_WIDGETS", "0")
    assert not environment.widgets_render()


def test_our_errors_are_one_line_in_a_cell_and_others_keep_their_traceback(monkeypatch):
    interactive = pytest.importorskip("IPython.core.interactiveshell").InteractiveShell()
    monkeypatch.setattr(environment, "shell", lambda: interactive)
    environment.one_line_errors()
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        ours = interactive.run_cell("from newllm_lib.errors import UsageError\nraise UsageError('mend this')")
    assert not ours.success and (out.getvalue() + err.getvalue()).strip() == (
        "✗ mend this. The cells below did not run."
    )
    for code, said in (  # two ■ in a row, a cell out of order: one clear line each
        ("raise KeyboardInterrupt", "Stopped (■)"),
        ("train(settings)", "train does not exist yet: a cell above makes it. Run the cells in order"),
        ("print(new_llm)", "new_llm does not exist yet"),
    ):
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            assert not interactive.run_cell(code).success
        shown = (out.getvalue() + err.getvalue()).strip()
        assert shown.startswith(f"✗ {said}") and "\n" not in shown, shown
    out = io.StringIO()
    with redirect_stdout(out):
        assert not interactive.run_cell("a_name_of_mine").success
    assert "Traceback" in out.getvalue()  # no cell makes it: the reader's own slip
    out = io.StringIO()
    with redirect_stdout(out):
        other = interactive.run_cell("1 / 0")
    assert not other.success and "ZeroDivisionError" in out.getvalue()


def test_a_second_stop_does_not_fall_into_what_shows_the_first(monkeypatch):
    monkeypatch.setattr(environment, "shell", lambda: None)
    environment.hear_no_more()
    assert signal.getsignal(signal.SIGINT) is not signal.SIG_IGN  # a terminal's Ctrl-C is not ours to take
    monkeypatch.setattr(environment, "shell", lambda: True)
    with redirect_stderr(io.StringIO()) as said:
        environment._show(None, KeyboardInterrupt, KeyboardInterrupt(), None)
        os.kill(os.getpid(), signal.SIGINT)
    assert said.getvalue().startswith("✗ Stopped (■)")


def test_libraries_are_quiet_and_the_readers_own_warnings_are_not(monkeypatch):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        environment.quiet()
        warnings.warn_explicit("old", FutureWarning, "x.py", 1, module="transformers.models")
        warnings.warn_explicit("hint", UserWarning, "x.py", 1, module="torch.nn")
        warnings.warn_explicit("mine", UserWarning, "x.py", 1, module="__main__")
    assert [str(w.message) for w in seen] == ["mine"]
    assert os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] and os.environ["TRANSFORMERS_VERBOSITY"] == "error"


def test_only_colab_has_a_menu_runtime(monkeypatch):
    line = "torch 1 is loaded, but 2 is installed: restart the session (Runtime → Restart session) and run."
    assert "Runtime" not in environment.in_words_of_place(line) and "kernel" in environment.in_words_of_place(
        line
    )
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab")
    assert environment.in_words_of_place(line) == line
