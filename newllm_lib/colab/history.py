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
        except (ValueError, RecursionError):  # cut off by a kill; the next life starts a new line
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

    def series(self, key: str) -> tuple[list[int], list[float]]:
        """Steps and values of `key`, in order of steps."""
        rows = self.evaluations if key.startswith("eval_") else self.steps
        found = [(step, row[key]) for step, row in sorted(rows.items()) if row.get(key) is not None]
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
        return any("eval_reward_margin" in row or "eval_reward" in row for row in self.evaluations.values())

    def tokens_per_second(self) -> float | None:
        """Median over the newest logged steps."""
        values = [
            row["tokens_per_second"] for _, row in sorted(self.steps.items()) if row.get("tokens_per_second")
        ]
        return statistics.median(values[-RECENT:]) if values else None

    @property
    def steps_per_epoch(self) -> float | None:
        """From the newest row: its step by its epoch."""
        row = {**self.steps, **self.evaluations}.get(self.step, {})
        return self.step / row["epoch"] if row.get("epoch") else None

    def seconds_left(
        self, total_steps: int | None, evaluations: float = 0.0, guess: float = 0.0
    ) -> float | None:
        """Time from the newest row to the run's end: the steps left at the recent pace, and the evaluations
        left with the saves that follow them, at what they took so far.

        Args:
            evaluations: how many are left, that of the newest step included if it is not there yet.
            guess: seconds of an evaluation, until one has been seen.
        """
        rows = [
            (step, row["time"]) for step, row in sorted(self.steps.items()) if row.get("time") is not None
        ]
        between = [
            (s1, s2, t2 - t1, sum(s1 <= e < s2 for e in self.evaluations))
            for (s1, t1), (s2, t2) in zip(rows, rows[1:], strict=False)
            if t2 >= t1
        ]
        plain = [(seconds, s2 - s1) for s1, s2, seconds, times in between if not times]
        if not total_steps or not between:
            return None
        pace = _pace(plain[-RECENT:] or [(seconds, s2 - s1) for s1, s2, seconds, _ in between])
        costs = [(seconds - pace * (s2 - s1)) / times for s1, s2, seconds, times in between if times]
        costs += self._newest_evaluation(rows[-1], pace)
        cost = max(0.0, statistics.median(costs[-5:])) if costs else guess
        left = (total_steps - self.step) * pace + cost * evaluations
        return max(0.0, left)

    def _newest_evaluation(self, row: tuple[int, float], pace: float) -> list[float]:
        """Seconds of an evaluation behind the newest logged step."""
        step, at = row
        newest = self.evaluations.get(max(self.evaluations, default=0), {})
        if newest.get("step", 0) < step or newest.get("time") is None or newest["time"] < at:
            return []
        return [newest["time"] - at - pace * (newest["step"] - step)]


def _pace(intervals: list[tuple[float, int]]) -> float:
    """Seconds a step, saves included; an interval in which the machine slept is left out."""
    usual = statistics.median(seconds / steps for seconds, steps in intervals)
    kept = [(seconds, steps) for seconds, steps in intervals if seconds <= 5 * usual * steps] or intervals
    return sum(seconds for seconds, _ in kept) / sum(steps for _, steps in kept)


def samples(path: Path) -> list[dict]:
    """The sample answers of a run, each with `step`, `epoch`, `prompts` and `answers`, in order of steps."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines]
