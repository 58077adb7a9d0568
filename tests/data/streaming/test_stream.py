"""Training on a large set while it is prepared: what is learned, and in which order, never depends on the
preparation.
"""

import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from newllm_lib.data import load_split, prepare
from newllm_lib.data.blocks import training_blocks
from newllm_lib.data.readers.base import DataFile
from newllm_lib.data.readers.folder import FolderSource
from newllm_lib.data.records import RowStats
from newllm_lib.data.splits import SPLITS, derived_splits, read_splits
from newllm_lib.data.streaming import segment_pool, segments, stream
from newllm_lib.errors import NewLLMError, UsageError
from tests.helpers.texts import dialogues, write_jsonl

LENGTH = 16


@pytest.fixture
def small(monkeypatch):
    """Segments and windows that are small enough for small data to have several."""
    monkeypatch.setattr(segments, "SEGMENT_BYTES", 12_000)
    monkeypatch.setattr(segments, "HEAD", 6)
    monkeypatch.setattr(stream, "FIRST", 2)
    monkeypatch.setattr(stream, "WINDOW", 4)
    monkeypatch.setattr(segment_pool, "cores", lambda: 1)  # a process costs most of a second


@pytest.fixture
def chats(tmp_path, small):
    """1,200 dialogues of several turns in three files: about 25 segments."""
    place = tmp_path / "chats"
    place.mkdir()
    for shard in range(3):
        rows = [{"messages": m} for m in dialogues(400, seed=shard)]
        write_jsonl(place / f"train-0000{shard}-of-00003.jsonl", rows)
    return place


@pytest.fixture
def prepared(recipe, chats):
    """Prepares the dialogues in a cache; everything is closed at the end."""
    opened = []

    def begin(cache, saved=None, **changes):
        made = recipe(data_dir=chats, streaming="on", batch_size=4, **changes)
        opened.append(prepare(made, cache, saved=saved))
        return opened[-1], made

    yield begin
    for data in opened:
        data.close()


def windows(split):
    """Every window of the first pass."""
    return [
        split.window(0, number)
        for number in itertools.takewhile(lambda n: split.members(0, n), itertools.count())
    ]


def learned(split, count, position=0):
    """A hash of so many blocks in the order of training, and where the last of them lay."""
    from newllm_lib.data.blocks import StreamedBlocks

    blocks, digest = StreamedBlocks(split, LENGTH), hashlib.sha256()
    starts = list(itertools.islice(split.starts(position, LENGTH), count))
    for i in range(0, count, 5):
        batch = blocks.__getitems__(starts[i : i + 5])
        digest.update(batch["input_ids"].numpy().tobytes() + batch["labels"].numpy().tobytes())
    return digest.hexdigest(), starts[-1][:2]


def test_every_turn_of_every_dialogue_is_learned_once_in_a_pass(prepared, chats, cache):
    """Speaker labels, turns and ends of turns counted in the blocks; none is lost where blocks or segments
    are cut.
    """
    data, made = prepared(cache)
    texts = []
    for number in itertools.count():
        if not data.train.members(0, number):
            break
        window = data.train.window(0, number)
        offset, count = data.train.blocks(0, number, LENGTH)
        blocks, _ = training_blocks(data.train, made)
        batch = blocks.__getitems__([(0, number, k * LENGTH - offset) for k in range(count)])
        labels = batch["labels"].flatten()
        assert torch.equal(labels[labels >= 0], torch.from_numpy(window.ids[1:].astype(np.int64)))
        texts += data.tokenizer.decode(labels[labels >= 0]).split("<|endoftext|>")[:-1]
    source = FolderSource(chats)
    expected = []
    for _, record in read_splits(source, {"train"}, None, RowStats()):
        expected.append("".join(f"<|{m.role}|>{m.content}<|end|>" for m in record.messages))
    assert sorted(texts) == sorted(expected)
    assert "".join(texts).count("<|user|>") == "".join(expected).count("<|user|>") > 1500


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_blocks_of_a_window_kept_on_a_device_are_the_same(prepared, cache, device):
    from newllm_lib.data.blocks import StreamedBlocks

    data, _ = prepared(cache)
    mapped, kept = (
        StreamedBlocks(data.train, LENGTH),
        StreamedBlocks(data.train, LENGTH, torch.device(device)),
    )
    starts = list(itertools.islice(data.train.starts(300, LENGTH), 600))
    assert len({start[:2] for start in starts}) > 1  # a batch may lie in two windows
    for i in range(0, 600, 150):
        one, other = mapped.__getitems__(starts[i : i + 150]), kept.__getitems__(starts[i : i + 150])
        assert (
            all(torch.equal(one[name], other[name].cpu()) for name in one)
            and other["labels"].device.type == device
        )


