"""A run's progress besides weights: best score, early-stop counter, loss since the log's last line.

Saved in each checkpoint as `progress.json`, so that a run killed at any moment goes on as if nothing had
happened.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

FILE = "progress.json"


@dataclass
class Progress:
    """What is better, for the check mark, the best checkpoint and early stopping: lower bits per byte."""

    best_bits_per_byte: float | None = None
    best_step: int = 0
    evaluations_without_improvement: int = 0
    interval_loss: float = 0.0  # sum of the step losses since the last logged line
    interval_steps: int = 0
    data_fingerprint: str = ""
    data_state: dict | None = None  # where the data stood, see `PreparedData.state`
    start_fingerprint: str = ""  # of the weights it started from; empty: from scratch

    def judge(self, bits_per_byte: float, step: int) -> bool:
        """Record an evaluation; True if it is the best so far."""
        better = self.best_bits_per_byte is None or bits_per_byte < self.best_bits_per_byte
        if better:
            self.best_bits_per_byte, self.best_step, self.evaluations_without_improvement = (
                bits_per_byte,
                step,
                0,
            )
        else:
            self.evaluations_without_improvement += 1
        return better

    def save(self, folder: Path) -> None:
        (folder / FILE).write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, folder: Path) -> Progress:
        return cls(**json.loads((folder / FILE).read_text()))
