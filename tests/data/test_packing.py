"""The packed cache: the right stream and counts, used again when whole, made anew when it is not."""

import errno
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from newllm_lib.data import cache as cache_module
from newllm_lib.data.packing import open_packed, pack
from newllm_lib.data.readers.folder import FolderSource
from newllm_lib.data.records import RowStats
from newllm_lib.data.splits import read_splits
from newllm_lib.data.tokenizer import train_bpe, wrap
from newllm_lib.errors import NewLLMError
from tests.helpers.texts import dialogues, paragraphs, write_jsonl

ALL = ["train", "validation", "test"]


def pack_folder(folder, tokenizer, cache, **options):
    return pack(FolderSource(folder), tokenizer, ALL, cache, **options)


@pytest.fixture
def packings(monkeypatch):
    """Counts how often something is really packed."""
    from newllm_lib.data import packing

    done, real = [], packing._pack_now
    monkeypatch.setattr(packing, "_pack_now", lambda *a: (done.append(sorted(a[2])), real(*a)))
    return done


def test_the_stream_gives_back_every_document(folder, bpe, cache):
    packed = pack_folder(folder, bpe, cache)
    texts = {split: [] for split in ALL}
    for split, record in read_splits(FolderSource(folder), set(ALL), None, RowStats()):
        texts[split].append(record.text)
    for split, part in packed.items():
        assert (
            bpe.decode(part.ids) == "".join("<|endoftext|>" + text for text in texts[split]) + "<|endoftext|>"
        )
        assert np.flatnonzero(part.ids == 0).tolist() == [*part.document_starts.tolist(), part.tokens - 1]
        assert part.documents == len(texts[split]) == len(part.document_starts)
        assert part.bytes == sum(len(text.encode()) for text in texts[split])
        assert part.words == sum(len(text.split()) for text in texts[split])
        assert (part.lost_bytes, part.unk_tokens, part.lower_cased, part.loss_mask) == (0, 0, False, None)
        assert part.ids.dtype == np.uint16 and part.document_starts.dtype == np.int64
    assert sum(part.bytes for part in packed.values()) == (folder / "train.txt").stat().st_size


def test_small_batches_pack_the_same(folder, bpe, cache, tmp_path, monkeypatch):
    whole = pack_folder(folder, bpe, cache)
    monkeypatch.setattr("newllm_lib.data.packing.BATCH_CHARACTERS", 500)
    pieces = pack_folder(folder, bpe, tmp_path / "other")
    for split in ALL:
        assert (pieces[split].ids == whole[split].ids).all()
        assert (pieces[split].document_starts == whole[split].document_starts).all()
        assert (pieces[split].bytes, pieces[split].words) == (whole[split].bytes, whole[split].words)


def test_a_whole_cache_is_used_again(folder, bpe, cache, packings):
    first = pack_folder(folder, bpe, cache)
    second = pack_folder(folder, bpe, cache)
    assert packings == [sorted(ALL)] and second["train"].path == first["train"].path


def test_a_folder_that_moved_is_the_same_data(folder, bpe, cache, packings):
    pack_folder(folder, bpe, cache)
    pack_folder(folder.rename(folder.with_name("elsewhere")), bpe, cache)
    assert len(packings) == 1


def test_whatever_decides_the_content_is_in_the_key(folder, bpe, cache, tmp_path, monkeypatch):
    other = wrap(train_bpe(iter([paragraphs(200, seed=8)]), 400))
    first = pack_folder(folder, bpe, cache)["train"]
    paths = {first.path}

    def packs_anew(folder=folder, tokenizer=bpe, **options):
        path = pack_folder(folder, tokenizer, cache, **options)["train"].path
        assert path not in paths
        paths.add(path)

    packs_anew(tokenizer=other)
    packs_anew(max_samples=10)
    packs_anew(answers_only=True)
    monkeypatch.setattr("newllm_lib.data.packing.TEMPLATE_VERSION", 2)
    packs_anew()
    monkeypatch.setattr("newllm_lib.data.packing.VERSION", 99)
    packs_anew()
    text = (folder / "train.txt").read_text()
    times = os.stat(folder / "train.txt")
    (folder / "train.txt").write_text(text.replace("river", "liver", 1))  # same name, size and time
    os.utime(folder / "train.txt", ns=(times.st_atime_ns, times.st_mtime_ns))
    packs_anew()
    other_text = "\n\n".join(paragraphs(50, seed=9))
    (folder / "test.txt").write_text(other_text)  # no test split is taken out of the training split any more
    packs_anew()
    (folder / "test.txt").write_text(
        other_text + "\n\n" + text[: text.index("\n\n")]
    )  # a document of the training split
    packs_anew()
    (folder / "test.txt").write_text(text)
    with pytest.raises(NewLLMError, match=r"test also has \d+ of the train records, none is left for"):
        packs_anew()


