"""The file names of the guides for what lies in a run's folder here: README_COLAB has the same table."""

from __future__ import annotations

import re
from pathlib import Path

_STEP = re.compile(r"(?:phase7_)?step_(\d+)(?:\.pt)?")
_WHOLE = {"phase7_best": "best", "phase7_final": "last"}


def resolve_path(text: str) -> str:
    """`…/phase7_step_2000.pt` or `…/step_2000.pt` as `…/checkpoint-2000`, `phase7_best.pt` as `best`,
    `phase7_final.pt` as `last`, `phase7_small_triton/…` where only `phase7_small` is; anything else
    unchanged."""
    path = Path(text)
    step = _STEP.fullmatch(path.name)
    name = f"checkpoint-{step[1]}" if step else _WHOLE.get(path.name.removesuffix(".pt"))
    found = path if name is None else path.with_name(name)
    plain = Path(*map(without_kernels, found.parts))
    if plain.exists() and not found.exists():
        return str(plain)
    return text if name is None else str(found)


def without_kernels(name: str) -> str:
    """`phase7_small_mix` of `phase7_small_triton_mix`: the one name of a run on a CPU, which has no kernels.
    Before that those runs were called as on a GPU, and the guide calls them so."""
    return name.replace("_triton", "", 1) if name.startswith(("phase7_", "phase8_")) else name
