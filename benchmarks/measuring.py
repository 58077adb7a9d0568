"""What every benchmark here needs: times of work on a GPU, a description of the machine, and a CSV that grows."""

from __future__ import annotations

import csv
import shlex
import subprocess
import sys
from pathlib import Path

import torch


def gpu_ms(functions, repeats: int = 20) -> float:
    """Milliseconds for one of `functions`, all captured into one CUDA graph; the median over its replays."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # compilation and set-up
        for function in functions:
            function()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for function in functions:
            function()
    graph.replay()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / len(functions))
    return sorted(times)[repeats // 2]


def machine() -> dict[str, str]:
    """GPU, versions, commit and command: what a figure needs to be measured again."""
    try:
        import triton

        version = triton.__version__
    except ImportError:
        version = ""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    command = "python " + shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    return dict(gpu=gpu, torch=torch.__version__, triton=version, commit=commit.stdout.strip(), command=command)


def append_rows(path: str, rows: list[dict]) -> None:
    """Append rows to a CSV, with a header if it is new. Raises ValueError if its columns are others."""
    file = Path(path)
    columns = list(rows[0])
    if file.exists():
        with file.open(newline="") as old:
            header = next(csv.reader(old))
        if header != columns:
            raise ValueError(f"{file} has other columns ({', '.join(header)}): give another --out")
    with file.open("a", newline="") as out:
        writer = csv.DictWriter(out, columns)
        if out.tell() == 0:
            writer.writeheader()
        writer.writerows(rows)