def test_held_out_dialogues_are_nowhere_in_training(prepared, chats, cache):
    data, _ = prepared(cache)
    digests = {split: set() for split in SPLITS}
    for split, record in read_splits(FolderSource(chats), set(SPLITS), None, RowStats()):
        digests[split].add(record.digest())
    whole = {split: len(part) for split, part in digests.items()}
    trained = sum(len(window.ids[window.ids == 0]) - 1 for window in windows(data.train))
    assert trained == whole["train"] and 5 < data.validation.documents < whole["validation"]
    assert derived_splits(FolderSource(chats)) == {"validation", "test"}


def test_dialogues_that_the_sets_own_test_split_holds_too_are_not_trained_on(prepared, chats, cache):
    write_jsonl(chats / "test.jsonl", [{"messages": m} for m in dialogues(30, seed=0)])
    data, _ = prepared(cache)
    shared = {
        "".join(f"<|{m['role']}|>{m['content']}<|end|>" for m in talk) for talk in dialogues(30, seed=0)
    }
    texts = {
        text
        for window in windows(data.train)
        for text in data.tokenizer.decode(window.ids).split("<|endoftext|>")
    }
    assert data.test.documents == 30 and len(texts) > 1000 and not texts & shared
    assert data.train.stats.held_out == 30


def test_the_order_does_not_depend_on_how_fast_the_data_was_prepared(prepared, cache, tmp_path, monkeypatch):
    data, _ = prepared(cache)
    first = learned(data.train, 4000)
    assert first[1][0] == 1  # into the second pass, whose order is another
    assert learned(data.train, 4000) == first  # all is ready by now
    monkeypatch.setattr(segment_pool, "cores", lambda: 3)
    other, _ = prepared(tmp_path / "other")
    assert learned(other.train, 4000) == first
    assert (other.fingerprint, other.train.tokens) == (data.fingerprint, data.train.tokens)
    shuffled, _ = prepared(tmp_path / "other", seed=1)
    assert learned(shuffled.train, 4000) != first and shuffled.fingerprint != data.fingerprint


def test_a_pass_is_shuffled_and_the_next_one_otherwise(prepared, cache):
    data, _ = prepared(cache)
    turns = {}
    for epoch, number, start in itertools.takewhile(lambda s: s[0] < 2, data.train.starts(0, LENGTH)):
        turns.setdefault(epoch, []).append((number, start))
    assert turns[0] != sorted(turns[0]) and turns[0] != turns[1]
    members = [sorted(m for n in range(20) for m in data.train.members(epoch, n)) for epoch in (0, 1)]
    assert members[0] == members[1] == list(range(len(data.train.job.segments)))


def test_an_epoch_is_declared_from_the_first_window(prepared, cache):
    data, made = prepared(cache)
    declared = data.train.tokens
    _, sampler = training_blocks(data.train, made)
    assert len(sampler) == (declared - 1) // LENGTH // 4 * 4
    actual = sum(window.tokens - 1 for window in windows(data.train))
    assert abs(declared / actual - 1) < 0.15 and data.train.tokens == declared
    assert f"{len(data.train.job.segments)} pieces and prepared while training" in data.description


def test_max_samples_reads_no_more_than_it_needs(prepared, cache):
    data, _ = prepared(cache, max_samples=100)
    assert sum(np.count_nonzero(window.ids == 0) - 1 for window in windows(data.train)) == 100
    assert data.train.documents == 100
    time.sleep(1)  # time enough for more
    assert (
        len(list(data.train.path.glob("*/meta.json")))
        <= data.train.last + segment_pool.cores() * segment_pool.AHEAD
    )
    more, _ = prepared(cache, max_samples=150)
    assert sum(np.count_nonzero(window.ids == 0) - 1 for window in windows(more.train)) == 150
    learned(data.train, 3000)  # passes over the 100 again and again


