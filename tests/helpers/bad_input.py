"""What the tests of faults share: a tiny model, what an error looks like, and broken JSON."""

from __future__ import annotations

TINY = [
    "--sized_for",
    "cpu",
    "--vocab_size",
    "300",
    "--max_seq_length",
    "16",
    "--batch_size",
    "8",
    "--hidden_size",
    "16",
    "--context_dim",
    "16",
    "--mlp_size",
    "16",
    "--num_layers",
    "1",
    "--epochs",
    "2",
    "--save_minutes",
    "0",
]


def one_line(err: str, *words: str) -> None:
    assert err.startswith("newllm: ") and err.count("\n") == 1 and "Traceback" not in err, err
    assert all(word in err for word in words), err


_HUGE = 10**400  # no float holds it
ODD = [
    "",
    "null",
    "[]",
    "3",
    "{",
    '{"state": 3}',
    '{"state": "new", "updated": "yesterday", "step": [1], "pid": {}}',
    '{"state": "running", "updated": NaN, "step": Infinity, "total_steps": 1e400}',
    '{"state": "done", "updated": true, "message": {"a": 1}}',
    '{"pid": Infinity, "start": 0}',
    '{"folder": 3, "state": "trouble", "message": null, "began": "x"}',
    '{"step": "one", "loss": "low"}',
    "[" * 100_000,
    '{"step": 1, "time": {}}',
    '{"total_steps": 1, "total_seconds": "x", "seconds": {"imports": "long"}}',
    "\x00\xff\x1b[2J",
    f'{{"state": "running", "updated": {_HUGE}, "step": {_HUGE}, "began": {_HUGE}, "pid": {_HUGE}}}',
    f'{{"total_seconds": 1, "seconds": {{"imports": 1, "data": 1, "model": 1, "kernels": {_HUGE}}}}}',
    f'{{"step": {_HUGE}, "loss": {_HUGE}, "eval_bits_per_byte": 1, "answers": 3, "bits_per_byte": 1}}',
    '{"step": 1, "eval_bits_per_byte": 1.0, "answers": ["x"], "prompts": [3], "bits_per_byte": 1.0}',
]
