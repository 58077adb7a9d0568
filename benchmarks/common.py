"""What every benchmark shares: rows of `results.csv` with all that is needed to measure a figure again,
processes of their own for measurements, times of work on a device."""

from __future__ import annotations

import argparse
import csv
import datetime
import gc
import importlib.metadata
import json
import os
import shlex
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from newllm_lib.console import say
from newllm_lib.errors import NewLLMError, UsageError

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = (
    "date",
    "benchmark",
    "model",
    "metric",
    "value",
    "unit",
    "hardware",
    "versions",
    "commit",
    "command",
    "note",
)


# --- rows ---------------------------------------------------------------------------------------------------


class Rows:
    """Collects the rows of one benchmark.

    Args:
        benchmark: what was measured.
        command: how, as a user types it.
        packages: the libraries whose versions the figures depend on.
    """

    def __init__(
        self,
        benchmark: str,
        command: str | None = None,
        packages: Sequence[str] = ("torch", "triton", "transformers"),
    ):
        self.benchmark = benchmark
        self.rows: list[dict[str, str]] = []
        self.command = command or "newllm " + shlex.join(sys.argv[1:])
        self._machine = {"hardware": hardware(), "versions": versions(packages), "commit": commit()}

    def add(self, model: str, metric: str, value: float, unit: str = "", note: str = "") -> None:
        figure = {"model": model, "metric": metric, "value": f"{value:.6g}", "unit": unit}
        about = {"date": datetime.date.today().isoformat(), "benchmark": self.benchmark}
        self.rows.append({**about, **figure, **self._machine, "command": self.command, "note": note})

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


def record(rows: Rows, arguments: argparse.Namespace) -> dict | None:
    """Append the rows to `--out`; the result of the command with `--json`.

    Raises:
        NewLLMError: there are none.
    """
    if not rows.rows:
        raise NewLLMError("Nothing could be measured, as said above.")
    rows.append_to(Path(arguments.out))
    say(f"{len(rows.rows)} rows appended to {arguments.out}")
    return {"rows": rows.rows} if arguments.json else None


# --- the machine --------------------------------------------------------------------------------------------


def hardware() -> str:
    """The GPU's name, or the number of cores."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {os.cpu_count()} cores"


def versions(packages: Sequence[str]) -> str:
    """The libraries that a figure depends on."""

    def of(name: str) -> str:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return "none"

    return ", ".join(f"{name} {of(name)}" for name in packages)


def commit() -> str:
    """The commit of this code; "unknown" outside a git clone."""
    words = ["git", "rev-parse", "--short", "HEAD"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=ROOT)
    return done.stdout.strip() or "unknown"


# --- flags --------------------------------------------------------------------------------------------------


def add_out(parser: argparse.ArgumentParser, picture: str | None = None) -> None:
    """`--out`, and `--picture` for a benchmark that draws one."""
    default = "benchmarks/results.csv"
    parser.add_argument("--out", default=default, help=f"the CSV of all figures (default: {default})")
    if picture:
        parser.add_argument("--picture", help=f"where the picture goes (default: {picture})")


def add_set(parser: argparse.ArgumentParser) -> None:
    """`--set KEY=VALUE …`."""
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="recipe keys for all of them alike, such as epochs=2",
    )


def positive(text: str) -> int:
    """A whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, not {text!r}")
    return int(text)


def choose(chosen: Sequence[str] | None, known: Sequence[str], what: str) -> list[str]:
    """The names that were chosen, all where none was.

    Raises:
        UsageError: one that is not known.
    """
    for name in chosen or ():
        if name not in known:
            raise UsageError(f"There is no {what} {name!r}: use {', '.join(known)}.")
    return list(chosen or known)


def changes(pairs: Sequence[str]) -> dict[str, str]:
    """`KEY=VALUE` words as a dictionary.

    Raises:
        UsageError: one has no equals sign.
    """
    for pair in pairs:
        if "=" not in pair:
            raise UsageError(f"--set {pair}: write it as KEY=VALUE, such as epochs=2.")
    return dict(pair.split("=", 1) for pair in pairs)


def seconds(minutes: float | None) -> float:
    """`--minutes` in seconds; infinity where it was not given."""
    return float("inf") if minutes is None else 60 * minutes


# --- processes and runs -------------------------------------------------------------------------------------


def command(name: str, *words: str) -> list[str]:
    """`newllm bench NAME …` for a process of its own, where nothing was allocated or compiled before."""
    return [sys.executable, "-m", "newllm_lib", "bench", name, *words]


def result_of(words: list[str], what: str, environment: dict[str, str] | None = None) -> dict:
    """Run a process to its end; the last line that it printed is its result, as JSON.

    Raises:
        NewLLMError: it failed; says with what (out of memory, a package that is not there).
    """
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, **(environment or {})})
    if done.returncode:
        raise NewLLMError(f"{what} failed: {last_line(done.stderr)}")
    return json.loads(done.stdout.splitlines()[-1])


def last_line(text: str) -> str:
    """What a failed process said at last, without what the command line adds to it."""
    line = next((line for line in reversed(text.splitlines()) if line.strip()), "no message")
    return line.removeprefix("newllm: ").removesuffix(" (--debug shows where; please report it)")[:300]


def train_until(recipe, rows: int, report: Callable[[list[dict]], None]) -> None:
    """`newllm train` in this process, which `report` is called in and which then ends at once: what comes
    after the steps (a last evaluation and save) is not waited for.

    Args:
        recipe: what to train.
        rows: lines with a loss that its log shall have.
        report: gets these lines.
    """
    from newllm_lib.runs import Run
    from newllm_lib.training import train

    run = Run(recipe.run_path())

    def watch() -> None:
        while len(found := losses_of(run)) < rows:
            time.sleep(0.02)
        report(found[:rows])
        sys.stdout.flush()
        os._exit(0)

    if int(os.environ.get("RANK", 0)) == 0:
        threading.Thread(target=watch, daemon=True).start()
    train(recipe)


def losses_of(run) -> list[dict]:
    """The rows of a run's log that have a training loss."""
    return [row for row in run.metrics() if "loss" in row] if run.metrics_path.exists() else []


# --- times and memory ---------------------------------------------------------------------------------------


def median_ms(function: Callable[[], object], device: str, repeats: int = 20, graph: bool = True) -> float:
    """Milliseconds of one call: on a GPU the median over replays of a CUDA graph (or over calls, between
    events), on a CPU over calls.

    Args:
        function: what is timed; called before, so that kernels are compiled.
        graph: capture it, so that launches cost nothing.
    """
    import torch

    if device == "cpu":
        function()
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            function()
            times.append(1e3 * (time.perf_counter() - start))
        return statistics.median(times)
    if graph:
        function = _captured(function)
    for _ in range(3):
        function()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        function()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def _captured(function: Callable[[], object]) -> Callable[[], None]:
    import torch

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # compilation and set-up
        function()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay


def peak_gib(function: Callable[[], object]) -> float:
    """GiB of GPU memory that one call holds at most beyond what was held before."""
    import torch

    gc.collect()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    function()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**30


# --- pictures -----------------------------------------------------------------------------------------------


@contextmanager
def picture(path: Path, about: dict[str, str] | None, columns: int = 1) -> Iterator:
    """The axes of a picture (one, or an array of `columns`), which is written at the end.

    Args:
        about: the row whose machine stands above it.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, columns, figsize=(9 if columns == 1 else 5 * columns, 4.5))
    yield axes
    if about:
        figure.suptitle(f"{about['hardware']}, {about['versions']}, {about['date']}", fontsize=9)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
