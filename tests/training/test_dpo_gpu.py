"""Preference training on a GPU: in bf16, and in fp16 with loss scaling as on a T4; from bases with and
without a window.
"""

from __future__ import annotations

import json
import math

import pytest
import torch

from newllm_lib.device import probe
from newllm_lib.export.folder import export
from newllm_lib.training import train
from newllm_lib.training.preferences import preference_task
from tests.helpers.loading import load_run
from tests.helpers.preference_bases import make_base, recipe

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]


@pytest.mark.parametrize(
    ("model", "kind", "dtype", "rank"),
    [
        ("new_llm", "h100", "bf16", 4),
        ("new_llm", "t4", "fp16", 4),
        ("tiny_gpt2", "t4", "fp16", 4),
        ("tiny_gpt2", "t4", "fp16", 0),
    ],
)
def test_it_starts_at_log_two_and_learns_in_half_precision(model, kind, dtype, rank, tmp_path, monkeypatch):
    pytest.importorskip("trl")
    monkeypatch.setenv("NEWLLM_DEVICE", kind)
    monkeypatch.setattr(preference_task, "_WATCHED", 3)
    monkeypatch.setattr(
        preference_task, "collapsed", lambda now, before: None
    )  # what random weights say is hardly ever sound
    assert probe().dtype == dtype
    base = make_base(tmp_path / "base", model)
    run = train(recipe(tmp_path, base, force=True, lora_rank=rank, learning_rate=1e-2 if rank else 1e-3))
    rows = [row for row in run.metrics() if "loss" in row]
    assert (
        rows[0]["loss"] == pytest.approx(math.log(2), abs=0.01) and rows[-1]["loss"] < rows[0]["loss"] - 0.02
    )
    assert rows[-1]["gpu_memory_gib"] < 3
    result = json.loads((run.path / "preferences.json").read_text(encoding="utf-8"))
    assert result["after"]["figures"]["margin"] > result["before"]["figures"]["margin"]
    ours, tokenizer, _ = load_run(run)
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in ours.parameters())
    merged, _, _ = load_run(export(run, tmp_path / "merged"))
    ids = tokenizer("機械学習とは", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert (merged(input_ids=ids).logits - ours(input_ids=ids).logits).abs().max() < 1e-4
