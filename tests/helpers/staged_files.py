"""Folders that are written, and what a crash leaves of them."""

from __future__ import annotations

from pathlib import Path

from newllm_lib.runs import staged_directory


def fill(folder: Path, content: str) -> None:
    with staged_directory(folder) as staging:
        (staging / "model").write_text(content)
        (staging / "deep").mkdir()
        (staging / "deep" / "state").write_text(content * 3)


def dead(path: Path, kind: str) -> Path:
    return path.with_name(f".{path.name}.{kind}-999999-123-{'01'[kind == 'old']}")
