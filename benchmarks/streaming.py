"""A large dialogue set from the hub to packed tokens: memory, speed, and the wait for the first batch.

    newllm bench streaming [--dialogues 150000] [--processes 2] [--no_map] [--format csv|sharegpt]

Synthetic dialogues of UltraChat's length (about 6 KB, words by Zipf's law), as ten shards from a local server
that speaks the hub's protocol. `newllm`: the first batch and then every window of the pass, as training would
ask for them, with that many preparing processes. `datasets.map`: the same shards downloaded by `load_dataset`
and tokenized with the same tokenizer by as many processes; only the map itself is timed. Memory is anonymous
memory (Pss, /proc/PID/smaps_rollup), summed over all processes of each, sampled five times a second; the
server's is left out.

`--format csv` and `sharegpt` write the same turns as a folder of the user's own, without the hub: a table of
questions and answers, or ShareGPT's rows. Here the report and what it counts are made, too. A table cannot be
read in segments, so that its first batch comes when all of it is packed.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace

from benchmarks import common
from benchmarks.common import ROOT, Rows
from newllm_lib.console import say
from newllm_lib.errors import NewLLMError

SHARDS, NAME, WORDS = 10, "synthetic/dialogues", 50_000
FORMATS = {"ultrachat": "jsonl", "csv": "csv", "sharegpt": "jsonl"}  # file endings


def write_set(folder: Path, dialogues: int, form: str) -> int:
    """The shards, in the columns of a `form`; gives their bytes."""
    import numpy as np

    rng = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucmfwypvbgk"))
    words = np.array(
        ["".join(rng.choice(letters, size=n)) for n in rng.integers(2, 11, size=WORDS)], dtype=object
    )
    share = 1 / np.arange(1, WORDS + 1)
    cumulative = np.cumsum(share / share.sum())
    folder.mkdir(parents=True)
    for shard in range(SHARDS):
        with open(folder / f"train_{shard}.{FORMATS[form]}", "w", encoding="utf-8", newline="") as file:
            table = csv.writer(file)
            if form == "csv":
                table.writerow(("question", "answer"))
            for i in range(shard, dialogues, SHARDS):
                drawn = [words[cumulative.searchsorted(rng.random(n))] for n in rng.integers(20, 300, size=6)]
                turns = [" ".join(turn) for turn in drawn]
                if form == "csv":
                    table.writerows(zip(turns[::2], turns[1::2], strict=True))
                else:
                    file.write(json.dumps({"id": str(i), **_row(turns, form)}) + "\n")
    return sum(path.stat().st_size for path in folder.iterdir())


def _row(turns: list[str], form: str) -> dict:
    if form == "ultrachat":
        return {"data": turns}
    said = zip(itertools.cycle(("human", "gpt")), turns, strict=False)
    return {"conversations": [{"from": who, "value": turn} for who, turn in said]}


def recipe(folder: Path | None = None):
    return SimpleNamespace(
        data=NAME,
        data_dir=folder and str(folder),
        max_samples=None,
        tokenizer="bpe",
        vocab_size=8192,
        max_seq_length=128,
        loss_on="answers",
        streaming="auto" if folder else "on",
        template="chat",
        carry_state=False,
        seed=0,
        batch_size=256,
    )


def stream(began: float, cache: str, processes: int, segment_kib: int, own: Path | None = None) -> dict:
    """The whole set through `newllm`, in a process of its own.

    Args:
        began: when that was started.
        own: a folder to read instead of the hub's set.
    """
    from newllm_lib.data import prepare
    from newllm_lib.data.blocks import training_blocks
    from newllm_lib.data.packing import PackedSplit
    from newllm_lib.data.streaming import segment_pool, segments

    segment_pool.cores, segments.SEGMENT_BYTES = lambda: processes, segment_kib << 10
    how = recipe(own)
    data = prepare(how, cache)
    blocks, sampler = training_blocks(data.train, how)
    batch = [start for start, _ in zip(sampler, range(how.batch_size), strict=False)]
    assert blocks.__getitems__(batch)["input_ids"].shape == (len(batch), 128)
    first, prepared = time.time() - began, time.monotonic()
    number, tokens = 0, 0
    if isinstance(data.train, PackedSplit):
        tokens = data.train.tokens
    else:
        while data.train.members(0, number):
            tokens += data.train.window(0, number).tokens
            number += 1
    seconds, after = time.time() - began, time.monotonic() - prepared
    data.tokenizer.save_pretrained(Path(cache) / "tokenizer")
    data.close()
    return {
        "first_batch": first,
        "seconds": seconds,
        "after_first_batch": after,
        "cpu_seconds": cpu_seconds(),
        "tokens": tokens,
    }


def map_with_datasets(cache: str, processes: int) -> dict:
    """The same with `datasets.map`."""
    import datasets
    from transformers import AutoTokenizer

    datasets.disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(Path(cache) / "tokenizer")
    rows = datasets.load_dataset(NAME, split="train", cache_dir=str(Path(cache) / "datasets"))

    def tokenize(batch):
        labels = ("<|user|>", "<|assistant|>")
        texts = [
            "".join(labels[i % 2] + turn + "<|end|>" for i, turn in enumerate(talk)) for talk in batch["data"]
        ]
        return {"input_ids": tokenizer(texts)["input_ids"]}

    began, cpu = time.monotonic(), cpu_seconds()
    done = rows.map(tokenize, batched=True, num_proc=processes, remove_columns=rows.column_names)
    seconds = time.monotonic() - began
    tokens = sum(len(ids) for ids in done[:100]["input_ids"]) * len(done) // 100
    return {"seconds": seconds, "cpu_seconds": cpu_seconds() - cpu, "tokens": tokens}


def cpu_seconds() -> float:
    """Of this process and of those it started that have ended."""
    return sum(os.times()[:4])


class Watcher:
    """Samples the anonymous memory of a process and all its descendants until it ends."""

    def __init__(self, process: subprocess.Popen):
        self.process, self.samples = process, []
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def _watch(self) -> None:
        while self.process.poll() is None:
            self.samples.append(sum(map(anonymous, descendants(self.process.pid))) / 2**20)
            time.sleep(0.2)

    def figures(self) -> dict:
        """MiB: the peak; the most in the second and the last quarter, and in each tenth of the time."""
        quarter, tenth = max(1, len(self.samples) // 4), max(1, len(self.samples) // 10)
        return {
            "peak_mib": max(self.samples),
            "second_quarter_mib": max(self.samples[quarter : 2 * quarter]),
            "last_quarter_mib": max(self.samples[-quarter:]),
            "tenths_mib": [
                round(max(self.samples[i : i + tenth])) for i in range(0, len(self.samples), tenth)
            ][:10],
        }


def descendants(pid: int) -> list[int]:
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents.setdefault(int(stat.read_text().rpartition(")")[2].split()[1]), []).append(
                int(stat.parent.name)
            )
        except OSError:  # it ended meanwhile
            continue
    found, todo = [], [pid]
    while todo:
        found.append(todo.pop())
        todo += parents.get(found[-1], [])
    return found


def anonymous(pid: int) -> int:
    """Bytes of a process's own memory, shared pages by their share; 0 once it has ended."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        return int(rollup.split("Pss_Anon:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        return 0


