"""A run's folder: where each thing lies, and which runs there are."""

from __future__ import annotations

import difflib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from newllm_lib.errors import UsageError
from newllm_lib.runs.atomic import is_complete, staged_directory
from newllm_lib.runs.ownership import parse_json

HUB = "hf://"  # how a place on the Hugging Face hub begins
_CHECKPOINT = re.compile(r"^checkpoint-(\d+)$")
_MARKS = ("recipe.yaml", "status.json", "run.lock")  # a folder with one of these is a run


class Run:
    """One training run: a folder that holds all that must be copied to continue elsewhere."""

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.where = str(path)  # as messages name it
        self.recipe_path = self.path / "recipe.yaml"
        self.best = self.path / "best"
        self.last = self.path / "last"
        self.log = self.path / "train.log"
        self.metrics_path = self.path / "metrics.jsonl"
        self.samples_path = self.path / "samples.jsonl"
        self.save_request = self.path / "save.request"
        self.curves = self.path / "curves.png"
        self.status_path = self.path / "status.json"
        self.timing_path = self.path / "timing.json"
        self.lock_path = self.path / "run.lock"

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @property
    def name(self) -> str:
        return self.path.absolute().name

    def checkpoint(self, step: int) -> Path:
        """Where the checkpoint of optimizer step `step` lies, or will."""
        return self.path / f"checkpoint-{step}"

    def checkpoints(self) -> list[Path]:
        """The whole checkpoints, oldest first. One that a crash or a copy tore is left out."""
        found = [
            (int(m[1]), p) for p in _entries(self.path) if (m := _CHECKPOINT.match(p.name)) and is_complete(p)
        ]
        return [path for _, path in sorted(found)]

    def latest_checkpoint(self) -> Path | None:
        return max(self.checkpoints(), key=checkpoint_step, default=None)

    def metrics(self) -> Iterator[dict]:
        """Rows of metrics.jsonl, oldest first."""
        return read_rows(self.metrics_path)

    def best_evaluation(self) -> dict | None:
        """The row of the best evaluation: the one on all of the text, where others were on some of it."""
        rows = [row for row in self.metrics() if "eval_bits_per_byte" in row]
        final = [row for row in rows if row.get("final")]
        return min(final[-1:] or rows, key=lambda row: row["eval_bits_per_byte"], default=None)


_NUMBER = (int, float)
_LONGEST_ROW = 2**24  # characters
_NUMBERS = (
    "epoch",
    "loss",
    "learning_rate",
    "tokens_per_second",
    "time",
    "bits_per_byte",
    "eval_bits_per_byte",
    "eval_loss",
)


def read_rows(path: Path) -> Iterator[dict]:
    """The rows of a file of JSON lines, a step each; a line that is none (a crash cut it off) is left out."""
    if not path.is_file():
        return
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in iter(lambda: file.readline(_LONGEST_ROW), ""):
            try:
                row: Any = parse_json(line) if line.endswith("\n") else None
            except (ValueError, RecursionError):
                continue
            if isinstance(row, dict) and all(isinstance(row.get(key, 0), _NUMBER) for key in _NUMBERS):
                if isinstance(row.get("step"), int):
                    yield row


def checkpoint_step(path: Path) -> int:
    """The optimizer step of a `checkpoint-N` folder."""
    return int(Path(path).name.removeprefix("checkpoint-"))


# what a checkpoint holds beside the model
_STATE_FILES = (
    "trainer_state",
    "progress",
    "carried_state",
    "gradient_norms",
    "optimizer",
    "MANIFEST",
    "WHOLE",
    "SUMS",
)


def link_model(checkpoint: Path, folder: Path) -> None:
    """Make `folder` a checkpoint's model for `from_pretrained`, with hard links where the disk has them."""
    with staged_directory(folder) as staging:
        for file in checkpoint.iterdir():
            if file.suffix in (".safetensors", ".json", ".jinja", ".txt") and not file.name.startswith(
                _STATE_FILES
            ):
                link_or_copy(file, staging / file.name)


def link_or_copy(file: Path, place: Path) -> None:
    """Give a file that is never changed another name; a copy where there are no hard links, as on Drive."""
    try:
        os.link(file, place)
    except OSError:
        shutil.copyfile(file, place)


def roots() -> list[Path]:
    """Where runs are looked for: `checkpoints/` in the current folder, then in this package's clone."""
    here = Path("checkpoints")
    clone = Path(__file__).resolve().parents[2]
    if (clone / "colab_bootstrap.sh").is_file() and (clone / "checkpoints").resolve() != here.resolve():
        return [here, clone / "checkpoints"]
    return [here]


def drive_folder() -> Path | None:
    """Where runs are copied to on a mounted Google Drive; None where none is mounted."""
    drive = Path("/content/drive/MyDrive")
    return drive / "new-llm" if drive.is_dir() else None


def list_runs(root: Path | None = None) -> list[Run]:
    """All runs below `root` (default: below each of `roots()`), by name."""
    folders = [p for r in ([Path(root)] if root else roots()) for p in _entries(r) if _is_run(p)]
    return [Run(p) for p in sorted(folders, key=lambda p: p.name)]


def find_run(name_or_path: str | Path) -> Run:
    """The run of that name, or in that folder.

    Raises:
        UsageError: there is none; names the nearest.
    """
    if _is_run(Path(name_or_path)):
        return Run(name_or_path)
    if os.sep not in str(name_or_path):
        for root in roots():
            if _is_run(root / name_or_path):
                return Run(root / name_or_path)
        from newllm_lib.runs.aliases import without_kernels

        plain = without_kernels(str(name_or_path))
        for run in list_runs():
            if without_kernels(run.name) == plain:
                return run
    names = [run.name for run in list_runs()]
    near = difflib.get_close_matches(str(name_or_path), names, 1)
    if near:
        hint = f"did you mean {near[0]}?"
    elif names:
        hint = f"there are {', '.join(names)}."
    else:
        hint = (
            "there is none yet; `newllm demo` makes two. Call newllm where the run was started, or give "
            "its folder."
        )
    raise UsageError(f"No run {str(name_or_path)!r} in {roots()[0].absolute()}: {hint}")


def _is_run(folder: Path) -> bool:
    return any(os.path.isfile(folder / mark) for mark in _MARKS)


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []
