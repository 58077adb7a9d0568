"""From a recipe to packed data, as a user meets it."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from newllm_lib.data import load_split, prepare, tokenizer as tokenizer_module
from newllm_lib.data.datasets import open_source
from newllm_lib.data.records import RowStats
from newllm_lib.data.splits import SPLITS, read_splits
from newllm_lib.errors import NewLLMError, UsageError
from tests.helpers.texts import paragraphs, read_documents, write_jsonl


def wikitext_folder(test_data, tmp_path):
    """The whole test split, and the beginning of the validation split to train on (the real one is not
    there).
    """
    articles = read_documents(test_data / "wikitext-2.valid.txt")
    for split, part in (("train", articles[:20]), ("validation", articles[20:25])):
        (tmp_path / f"wikitext-2.{split}.txt").write_text("".join(part), encoding="utf-8")
    (tmp_path / "wikitext-2.test.txt").symlink_to(test_data / "wikitext-2.test.txt")
    return tmp_path


def test_the_demo_needs_neither_hub_nor_datasets(tmp_path):
    """With a small package in the place of the real one."""
    package = tmp_path / "chitchat_dataset"
    package.mkdir()
    (package / "__init__.py").touch()
    talks = {
        str(i): {
            "messages": [[{"sender": "a", "text": t}], [{"sender": "b", "text": x} for x in ("o", " ", "k")]]
        }
        for i, t in enumerate(paragraphs(300))
    }
    (package / "dataset.json").write_text(json.dumps(talks))
    script = (
        "import sys; from types import SimpleNamespace; from newllm_lib.data import prepare\ndata = "
        "prepare(SimpleNamespace(data='demo', data_dir=None, max_samples=200, tokenizer='bpe', "
        "vocab_size=300,\n               max_seq_length=16, loss_on='everything', streaming='auto', "
        "template='chat', carry_state=False),\n               sys.argv[1])\nprint('datasets' in sys.modules, "
        "data.train.documents, data.tokenizer.decode(data.train.ids[-10:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "cache")],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1]
    assert last.startswith("False 200 ") and last.endswith("<|end|><|assistant|>o k<|end|><|endoftext|>")


def test_the_demo_holds_every_conversation_once(recipe, tmp_path):
    """Counted a second time from the package's own file."""
    from chitchat_dataset import _PATH

    splits = {split: [] for split in SPLITS}
    for split, record in read_splits(open_source(recipe(), tmp_path), set(SPLITS), None, RowStats()):
        splits[split].append(record)
    found = sorted(m.content for records in splits.values() for record in records for m in record.messages)
    spoken = []
    for conversation in json.loads(Path(_PATH).read_text()).values():
        utterances = [(u["sender"], u["text"].strip()) for turn in conversation["messages"] for u in turn]
        for _, same in itertools.groupby((u for u in utterances if u[1]), key=lambda u: u[0]):
            spoken.append(" ".join(text for _, text in same))
    assert found == sorted(spoken)
    assert sum(map(len, splits.values())) == 7168
    roles = {tuple(m.role for m in record.messages[:2]) for records in splits.values() for record in records}
    assert roles == {("user",), ("user", "assistant")}
    digests = {split: {record.digest() for record in records} for split, records in splits.items()}
    assert not digests["train"] & digests["validation"] | digests["train"] & digests["test"]
    assert 250 < len(splits["validation"]) < 600 and 250 < len(splits["test"]) < 600


def test_without_the_demo_package_the_line_says_how_to_get_it(recipe, cache, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(NewLLMError, match="pip install chitchat-dataset"):
        prepare(recipe(), cache)


def test_a_folder_is_described_in_one_line(folder, recipe, cache, capsys):
    data = prepare(recipe(data_dir=folder), cache)
    assert data.description.startswith("texts: ") and "\n" not in data.description
    for part in ("documents", "tokens to train on", "vocabulary 400", "<unk> 0.0 %"):
        assert part in data.description
    assert "Training the tokenizer" in capsys.readouterr().out
    again = prepare(recipe(data_dir=folder), cache)
    assert capsys.readouterr().out == ""  # nothing to do, nothing to say
    assert again.fingerprint == data.fingerprint
    assert prepare(recipe(data_dir=folder, max_samples=100), cache).fingerprint != data.fingerprint


def test_seed_protocol_on_wikitext(test_data, tmp_path, recipe, cache):
    data = prepare(
        recipe(data_dir=wikitext_folder(test_data, tmp_path), tokenizer="words", vocab_size=1000), cache
    )
    text = (test_data / "wikitext-2.test.txt").read_text(encoding="utf-8").lower()
    assert len(data.tokenizer) == 1000 and data.test.lower_cased and data.test.documents == 60
    assert data.test.bytes == len(text.encode()) and data.test.words == len(text.split())
    assert data.test.tokens == data.test.words + 60 + 1
    assert 0.25 < data.test.unk_share < 0.40
    assert "text lower-cased" in data.description and "vocabulary 1,000" in data.description


def test_bpe_on_wikitext_gives_back_the_file(test_data, tmp_path, recipe, cache):
    data = prepare(recipe(data_dir=wikitext_folder(test_data, tmp_path), vocab_size=500), cache)
    decoded = data.tokenizer.decode(data.test.ids).replace("<|endoftext|>", "")
    assert decoded.encode() == (test_data / "wikitext-2.test.txt").read_bytes()
    assert data.test.bytes == (test_data / "wikitext-2.test.txt").stat().st_size and data.test.lost_bytes == 0


def test_a_run_is_evaluated_with_its_own_tokenizer(folder, recipe, cache, tmp_path):
    from transformers import AutoTokenizer

    data = prepare(recipe(data_dir=folder), cache)
    data.tokenizer.save_pretrained(tmp_path / "run")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "run")
    test = load_split(recipe(data_dir=folder), loaded, "test", cache)
    assert test.path == data.test.path  # the same cache: the tokenizer is the same
    with pytest.raises(UsageError, match="Unknown split"):
        load_split(recipe(data_dir=folder), loaded, "dev", cache)