def test_a_run_goes_on_elsewhere_without_what_it_has_seen(prepared, cache, tmp_path):
    data, _ = prepared(cache)
    first = learned(data.train, 2500)  # in the first pass
    expected = learned(data.train, 500, position=2500)
    saved = json.loads(json.dumps(data.state()))
    assert first[1][0] == 0 and first[1][1] >= 3
    moved, _ = prepared(tmp_path / "elsewhere", saved=saved)
    assert moved.fingerprint == data.fingerprint and moved.train.tokens == data.train.tokens
    assert not list(moved.train.path.glob("*/meta.json"))
    assert next(moved.train.starts(2500, LENGTH)) == next(data.train.starts(2500, LENGTH))
    assert learned(moved.train, 500, position=2500) == expected


def test_a_sampler_that_goes_on_gives_what_is_left_of_the_epoch(prepared, cache):
    data, made = prepared(cache)
    _, sampler = training_blocks(data.train, made)
    whole = list(sampler)
    for position in (0, 7, len(sampler) - 1, len(sampler), len(sampler) + 40):
        _, again = training_blocks(data.train, made)
        again.seek(position)
        seen = position % len(sampler)
        second = itertools.islice(data.train.starts(len(sampler), LENGTH), len(sampler))
        expected = whole if position < len(sampler) else list(second)
        assert list(again)[seen:] == expected[seen:]


SCRIPT = """
import sys
from types import SimpleNamespace
from newllm_lib.data import prepare
from newllm_lib.data.streaming import segments, stream
segments.SEGMENT_BYTES, segments.HEAD, stream.FIRST, stream.WINDOW = 12_000, 6, 2, 4
data = prepare(SimpleNamespace(data="demo", data_dir=sys.argv[1], max_samples=None, tokenizer="bpe",
                               vocab_size=400,
                               seed=0, max_seq_length=16, loss_on="answers", streaming="on", template="chat",
                               carry_state=False),
               sys.argv[2])
print("begun", flush=True)
for number in range(9):
    for member in data.train.members(0, number):
        data.train.pool.wait(member)
data.close()
print("done")
"""


def packed_bytes(cache: Path) -> dict:
    return {str(p.relative_to(cache)): p.read_bytes() for p in cache.glob("streams/*/*/*.bin")}


def test_a_preparation_killed_at_any_moment_goes_on_and_gives_the_same_bytes(chats, tmp_path):
    def start(cache):
        return subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(chats), str(cache)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[3],
        )

    killed = tmp_path / "killed"
    process = start(killed)
    while len(list(killed.glob("streams/*/[0-9]*/meta.json"))) < 9:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    left = {path: path.stat().st_mtime_ns for path in killed.glob("streams/*/[0-9]*/meta.json")}
    process = start(killed)
    assert "done" in process.communicate(timeout=60)[0]
    assert all(
        path.stat().st_mtime_ns == when for path, when in left.items()
    )  # what was done was not done again
    whole = start(tmp_path / "whole")
    assert "done" in whole.communicate(timeout=60)[0]
    assert packed_bytes(killed) == packed_bytes(tmp_path / "whole") and len(left) >= 9
    assert not list(killed.rglob("*.tmp"))


def test_a_damaged_segment_is_made_again(prepared, cache):
    data, _ = prepared(cache)
    before = learned(data.train, 100)
    windows(data.train)
    data.close()
    damaged = data.train.job.entry(1) / "ids.bin"
    damaged.write_bytes(damaged.read_bytes()[:-4])
    again, _ = prepared(cache)
    assert learned(again.train, 100) == before


def test_a_process_that_dies_is_said_and_replaced(prepared, cache):
    data, _ = prepared(cache)
    pool = data.train.pool
    missing = next(n for n in range(24, 0, -1) if not (data.train.job.entry(n) / "meta.json").exists())
    for process in list(pool._running):
        os.kill(process.pid, signal.SIGKILL)
    try:
        pool.wait(missing)
    except NewLLMError as error:
        assert "ended unexpectedly (exit code -9)" in str(error) and "\n" not in str(error)
    pool.wait(missing)


def test_files_of_the_current_folder_are_never_run(prepared, cache, tmp_path, monkeypatch):
    """Not where Python was started with -m (its folder stands on sys.path), nor in a notebook (an empty
    entry), nor by an empty entry of PYTHONPATH."""
    here = tmp_path / "mine"
    here.mkdir()
    for name in ("calendar", "random", "tokenizers"):
        (here / f"{name}.py").write_text("open('was_run', 'w').close()\nraise SystemExit(3)\n")
    monkeypatch.chdir(here)
    monkeypatch.setattr(sys, "path", ["", str(here), *sys.path])
    monkeypatch.setenv("PYTHONPATH", os.pathsep + str(Path(__file__).parents[3]))
    data, _ = prepared(cache)
    assert sum(window.tokens for window in windows(data.train)) > 10_000
    assert not (here / "was_run").exists()


