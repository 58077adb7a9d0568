"""Rows of `benchmarks/results.csv`: a figure, and all that is needed to measure it again."""

from __future__ import annotations

import csv
import datetime
import shlex
import subprocess
import sys
from pathlib import Path

from newllm_lib.errors import NewLLMError

COLUMNS = ("date", "benchmark", "model", "metric", "value", "unit", "hardware", "versions", "commit", "command", "note")


class Rows:
    """Collects the rows of one benchmark.

    Args:
        benchmark: what was measured. command: how, as a user types it.
    """

    def __init__(self, benchmark: str, command: str | None = None):
        self.benchmark, self.rows = benchmark, []
        self.command = command or "newllm " + shlex.join(sys.argv[1:])
        self._machine = {"hardware": hardware(), "versions": versions(), "commit": commit()}

    def add(self, model: str, metric: str, value: float, unit: str = "", note: str = "") -> None:
        date = datetime.date.today().isoformat()
        row = {"date": date, "benchmark": self.benchmark, "model": model, "metric": metric, "value": f"{value:.6g}", "unit": unit}
        self.rows.append({**row, **self._machine, "command": self.command, "note": note})

    def append_to(self, path: Path) -> None:
        """Append what was collected to a CSV, which gets a header if it is new.

        Raises:
            NewLLMError: the file has other columns.
        """
        header = read_header(path)
        if header not in (None, list(COLUMNS)):
            raise NewLLMError(f"{path} has other columns ({', '.join(header)}): give another --out.")
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            if header is None:
                writer.writeheader()
            writer.writerows(self.rows)


def read_header(path: Path) -> list[str] | None:
    """The first line's cells; None where there is no file, or an empty one."""
    if not path.is_file() or not path.stat().st_size:
        return None
    with path.open(newline="", encoding="utf-8") as file:
        return next(csv.reader(file))


def read(path: Path) -> list[dict[str, str]]:
    """All rows of a results file."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def hardware() -> str:
    """The GPU's name, or the processor's number of cores."""
    import os

    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {os.cpu_count()} cores"


def versions() -> str:
    """The libraries that a figure depends on."""
    import importlib.metadata

    def of(name):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return "none"

    return ", ".join(f"{name} {of(name)}" for name in ("torch", "triton", "transformers"))


def commit() -> str:
    """The commit of this code; "unknown" outside a git clone."""
    folder = Path(__file__).parent
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False, cwd=folder)
    return done.stdout.strip() or "unknown"
