"""What version 0.1.0 left behind goes on: its runs continue and evaluate as they did, its exports load, its
copies restore.
"""

from __future__ import annotations

import json

import pytest
import torch

from newllm_lib.cli import main
from newllm_lib.data.mixture import read_record
from newllm_lib.evaluation.evaluate_run import EvaluationData, evaluate_run
from newllm_lib.models import NewLLMForCausalLM, Phase7ForCausalLM
from newllm_lib.runs import Run, is_finished
from newllm_lib.runs.ownership import read_mark
from tests.helpers.loading import load_run
from tests.helpers.old_folders import FIXTURES, HALF_DONE, PHASE7, put

VARYING = ("time", "tokens_per_second")


def figures(lines) -> list[dict]:
    """The rows of a curve without what no two lives share, and without context health, no part of the curve:
    version 0.1.0 took it from 64 places of the text, today's evaluation from what it reads anyway.
    """
    return [
        {k: v for k, v in row.items() if k not in VARYING and not k.startswith("eval_context_")}
        for row in lines
    ]


def recorded_curve() -> list[dict]:
    return figures(json.loads(line) for line in (FIXTURES / "half_done_curve.jsonl").read_text().splitlines())


def check_curve(run: Run) -> None:
    """The run has ended with the rows of the run that was never stopped (torch's version may move the last
    digits).
    """
    found, wanted = figures(run.metrics()), recorded_curve()
    health = [row["eval_context_variance"] for row in run.metrics() if "eval_loss" in row]
    assert health and all(value > 0 for value in health)  # measured, though at other places than then
    assert [row["step"] for row in found] == [row["step"] for row in wanted]
    for row, expected in zip(found, wanted, strict=True):
        assert row == pytest.approx(expected, rel=1e-4), row["step"]
    assert is_finished(Run(run.path))


def test_a_half_done_run_goes_on_to_the_curve_it_would_have_had(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(put(tmp_path, "half_done"))
    assert main([*HALF_DONE, "--output_dir", "half_done"]) == 0
    assert "Continuing from checkpoint-6" in capsys.readouterr().out
    check_curve(Run(tmp_path / "half_done"))


def test_a_copy_restores_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.chdir(put(tmp_path, "mirror"))
    assert main(["runs", "restore", "half_done", "--from", "mirror", "--into", "."]) == 0
    assert main([*HALF_DONE, "--output_dir", "half_done", "--mirror_dir", "mirror"]) == 0
    check_curve(Run(tmp_path / "half_done"))
    assert Run(tmp_path / "mirror" / "half_done").latest_checkpoint().name == "checkpoint-12"


def test_a_copy_is_continued_without_restoring(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(put(tmp_path, "mirror"))
    assert main([*HALF_DONE, "--output_dir", "half_done", "--mirror_dir", "mirror"]) == 0
    assert "further than here" in capsys.readouterr().out
    check_curve(Run(tmp_path / "half_done"))


def test_a_finished_phase7_run_is_finished(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(put(tmp_path, "phase7"))
    assert main([*PHASE7, "--output_dir", "phase7"]) == 0
    assert "nothing to do" in capsys.readouterr().out
    model, tokenizer, recipe = load_run("phase7")
    assert isinstance(model, Phase7ForCausalLM) and len(tokenizer) == 300 and recipe.model == "phase7"


def test_an_export_loads(tmp_path):
    model, tokenizer, recipe = load_run(put(tmp_path, "exported") / "exported")
    own, _, _ = load_run(put(tmp_path, "phase7") / "phase7" / "best")
    ids = tokenizer("Ada sells red apples", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, own(ids).logits)
    assert recipe.output_dir is None and recipe.data_dir == "FOLDER"


def test_a_mixture_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(put(tmp_path, "mixture"))
    assert read_record(tmp_path / "mixture")["documents"] == 30
    words = [word if word != "text" else "mixture" for word in PHASE7]
    assert main([*words, "--max_steps", "1", "--output_dir", "trained"]) == 0


def test_exports_and_mixtures_are_replaced_by_their_own_commands(tmp_path, monkeypatch):
    """And by no others; then they are marked."""
    monkeypatch.chdir(put(tmp_path, "exported", "mixture", "phase7"))
    mix = ["data", "mix", "--weights", "text=1", "--documents", "20", "--output"]
    assert main([*mix, "exported"]) == main(["export", "phase7", "--output_dir", "mixture"]) == 2
    assert main([*mix, "mixture"]) == main(["export", "phase7", "--output_dir", "exported"]) == 0
    assert read_record(tmp_path / "mixture")["documents"] == 20
    assert [read_mark(tmp_path / name)["what"] for name in ("mixture", "exported")] == ["mixture", "export"]
    load_run(tmp_path / "exported")


def test_a_sequential_run_says_and_measures_what_it_did(tmp_path, monkeypatch):
    monkeypatch.chdir(put(tmp_path, "sequential"))
    recorded = json.loads((FIXTURES / "sequential_figures.json").read_text())
    model, tokenizer, recipe = load_run("sequential")
    assert isinstance(model, NewLLMForCausalLM) and recipe.recurrence == "sequential"
    found = evaluate_run("sequential", EvaluationData("test"), device="cpu")
    for key, value in recorded["evaluation"].items():
        assert found[key] == (pytest.approx(value, rel=1e-4) if isinstance(value, float) else value), key
    ids = tokenizer(tokenizer.bos_token + recorded["prompt"], return_tensors="pt", add_special_tokens=False)[
        "input_ids"
    ]
    with torch.no_grad():
        logits = model(ids).logits[0, -1]
        said = model.generate(ids, do_sample=False, max_new_tokens=len(recorded["greedy_ids"]))
    first = recorded["first_logits"]
    torch.testing.assert_close(logits[: len(first)], torch.tensor(first), rtol=1e-4, atol=1e-3)
    assert said[0, ids.shape[1] :].tolist() == recorded["greedy_ids"]