def test_one_split_can_be_evaluated_without_the_others(tmp_path, recipe, cache, bpe):
    (tmp_path / "test.txt").write_text("\n\n".join(paragraphs(9)))
    assert load_split(recipe(data_dir=tmp_path), bpe, "test", cache).documents == 9
    with pytest.raises(UsageError, match="no train split"):
        load_split(recipe(data_dir=tmp_path), bpe, "validation", cache)


def test_the_tokenizer_learns_from_a_recorded_prefix_of_train_alone(folder, recipe, cache, monkeypatch):
    monkeypatch.setattr(tokenizer_module, "TRAINING_BYTES", 5000)
    (folder / "validation.txt").write_text("zzzzzzzz " * 3000)
    data = prepare(recipe(data_dir=folder), cache)
    assert "zzz" not in "".join(data.tokenizer.get_vocab())
    record = data.tokenizer.init_kwargs["trained_on"]
    assert record.startswith("the first ") and record.endswith("of the train split of texts")
    monkeypatch.setattr(tokenizer_module, "TRAINING_BYTES", 50_000_000)
    assert prepare(recipe(data_dir=folder), cache).tokenizer.init_kwargs["trained_on"].startswith("all ")


def test_a_damaged_tokenizer_in_the_cache_is_trained_anew(folder, recipe, cache):
    first = prepare(recipe(data_dir=folder), cache)
    (file,) = cache.glob("tokenizers/bpe-*/tokenizer.json")
    file.write_bytes(file.read_bytes()[:-9])
    assert prepare(recipe(data_dir=folder), cache).fingerprint == first.fingerprint


def test_too_little_text_for_a_block_names_split_and_option(folder, recipe, cache):
    (folder / "test.txt").write_text("short\n")
    with pytest.raises(
        NewLLMError, match=r"The test split has \d+ tokens, fewer than one block.*--max_seq_length"
    ):
        prepare(recipe(data_dir=folder, max_seq_length=128), cache)


def test_unreadable_utf8_leaves_the_cache_usable(folder, recipe, cache):
    good = (folder / "train.txt").read_bytes()
    (folder / "train.txt").write_bytes(good + b"\xff\xfe")
    with pytest.raises(NewLLMError, match=rf"train\.txt is UTF-8 but for .*byte {len(good):,} "):
        prepare(recipe(data_dir=folder), cache)
    (folder / "train.txt").write_bytes(good)
    assert prepare(recipe(data_dir=folder), cache).train.documents > 200


def test_unknown_data_names_the_choices(recipe, cache):
    with pytest.raises(UsageError, match="use demo, wikitext, tinystories, dolly, .*alpaca_ja, a hub id"):
        prepare(recipe(data="wikitxt"), cache)


def test_importing_the_room_is_light():
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, newllm_lib.data\n"
            "print(sorted({'torch', 'transformers', 'datasets', 'tokenizers'} & set(sys.modules)))",
        ],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout.strip() == "[]"


def test_a_mixture_of_documents_and_dialogues(tmp_path, recipe, cache):
    chats = [{"messages": [{"role": "user", "content": t}]} for t in paragraphs(200, seed=3)]
    write_jsonl(tmp_path / "train.jsonl", [{"text": t} for t in paragraphs(200)] + chats)
    data = prepare(recipe(data_dir=tmp_path), cache)
    user = data.tokenizer.convert_tokens_to_ids("<|user|>")
    assert sum(int(np.count_nonzero(p.ids == user)) for p in (data.train, data.validation, data.test)) == 200


def test_what_a_mended_reader_reads_otherwise_is_packed_again(folder, recipe, cache, monkeypatch):
    from newllm_lib.data.readers import textfiles

    first = prepare(recipe(data_dir=folder), cache)
    before, read = first.train.ids.copy(), textfiles.read_lines
    assert prepare(recipe(data_dir=folder), cache, saved=first.state()).fingerprint == first.fingerprint
    # other code that reads the same: packed again, and a run goes on
    monkeypatch.setattr("newllm_lib.data.cache.readers_hash", lambda: "as before")
    again = prepare(recipe(data_dir=folder), cache, saved=first.state())
    assert again.fingerprint == first.fingerprint and np.array_equal(again.train.ids, before)
    monkeypatch.setattr(textfiles, "read_lines", lambda *place: map(str.upper, read(*place)))
    monkeypatch.setattr("newllm_lib.data.cache.readers_hash", lambda: "mended")
    mended = prepare(recipe(data_dir=folder), cache, tokenizer=first.tokenizer, saved=first.state())
    assert mended.tokenizer.decode(mended.train.ids[1:200]).isupper()
    assert mended.fingerprint != first.fingerprint  # a run that began otherwise is not gone on with


def test_the_hash_of_the_readers_covers_what_reads():
    from newllm_lib.data import cache as module

    place = Path(module.__file__).parent
    covered = [path for pattern in module._READING for path in place.glob(pattern)]
    assert set((place / "readers").glob("*.py")) < set(covered)
    assert all(any(place.glob(pattern)) for pattern in module._READING)