def damage_truncate(entry):
    os.truncate(entry / "ids.bin", (entry / "ids.bin").stat().st_size - 10)


def damage_flip(entry):
    with open(entry / "ids.bin", "r+b") as file:
        file.seek(100)
        byte = file.read(1)
        file.seek(100)
        file.write(bytes([byte[0] ^ 1]))


def damage_meta(entry):
    (entry / "meta.json").write_text((entry / "meta.json").read_text()[:50])


def damage_missing(entry):
    (entry / "document_starts.bin").unlink()


def damage_no_meta(entry):
    (entry / "meta.json").unlink()


@pytest.mark.parametrize(
    "damage", [damage_truncate, damage_flip, damage_meta, damage_missing, damage_no_meta]
)
def test_a_damaged_cache_is_made_anew(folder, bpe, cache, packings, damage):
    entry = pack_folder(folder, bpe, cache)["train"].path
    ids = np.array(open_packed(entry).ids)
    damage(entry)
    assert open_packed(entry) is None
    packed = pack_folder(folder, bpe, cache)["train"]
    assert packings == [sorted(ALL), ["train"]] and (packed.ids == ids).all()


def pack_in_script(folder, tokenizer, cache, before: str) -> subprocess.CompletedProcess:
    """Pack in another Python, after running the lines `before`; an error goes to its standard output."""
    tokenizer.save_pretrained(folder.parent / "tokenizer")
    script = (
        "import os, resource, signal, sys; from pathlib import Path; from newllm_lib.data import "
        "packing\nfrom newllm_lib.data.readers.folder import FolderSource; from newllm_lib.data.tokenizer "
        "import named_tokenizer\nsource, tokenizer = FolderSource(Path(sys.argv[1])), "
        f"named_tokenizer(sys.argv[2])\n{before}\ntry: packing.pack(source, tokenizer, ['train', 'test'], "
        "Path(sys.argv[3]))\nexcept packing.NewLLMError as error: print(error)"
    )
    arguments = [str(folder), str(folder.parent / "tokenizer"), str(cache)]
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )


def finished(cache) -> list[str]:
    """Names of what is in the cache under its final name; nothing else may be there but locks."""
    entries = [p for p in (cache / "packed").iterdir() if p.suffix != ".lock"]
    assert not [p for p in entries if p.name.startswith(".")]
    return sorted(p.name.split("-")[0] for p in entries)


def test_what_a_killed_process_leaves_is_never_used(folder, bpe, cache, packings):
    """SIGKILL in the middle of writing: nothing under the final name; the next one packs and clears away."""
    killed = pack_in_script(
        folder,
        bpe,
        cache,
        "packing.BATCH_CHARACTERS, real, n = 500, packing.Writer._flush, []\n"
        "packing.Writer._flush = lambda w: (n.append(1), real(w), len(n) > 9 and os.kill(os.getpid(), 9))",
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    leftovers = list((cache / "packed").glob(".*.tmp"))
    assert leftovers and not list((cache / "packed").glob("train-*/meta.json"))
    packed = pack_folder(folder, bpe, cache)
    assert packings == [sorted(ALL)] and packed["train"].documents > 200
    assert finished(cache) == sorted(ALL)


def _pack_in_process(folder, cache, queue):
    from newllm_lib.data.tokenizer import named_tokenizer

    packed = pack_folder(folder, named_tokenizer(str(folder.parent / "tokenizer")), cache)
    queue.put(packed["train"].tokens)


@pytest.mark.parametrize("locks", [True, False])
def test_two_processes_at_once(folder, bpe, cache, monkeypatch, locks):
    bpe.save_pretrained(folder.parent / "tokenizer")
    if not locks:  # as on Drive
        monkeypatch.setattr(cache_module, "fcntl", None)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=_pack_in_process, args=(folder, cache, queue)) for _ in range(3)]
    for process in processes:
        process.start()
    tokens = {queue.get(timeout=60) for _ in processes}
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert tokens == {pack_folder(folder, bpe, cache)["train"].tokens}
    assert finished(cache) == sorted(ALL)