def run_part(part: str, work: Path, url: str, processes: int, segment_kib: int, form: str) -> dict:
    environment = {
        k: v
        for k, v in os.environ.items()
        if k.lower() not in ("http_proxy", "https_proxy", "hf_hub_offline")
    }
    environment |= {
        "HF_ENDPOINT": url,
        "HF_HOME": str(work / "hf"),
        "PYTHONPATH": str(ROOT),
        "TOKENIZERS_PARALLELISM": "false",
    }
    told = [
        "--part",
        part,
        "--work",
        str(work),
        "--processes",
        str(processes),
        "--segment_kib",
        str(segment_kib),
        "--format",
        form,
    ]
    told += ["--started", str(time.time())]
    words = common.command("streaming", *told)
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment)
    watcher = Watcher(process)
    lines = process.communicate()[0].splitlines()
    watcher.thread.join()
    if process.returncode:
        raise NewLLMError(f"{part} ended with exit code {process.returncode}, as said above.")
    return {**json.loads(lines[-1]), **watcher.figures()}


def measure(
    dialogues: int,
    processes: int,
    with_map: bool,
    folder: Path | None = None,
    segment_kib: int = 4096,
    form: str = "ultrachat",
) -> dict:
    """Figures of both ways by name, and the set's size in bytes."""
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        work = Path(temporary)
        if form != "ultrachat":
            size = write_set(work / "own", dialogues, form)
            return {"bytes": size, "newllm": run_part("newllm", work, "", processes, segment_kib, form)}
        size = write_set(work / "hub" / "datasets" / NAME, dialogues, form)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        server = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "helpers" / "hub_server.py"), str(work / "hub"), str(port)],
            stdout=subprocess.PIPE,
        )
        try:
            server.stdout.readline()
            common = (work, f"http://127.0.0.1:{port}", processes, segment_kib, form)
            found = {"bytes": size, "newllm": run_part("newllm", *common)}
            if with_map:
                found["datasets.map"] = run_part("map", *common)
        finally:
            server.terminate()
            server.wait()
    return found


