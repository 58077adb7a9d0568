"""Memory stays flat however large the data is: more text means more time, not more memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.streaming import measure
from tests.helpers.texts import dialogues, paragraphs

# `peak(action)`: the most MiB of its own (anonymous) memory that the process has while `action` runs.
WATCHER = """
import sys, threading, time
from pathlib import Path

def anonymous():
    return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) / 1024

def peak(action):
    done, highest = threading.Event(), [anonymous()]
    def watch():
        while not done.wait(0.005):
            highest[0] = max(highest[0], anonymous())
    thread = threading.Thread(target=watch)
    thread.start()
    action()
    done.set()
    thread.join()
    return highest[0]

small, large = (Path(argument) for argument in sys.argv[1:3])
"""


def growth(code: str, small: Path, large: Path) -> float:
    """MiB by which `run(large)` needs more than `run(small)`; what is loaded once is loaded before."""
    script = (
        f"{WATCHER}{code}\nrun(small)\nless = peak(lambda: run(small))\nprint(peak(lambda: run(large)) "
        "- less)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(small), str(large)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    return float(done.stdout.splitlines()[-1])


def write(folder: Path, kind: str, megabytes: int) -> Path:
    """A folder with a training file of about so many megabytes."""
    folder.mkdir()
    some, chats = paragraphs(2000), [json.dumps({"messages": m}) for m in dialogues(3000)]
    part = {
        "blocks.txt": "\n\n".join(some) + "\n\n",
        "one-line.txt": " ".join(some) + " ",
        "chats.jsonl": "\n".join(chats) + "\n",
        "chats.json": ",\n".join(chats),
    }[kind]
    times = megabytes * 1_000_000 // len(part.encode()) + 1
    with open(folder / f"train.{kind.split('.')[1]}", "w", encoding="utf-8") as file:
        if kind.endswith(".json"):
            file.write("[" + part)
            for _ in range(times - 1):
                file.write(",\n" + part)
            file.write("]")
        else:
            for _ in range(times):
                file.write(part)
    return folder


@pytest.mark.parametrize("kind", ["blocks.txt", "one-line.txt", "chats.json"])
def test_reading_is_flat(tmp_path, kind):
    code = """
from newllm_lib.data.records import RowStats
from newllm_lib.data.readers.folder import FolderSource
from newllm_lib.data.splits import read_splits

def run(folder):
    for _ in read_splits(FolderSource(folder), {"train", "test"}, 100, RowStats()):
        pass
"""
    grown = growth(code, write(tmp_path / "small", kind, 4), write(tmp_path / "large", kind, 20))
    assert grown < 8, f"{grown:.0f} MiB more for 16 MB more of data"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["blocks.txt", "chats.jsonl"])
def test_packing_is_flat(tmp_path, kind):
    code = """
import itertools
from types import SimpleNamespace
from newllm_lib.data import prepare
cache, count = large.parent, itertools.count()

def run(folder):
    prepare(SimpleNamespace(data="demo", data_dir=str(folder), max_samples=None, tokenizer="bpe",
                            vocab_size=500, max_seq_length=16, loss_on="everything", streaming="auto",
                            template="chat", carry_state=False),
            cache / f"cache{next(count)}")
"""
    grown = growth(code, write(tmp_path / "small", kind, 4), write(tmp_path / "large", kind, 30))
    assert grown < 40, f"{grown:.0f} MiB more for 26 MB more of data"


def streamed(dialogues: int) -> dict:
    """The benchmark of streaming, small: from a hub through tokenizing and packing with two processes."""
    return measure(dialogues, 2, with_map=False, segment_kib=256)["newllm"]


def test_streaming_stays_small():
    figures = streamed(600)
    assert figures["tokens"] > 500_000 and 100 < figures["peak_mib"] < 1000


@pytest.mark.slow
def test_streaming_is_flat():
    small, large = streamed(1500), streamed(6000)
    assert large["tokens"] > 3.5 * small["tokens"]
    assert large["peak_mib"] - small["peak_mib"] < 60