def test_bad_rows_are_skipped_and_counted_and_too_many_stop_it(recipe, tmp_path, cache, small, capsys):
    rows = [json.dumps({"messages": m}) for m in dialogues(1000)]
    place = tmp_path / "few"
    place.mkdir()
    for i in range(40):
        rows.insert(25 * i, '{"messages": [{"role": "robot", "content": "x"}]}' if i % 2 else "{broken")
    (place / "train.jsonl").write_text("\n".join(rows))
    data = prepare(recipe(data_dir=place, streaming="on"), cache)
    try:
        windows(data.train)
    finally:
        data.close()
    assert data.train.stats.reasons == {
        "not valid JSON": 20,
        "a role that is none of user, assistant, system, tool (robot)": 20,
    }
    said = capsys.readouterr().out
    assert "40 rows skipped (20 × " in said and "the first at" in said and "train.jsonl, byte " in said


def test_too_many_bad_rows_late_in_the_set_stop_it(recipe, tmp_path, cache, small):
    good = [json.dumps({"messages": m}) for m in dialogues(500)]
    place = tmp_path / "late"
    place.mkdir()
    (place / "train.jsonl").write_text("\n".join(good))
    first = {s.begin for s in segments.cut([DataFile("x", (place / "train.jsonl").stat().st_size)])[:6]}
    lines, position = [], 0
    for i, line in enumerate(good):  # outside the sample every third row is broken
        sampled = position // 12_000 * 12_000 in first or (position + len(line)) // 12_000 * 12_000 in first
        lines.append(line if sampled or i % 3 else "x" * len(line))
        position += len(line) + 1
    (place / "train.jsonl").write_text("\n".join(lines))
    data = prepare(recipe(data_dir=place, streaming="on"), cache)
    try:
        with pytest.raises(
            NewLLMError, match=r"are no records; the first: .*train.jsonl, byte [\d,]+: not valid JSON"
        ) as error:
            windows(data.train)
    finally:
        data.close()
    assert "\n" not in str(error.value)


def test_what_streaming_cannot_do_is_one_line(recipe, folder, chats, cache, prepared):
    with pytest.raises(UsageError, match=r"--streaming on needs records in \.jsonl or \.parquet"):
        prepare(recipe(data_dir=folder, streaming="on"), cache)
    data, made = prepared(cache, carry_state=True)
    with pytest.raises(UsageError, match="--streaming off"):
        training_blocks(data.train, made)
    with pytest.raises(NewLLMError, match="fewer than one batch of 1000000"):
        made.batch_size, made.carry_state = 1_000_000, False
        training_blocks(data.train, made)


def test_a_disk_too_small_is_said_before_training(prepared, cache, monkeypatch, capsys):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    prepared(cache)
    assert "has 0.0 GB left: free some space, set NEWLLM_CACHE" in capsys.readouterr().out


def test_large_sets_stream_by_themselves_and_small_ones_do_not(recipe, chats, cache, monkeypatch):
    assert prepare(recipe(data_dir=chats), cache).train.path.parent.name == "packed"
    monkeypatch.setattr("newllm_lib.data.prepared.LARGE", 100_000)
    assert prepare(recipe(data_dir=chats, carry_state=True), cache).train.path.parent.name == "packed"
    assert prepare(recipe(data_dir=chats, streaming="off"), cache).train.path.parent.name == "packed"
    data = prepare(recipe(data_dir=chats), cache)
    data.close()
    assert data.train.path.parent.name == "streams"


def test_a_run_on_a_stream_is_evaluated_on_its_sample(prepared, cache, capsys):
    data, made = prepared(cache)
    test, train = (load_split(made, data.tokenizer, split, cache) for split in ("test", "train"))
    assert test.path == data.test.path and 50 < train.documents < 1000
    assert "stand for its training split" in capsys.readouterr().out


def test_a_set_without_text_is_one_line(recipe, tmp_path, cache, small):
    write_jsonl(tmp_path / "train.jsonl", [{"messages": []}] * 100)
    with pytest.raises(NewLLMError, match="holds no text"):
        prepare(recipe(data_dir=tmp_path, streaming="on"), cache)