METRICS = {
    "seconds": ("time", "s"),
    "cpu_seconds": ("CPU time", "s"),
    "first_batch": ("time to the first batch", "s"),
    "after_first_batch": ("time from then on", "s"),
    "peak_mib": ("peak anonymous memory", "MiB"),
    "second_quarter_mib": ("anonymous memory in the second quarter of the time", "MiB"),
    "last_quarter_mib": ("anonymous memory in the last quarter", "MiB"),
}


def add_rows(rows: Rows, found: dict, note: str) -> None:
    for name in ("newllm", "datasets.map"):
        for key, (metric, unit) in METRICS.items():
            if key in found.get(name, {}):
                rows.add(name, metric, round(found[name][key], 1), unit, note)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_out(parser)
    parser.add_argument(
        "--dialogues", type=common.positive, default=150_000, help="in all (default: 150,000)"
    )
    parser.add_argument("--processes", type=common.positive, default=2, help="that prepare (default: 2)")
    parser.add_argument("--no_map", action="store_true", help="leave out datasets.map")
    parser.add_argument(
        "--format",
        choices=tuple(FORMATS),
        default="ultrachat",
        help="of the rows; csv and sharegpt: a folder, without the hub (default: ultrachat)",
    )
    parser.add_argument(
        "--segment_kib",
        type=common.positive,
        default=4096,
        help="KiB of a file packed at a time (default: 4096)",
    )
    parser.add_argument("--note", default="", help="what else the CSV should say")
    parser.add_argument("--work", type=Path, help="where the temporary files go")
    parser.add_argument("--part", choices=("newllm", "map"), help=argparse.SUPPRESS)
    parser.add_argument("--started", type=float, help=argparse.SUPPRESS)


def main(arguments: argparse.Namespace) -> dict | None:
    if arguments.part:
        cache = str(arguments.work / "cache")
        if arguments.part == "newllm":
            own = arguments.work / "own" if arguments.format != "ultrachat" else None
            found = stream(arguments.started, cache, arguments.processes, arguments.segment_kib, own)
        else:
            found = map_with_datasets(cache, arguments.processes)
        print(json.dumps(found), flush=True)
        return None
    how = arguments.processes, not arguments.no_map, arguments.work, arguments.segment_kib, arguments.format
    found = measure(arguments.dialogues, *how)
    say(json.dumps(found, indent=1))
    rows = Rows("streaming", packages=("transformers", "datasets", "tokenizers"))
    note = f"{arguments.dialogues:,} dialogues, {found['bytes'] / 1e6:.0f} MB in {SHARDS} shards"
    note += "" if arguments.format == "ultrachat" else f" of {arguments.format}"
    note += f", {os.cpu_count()} CPU cores"
    add_rows(rows, found, note + arguments.note)
    return common.record(rows, arguments)
