"""The file names of the guides for what lies in a run's folder here: README_COLAB has the same table."""

from __future__ import annotations

import re
from pathlib import Path

_STEP = re.compile(r"(?:phase7_)?step_(\d+)(?:\.pt)?")
_WHOLE = {"phase7_best": "best", "phase7_final": "last"}


def resolve_path(text: str) -> str:
    """`…/phase7_step_2000.pt` or `…/step_2000.pt` as `…/checkpoint-2000`, `phase7_best.pt` as `best`,
    `phase7_final.pt` as `last`; anything else unchanged."""
    path = Path(text)
    step = _STEP.fullmatch(path.name)
    name = f"checkpoint-{step[1]}" if step else _WHOLE.get(path.name.removesuffix(".pt"))
    return text if name is None else str(path.with_name(name))
