"""`newllm evaluate`, `compare`, `chat`, `doctor`: what reaches the package, and what comes out."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys

import pytest

from newllm_lib.cli import main
from newllm_lib.evaluation.evaluate_run import EvaluationData


@pytest.fixture
def replaced(monkeypatch):
    """Replaces a function of a module; its calls are recorded and answered."""

    def replace(module: str, name: str, answer):
        calls = []

        def function(*arguments, **named):
            calls.append((arguments, named))
            print("a library prints this")
            return answer

        monkeypatch.setattr(importlib.import_module(module), name, function)
        return calls

    return replace


def test_evaluate(replaced, capsys):
    calls = replaced(
        "newllm_lib.evaluation.evaluate_run",
        "evaluate_run",
        {"bits_per_byte": 1.5, "perplexity": float("inf")},
    )
    assert main(["evaluate", "my_run", "--split", "validation", "--block-length", "64", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"bits_per_byte": 1.5, "perplexity": None}
    assert "Evaluating my_run (best) on the validation split" in captured.err
    named = {"which": "best", "baselines": True, "batch_size": None, "block_length": 64}
    assert calls == [(("my_run", EvaluationData("validation")), named)]


def test_evaluate_on_several_sets_ends_with_a_line_for_each(replaced, capsys):
    found = {"bits_per_byte": 1.5, "loss_on": "answers"}
    calls = replaced("newllm_lib.evaluation.evaluate_run", "evaluate_run", found)
    assert main(["evaluate", "my_run", "--data", "dailydialog,dolly", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"data": {"dailydialog": found, "dolly": found}}
    assert [data.data for (_, data), _ in calls] == ["dailydialog", "dolly"]
    assert "1.5000 bits per byte of the answers of dolly" in captured.err


def test_compare(replaced, capsys):
    calls = replaced("newllm_lib.evaluation.compare.compare", "compare", {"verdict": "equal"})
    assert main(["compare", "a", "b", "--output_dir", "table"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Comparing a with b") and "chat a" in out.splitlines()[-1]
    assert calls == [(("a", "b", EvaluationData()), {"output_dir": "table"})]


def test_chat_takes_the_sampling_settings(replaced, capsys):
    calls = replaced("newllm_lib.generation.chat", "open_session", None)
    replaced("newllm_lib.generation.chat", "run_terminal", None)
    words = ["--temperature", "0", "--max-new-tokens", "9", "--checkpoint", "last", "--system", "Be kind."]
    assert main(["chat", "a", *words]) == 0
    (run, settings, which), named = calls[0]
    assert (run, which, settings.temperature, settings.max_new_tokens) == ("a", "last", 0.0, 9)
    assert named == {"system": "Be kind."}
    assert main(["chat", "a", "--top_p", "two"]) == 2
    assert "top_p must be a number" in capsys.readouterr().err


def test_a_reader_that_leaves_early_is_no_error(tmp_path):
    command = f"{sys.executable} -m newllm_lib train --help | head -n 1"
    ended = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=tmp_path)
    assert ended.returncode == 0 and ended.stdout.startswith("usage:") and not ended.stderr


def test_doctor_with_a_recipe(capsys):
    pytest.importorskip("torch")
    os.environ["NEWLLM_DEVICE"] = "t4"
    try:
        assert main(["doctor", "--recipe", "demo", "--num_layers", "3", "--json"]) == 0
    finally:
        del os.environ["NEWLLM_DEVICE"]
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert {
        "device",
        "dtype",
        "reasons",
        "parameters",
        "memory_estimate_gib",
        "hours_estimate",
    } <= report.keys()
    assert (report["device"], report["dtype"]) == ("t4", "fp16") and isinstance(report["parameters"], int)
    assert report["run"] == "new_llm_demo_layers3" and report["versions"]["torch"]
    assert "parameters stored and trainable" in captured.err
