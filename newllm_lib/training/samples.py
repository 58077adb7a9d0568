"""Sample answers at each evaluation: `samples.jsonl` (all) and `samples.md` (side by side)."""

from __future__ import annotations

import json

from newllm_lib import console, evaluation
from newllm_lib.ops import precompile
from newllm_lib.runs import Run, atomic_write_text, may_wait, read_rows

_FIGURES = ("epoch", "bits_per_byte", "distinct_1", "distinct_2", "mean_tokens", "empty", "repeating")
_SHOWN = 60  # characters of an answer in the log


class Samples:
    """Asks the same prompts again and again."""

    def __init__(self, run: Run, data, tokenizer, tokens: int):
        self.run, self.tokenizer, self.tokens = run, tokenizer, tokens
        self.prompts = evaluation.Prompts(data.validation, tokenizer) if tokens else None

    def take(self, model, step: int, epoch: float, bits_per_byte: float) -> None:
        """Answer, write, and log the first answer, with a warning if the answers are degenerate."""
        if self.prompts is None:
            return
        precompile.wait_for_all()
        row = {"step": step, "epoch": epoch, "bits_per_byte": bits_per_byte}
        row |= evaluation.answer(model, self.tokenizer, self.prompts, self.tokens)
        rows = [*rows_of(self.run), row]
        lines = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)
        with may_wait(self.run.samples_path):
            atomic_write_text(self.run.samples_path, lines, durable=False)
            page = evaluation.as_markdown(rows, self.run.name)
            atomic_write_text(self.run.path / "samples.md", page, durable=False)
        first = " ".join(row["answers"][0].split()) or "(nothing)"
        console.say(f'  "{self.prompts.texts[0]}" → {first[:_SHOWN]}{"…" if len(first) > _SHOWN else ""}')
        if row["warning"] and step:
            console.say(f"  {row['warning']} (samples.md shows them)")


def rows_of(run: Run) -> list[dict]:
    """The samples taken so far, oldest first."""
    return [row for row in read_rows(run.samples_path) if _is_whole(row)]


def _is_whole(row: dict) -> bool:
    """Whether it has what a page of samples shows: it may come from elsewhere."""
    texts = (row.get("prompts"), row.get("answers"))
    return all(isinstance(some, list) and all(isinstance(text, str) for text in some) for some in texts) and (
        all(isinstance(row.get(figure), (int, float)) for figure in _FIGURES)
    )


def forget_after(run: Run, step: int) -> None:
    """Drop samples past `step`: they are taken again."""
    rows = rows_of(run)
    kept = [row for row in rows if row["step"] <= step]
    if len(kept) < len(rows):
        atomic_write_text(
            run.samples_path, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in kept), durable=False
        )
