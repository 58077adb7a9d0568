"""What an export is held to where newllm_lib cannot be imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

WITHOUT = Path(__file__).with_name("without_newllm.py")


def alone(place: Path, *words: str, path: str = "") -> str:
    """The last line that a Python process of its own writes in `place`, with only `path` on Python's."""
    environment = os.environ | {"PYTHONPATH": path, "HF_MODULES_CACHE": str(place / f"modules{bool(path)}")}
    ended = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, cwd=place, env=environment
    )
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-3000:]
    return (ended.stdout.splitlines() or [""])[-1]


def said(model, tokenizer, remote: bool) -> dict:
    """What a model says here of random tokens: for `tests/evaluation/loads_anywhere.py`.

    Args:
        remote: whether its export brings a program of its own.
    """
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(10, len(tokenizer), (2, 20), generator=generator)
    if tokenizer.bos_token_id is not None:
        ids[:, 0] = tokenizer.bos_token_id
    if remote:  # documents are packed apart here, which no GPT-2 does by itself
        ids[1, 11] = tokenizer.bos_token_id
    mask = torch.ones_like(ids)
    mask[1, :5] = 0
    with torch.no_grad():
        logits, padded = model(ids).logits, model(ids, attention_mask=mask).logits
        loss = float(model(input_ids=ids, labels=ids).loss)
    greedy = model.generate(ids[:1], max_new_tokens=12, do_sample=False, pad_token_id=1)[0].tolist()
    return {
        "ids": ids,
        "mask": mask,
        "logits": logits,
        "padded": padded,
        "loss": loss,
        "greedy": greedy,
        "remote": remote,
        "tokens": tokenizer("Ada likes tea")["input_ids"],
    }
