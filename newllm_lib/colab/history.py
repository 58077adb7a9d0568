"""The history of a run, read from its `metrics.jsonl` while training still appends to it."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

RECENT = 20  # logged steps that the pace is taken from


class History:
    """Logged steps and evaluations of one run, each by its step.

    A run that was killed and resumed logs some steps twice: the later life counts, so going back to a step
    drops what the earlier life logged after it.
    """

    def __init__(self, path: Path, label: str = ""):
        self.path, self.label = Path(path), label
        self._forget()

    def _forget(self) -> None:
        self.steps: dict[int, dict] = {}
        self.evaluations: dict[int, dict] = {}
        self._read_bytes = 0

    def update(self) -> bool:
        """Read the lines that are new and whole; True if there were any. A line still being written waits."""
        try:
            size = self.path.stat().st_size
        except FileNotFoundError:
            return False
        if size < self._read_bytes:  # the file was written anew
            self._forget()
        if size == self._read_bytes:
            return False
        with open(self.path, "rb") as file:
            file.seek(self._read_bytes)
            whole = file.read(size - self._read_bytes).rpartition(b"\n")[0]
        if not whole:
            return False
        self._read_bytes += len(whole) + 1
        for line in whole.split(b"\n"):
            self._add(line)
        return True

    def _add(self, line: bytes) -> None:
        try:
            row = json.loads(line)
        except ValueError:  # cut off by a kill; the next life starts a new line
            return
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            return
        rows = self.evaluations if any(key.startswith("eval_") for key in row) else self.steps
        newest = max(rows, default=0)
        if row["step"] <= newest:
            for later in (self.steps, self.evaluations):
                for step in [s for s in later if s > row["step"] or (s == row["step"] and later is rows)]:
                    del later[step]
        rows[row["step"]] = row

    def series(self, key: str) -> tuple[list[float], list[float]]:
        """Epochs (steps where no epoch was logged) and values of `key`, in order of steps."""
        rows = self.evaluations if key.startswith("eval_") else self.steps
        found = [
            (row.get("epoch", step), row[key])
            for step, row in sorted(rows.items())
            if row.get(key) is not None
        ]
        return [x for x, _ in found], [y for _, y in found]

    @property
    def step(self) -> int:
        """The newest logged step; 0 before the first."""
        return max([*self.steps, *self.evaluations], default=0)

    @property
    def best(self) -> dict | None:
        """The newest evaluation that training marked as the best so far (✓)."""
        marked = [step for step, row in self.evaluations.items() if row.get("best")]
        return self.evaluations[max(marked)] if marked else None

    @property
    def prefers(self) -> bool:
        """Whether this is the history of a preference run."""
        return any("eval_reward_margin" in row for row in self.evaluations.values())

    def tokens_per_second(self) -> float | None:
        """Median over the newest logged steps."""
        values = [
            row["tokens_per_second"] for _, row in sorted(self.steps.items()) if row.get("tokens_per_second")
        ]
        return statistics.median(values[-RECENT:]) if values else None

    def seconds_left(self, total_steps: int | None) -> float | None:
        """Time to `total_steps` at the recent pace (a median: evaluations and pauses hardly move it)."""
        rows = [
            (step, row["time"]) for step, row in sorted(self.steps.items()) if row.get("time") is not None
        ]
        rows = rows[-RECENT - 1 :]
        paces = [
            (t2 - t1) / (s2 - s1) for (s1, t1), (s2, t2) in zip(rows, rows[1:], strict=False) if t2 >= t1
        ]
        if not paces or not total_steps:
            return None
        return max(0.0, (total_steps - self.step) * statistics.median(paces))


def samples(path: Path) -> list[dict]:
    """The sample answers of a run, each with `step`, `epoch`, `prompts` and `answers`, in order of steps."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines]