def test_a_process_waits_for_the_one_that_packs(tmp_path):
    """Whoever holds the lock is not disturbed: its staging folder survives."""
    entry = tmp_path / "entry"
    with cache_module.locked(entry) as alone:
        assert alone
        waiter = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "import sys; from pathlib import Path; from newllm_lib.data.cache import locked\n"
                "with locked(Path(sys.argv[1])): print('got it')",
                str(entry),
            ],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        assert "waiting" in waiter.stdout.readline()
        time.sleep(0.2)
        assert waiter.poll() is None
    assert waiter.communicate(timeout=20)[0] == "got it\n"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_line_and_leaves_nothing(folder, bpe, cache, monkeypatch, number):
    import builtins

    class Full:
        """A file on a disk that is full after 2,000 bytes."""

        def __init__(self, file):
            self.file, self.room = file, 2000

        def write(self, data):
            self.room -= memoryview(data).nbytes
            if self.room < 0:
                raise OSError(number, os.strerror(number))
            return self.file.write(data)

        def close(self):
            self.file.close()

    def limited(path, mode="r", *arguments, **options):
        file = real(path, mode, *arguments, **options)
        return Full(file) if mode == "wb" else file

    real = builtins.open
    monkeypatch.setattr(builtins, "open", limited)
    whose = "Your quota" if number == errno.EDQUOT else "The disk"
    with pytest.raises(NewLLMError, match=rf"{whose} is full: .*NEWLLM_CACHE") as error:
        pack_folder(folder, bpe, cache)
    assert "\n" not in str(error.value)
    monkeypatch.undo()
    assert "train" not in finished(cache)
    assert pack_folder(folder, bpe, cache)["train"].documents > 200


def test_a_limit_on_file_size_is_one_line_too(folder, bpe, cache):
    """The operating system itself refuses here."""
    limit = (
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (5000, "
        "5000))"
    )
    done = pack_in_script(folder, bpe, cache, limit)
    assert "The disk is full: " in done.stdout, done.stderr
    assert "train" not in finished(cache)


def test_a_cache_that_may_not_be_written(folder, bpe, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(NewLLMError, match="cannot be written .*NEWLLM_CACHE") as error:
        pack_folder(folder, bpe, tmp_path / "file")
    assert "\n" not in str(error.value)


def test_answers_only_marks_the_answers(tmp_path, bpe, cache):
    chats = dialogues(100)
    write_jsonl(tmp_path / "train.jsonl", [{"messages": m} for m in chats])
    packed = pack_folder(tmp_path, bpe, cache, answers_only=True)
    for part in packed.values():
        assert part.loss_mask.shape == part.ids.shape and part.loss_mask.dtype == np.uint8
        assert not part.loss_mask[part.document_starts].any() and not part.loss_mask[-1]
    answers = "".join(bpe.decode(part.ids[part.loss_mask == 1]) for part in packed.values())
    spoken = [m["content"] for chat in chats for m in chat if m["role"] == "assistant"]
    assert sorted(answers.split("<|end|>")[:-1]) == sorted(spoken)


def test_every_turn_and_label_is_in_the_stream(tmp_path, bpe, cache):
    chats = dialogues(200)
    write_jsonl(tmp_path / "train.jsonl", [{"messages": m} for m in chats])
    packed = pack_folder(tmp_path, bpe, cache)
    turns = [message["role"] for chat in chats for message in chat]
    for token, count in (
        ("<|user|>", turns.count("user")),
        ("<|assistant|>", turns.count("assistant")),
        ("<|end|>", len(turns)),
    ):
        index = bpe.convert_tokens_to_ids(token)
        assert sum(int((part.ids == index).sum()) for part in packed.values()) == count


def test_a_large_vocabulary_needs_four_bytes(folder, cache):
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {"<unk>": 0, **{f"w{i}": i for i in range(1, 70_000)}, "river": 70_000}
    backend = Tokenizer(models.WordLevel(vocabulary, "<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    part = pack_folder(folder, wrap(backend, "<unk>"), cache)["train"]
    assert part.ids.dtype == np.uint32 and part.ids.max() > 70_000
    assert 0.5 < part.unk_share < 1


def test_skipped_rows_are_remembered(tmp_path, bpe, cache):
    write_jsonl(tmp_path / "train.jsonl", [{"text": t} for t in paragraphs(300)] + [{"text": 1}])
    for _ in range(2):  # also when the cache is used
        assert "1 rows skipped (1 × text is of type int" in pack_folder(tmp_path, bpe, cache)["train"].skipped


def test_too_few_records_for_a_split_made_here(tmp_path, bpe, cache):
    write_jsonl(tmp_path / "train.jsonl", [{"text": "the only one"}])
    with pytest.raises(
        NewLLMError, match=r"none fell to (test|validation) \(5 % by hash\): add (test|validation)\.\*"
    ):
        pack_folder(tmp_path, bpe, cache)


def test_to_another_process_goes_the_place(folder, bpe, cache):
    part = pack_folder(folder, bpe, cache)["train"]
    sent = pickle.dumps(part)
    assert len(sent) < 1000 and (pickle.loads(sent).ids == part.ids).all()


def test_the_record_of_what_was_packed(folder, bpe, cache):
    meta = json.loads(
        (pack_folder(folder, bpe, cache, max_samples=9)["train"].path / "meta.json").read_text()
    )
    assert (
        meta["key"]["max_samples"] == 9
        and meta["key"]["split"] == "train"
        and meta["counts"]["documents"] == 9
    )
    assert set(meta["files"]) == {"ids.bin", "document_starts.bin"}
