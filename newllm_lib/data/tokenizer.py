"""Tokenizers: byte-level BPE of the training split, the seed's words, GPT-2's, or any by folder or id.

Whatever it is, it comes back as a `PreTrainedTokenizerFast` with the same control tokens
(`chat.CONTROL_TOKENS`), the chat template, `<|endoftext|>` as both beginning and end, and `<|pad|>` as
padding; saved with `save_pretrained`, `AutoTokenizer` loads it.
"""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from newllm_lib import console
from newllm_lib.data.cache import Staging, key_hash, locked, plain_write_errors, read_meta, sweep
from newllm_lib.data.readers.base import Source
from newllm_lib.data.records import RowStats
from newllm_lib.data.splits import derived_splits, held_out_key, read_splits
from newllm_lib.data.templates import (
    CHAT_TEMPLATE,
    CONTROL_TOKENS,
    END_OF_TEXT,
    END_OF_TURN,
    PAD,
    ROLE_TOKENS,
    TEMPLATES,
    UNKNOWN,
    template_of,
)
from newllm_lib.errors import NewLLMError, UsageError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

    from newllm_lib.recipe import Recipe

VERSION = 1  # of how tokenizers are trained here
TRAINING_BYTES = 50_000_000  # of text from the beginning of the training split: more would change very little
SAMPLE_BYTES = 10_000_000  # of a set that is prepared while training, where the first step waits for it
TRAINED = ("bpe", "words")
# Unicode's White_Space, where the `words` tokenizer splits (str.split also splits at U+001C to U+001F)
WHITE_SPACE = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_SPACE = re.compile(f"[{WHITE_SPACE}]")
_PIECE = 1 << 16  # characters
_T = TypeVar("_T")


def load_tokenizer(recipe: Recipe, source: Source, cache: Path) -> PreTrainedTokenizerFast:
    """The recipe's tokenizer: trained on the source's training split (or cached), or loaded by name.

    Raises:
        NewLLMError: not found, not reachable, or not a fast tokenizer.
        UsageError: a vocabulary too small for the tokenizer.
    """
    tokenizer = (
        _trained(recipe, source, cache) if recipe.tokenizer in TRAINED else named_tokenizer(recipe.tokenizer)
    )
    if recipe.template != "chat" or recipe.tokenizer in TRAINED:  # a run's tokenizer keeps its own
        tokenizer.chat_template = TEMPLATES[recipe.template]
    return tokenizer


def _trained(recipe: Recipe, source: Source, cache: Path) -> PreTrainedTokenizerFast:
    most = SAMPLE_BYTES if source.in_order else TRAINING_BYTES
    parts = {
        "version": VERSION,
        "kind": recipe.tokenizer,
        "vocab_size": recipe.vocab_size,
        "bytes": most,
        "source": source.fingerprint("train"),
        "made": sorted(derived_splits(source)),
        "max_samples": recipe.max_samples,
        **held_out_key(source),
    }
    entry = cache / "tokenizers" / f"{recipe.tokenizer}-{key_hash(parts)}"
    if read_meta(entry) is None:
        with locked(entry) as alone:
            if read_meta(entry) is None:
                if alone:
                    sweep(entry)
                _train_into(entry, recipe, source, parts, most)
    return _from_folder(entry)


def _train_into(entry: Path, recipe: Recipe, source: Source, parts: dict, most: int) -> None:
    console.say(
        f"Training the tokenizer ({recipe.tokenizer}, {recipe.vocab_size:,} entries) on {source.title}"
    )
    text = _TrainingText(source, recipe.max_samples, most)
    progress = console.Progress("reading", unit="bytes of text")
    train = {"bpe": train_bpe, "words": train_words}[recipe.tokenizer]
    backend = train(text.batches(progress), recipe.vocab_size)
    if not text.records:
        raise NewLLMError(f"{source.title}: the train split holds no text. Give it some, or name other data.")
    staging = Staging(entry)
    try:
        unknown = UNKNOWN if recipe.tokenizer == "words" else None
        with plain_write_errors(entry.parent):
            wrap(backend, unknown, text.description()).save_pretrained(staging.path)
        staging.commit(key=parts, trained_on=text.description())
    except BaseException:
        staging.abandon()
        raise


class _TrainingText:
    """The training split's text up to `most` bytes, counting what was read."""

    def __init__(self, source: Source, max_samples: int | None, most: int):
        self.source, self.max_samples, self.most = source, max_samples, most
        self.records = self.bytes = 0
        self.whole = False

    def batches(self, progress: console.Progress) -> Iterator[list[str]]:
        batch, size = [], 0
        for _, record in read_splits(self.source, {"train"}, self.max_samples, RowStats()):
            batch += record.texts()
            size += sum(len(text.encode("utf-8")) for text in record.texts())
            self.records += 1
            if size >= 1 << 20:
                self.bytes += size
                yield batch
                batch, size = [], 0
                progress.update(self.bytes)
            if self.bytes + size >= self.most:
                break
        else:
            self.whole = True
        self.bytes += size
        yield batch

    def description(self) -> str:
        extent = "all" if self.whole else "the first"
        return (
            f"{extent} {self.records:,} records ({self.bytes:,} bytes) of the train split of "
            f"{self.source.title}"
        )


def train_bpe(batches: Iterator[list[str]], vocab_size: int) -> Tokenizer:
    """Byte-level BPE as GPT-2's (Radford et al. 2019), control tokens first. Deterministic.

    Raises:
        UsageError: there is no room for the 256 bytes and the control tokens.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    least = len(CONTROL_TOKENS) + 256
    if vocab_size < least:
        raise UsageError(
            f"vocab_size {vocab_size} is too small: bytes and control tokens alone need {least}."
        )
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        show_progress=False,
        special_tokens=list(CONTROL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    interruptibly(lambda: backend.train_from_iterator(batches, trainer), TRAINING_BYTES)
    return backend


def interruptibly(work: Callable[[], _T], size: int) -> _T:
    """Do it in another thread: Rust that works on one long line would keep signals from the main one, which
    they would not end for minutes.

    Args:
        size: of what it works on, in characters or tokens; what is short is done at once.
    """
    if size < _PIECE:
        return work()
    results: list[_T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True, name="tokenizer")
    thread.start()
    while thread.is_alive():
        thread.join(0.1)
    if failed:
        raise failed[0]
    return results[0]


def cut_at_spaces(text: str) -> Iterator[str]:
    """A text cut at white space, where it is long: what keeps Python waiting does so for a moment only."""
    begin = 0
    while len(text) - begin > _PIECE:
        space = _SPACE.search(text, begin + _PIECE)
        end = space.start() if space else len(text)
        yield text[begin:end]
        begin = end
    yield text[begin:]


def train_words(batches: Iterator[list[str]], vocab_size: int) -> Tokenizer:
    """The seed's vocabulary: the most frequent lower-cased words; all others are `<unk>`.

    `vocab_size` counts everything, control tokens and `<unk>` too. Words of equal frequency are taken in
    alphabetical order.
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    lower, split = normalizers.Lowercase(), pre_tokenizers.WhitespaceSplit()
    counts: Counter[str] = Counter()
    for batch in batches:
        for text in batch:
            for piece in cut_at_spaces(text):
                counts.update(word for word, _ in split.pre_tokenize_str(lower.normalize_str(piece)))
    reserved = [*CONTROL_TOKENS, UNKNOWN]
    if vocab_size <= len(reserved):
        raise UsageError(
            f"vocab_size {vocab_size} is too small: control tokens and <unk> alone need {len(reserved)}."
        )
    for word in reserved:
        counts.pop(word, None)
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    vocabulary = {word: i for i, word in enumerate(reserved + ranked[: vocab_size - len(reserved)])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    # a word in the text that spells a control token would be found in the vocabulary: it is an unknown word
    spelled = "|".join(token.strip("<|>") for token in CONTROL_TOKENS)
    backend.normalizer = normalizers.Sequence(
        [lower, normalizers.Replace(Regex(rf"<\|(?:{spelled})\|>"), UNKNOWN)]
    )
    backend.pre_tokenizer = split
    return backend


def wrap(backend: Tokenizer, unk_token: str | None = None, trained_on: str = "") -> PreTrainedTokenizerFast:
    """A `tokenizers.Tokenizer` as a `PreTrainedTokenizerFast` with our control tokens and chat template.

    What it adds by itself around a text (Llama's `<s>`) is taken away: documents begin and end as `chat`
    says.
    """
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    parts = json.loads(backend.to_str())
    parts.update(post_processor=None, truncation=None, padding=None)
    extra = {"trained_on": trained_on} if trained_on else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(json.dumps(parts)),
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=PAD,
        unk_token=unk_token,
        additional_special_tokens=[*ROLE_TOKENS.values(), END_OF_TURN],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        padding_side="left",
        **extra,
    )


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Equal for tokenizers that encode alike, however they were made or loaded."""
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    for volatile in ("truncation", "padding", "post_processor", "version"):
        parts.pop(volatile, None)
    parts["added_tokens"] = sorted((t["id"], t["content"]) for t in parts["added_tokens"])
    template, text = template_of(tokenizer), tokenizer.chat_template
    more = {} if template == "chat" else {"template": template}
    if text and text not in TEMPLATES.values():  # another model's, by which dialogues are written
        more = {"template": str(text)}
    return key_hash({"tokenizer": parts, "ends": tokenizer.bos_token_id, **more})


def named_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """A tokenizer by folder (also a run's) or hub id, with our control tokens added where it lacks them.

    Raises:
        NewLLMError: not found or not reachable.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        for place in (folder, folder / "best", folder / "last"):
            if (place / "tokenizer.json").is_file():
                return _from_folder(place)
        raise UsageError(
            f"No tokenizer.json in {folder}, its best/ or last/: name a run or a tokenizer's folder."
        )
    if name.startswith((".", "/", "~")):
        raise UsageError(
            f"There is no folder {name}: name a run, a tokenizer's folder, a hub id, bpe, words or gpt2."
        )
    return _ours(_from_hub(name))


def _from_hub(name: str) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    from newllm_lib import hub_models
    from newllm_lib.hub import Asked

    asked = Asked(f"Tokenizer {name}", "use --tokenizer bpe, which is trained on your data")
    folder = hub_models.cached_snapshot(name, _holds_tokenizer)
    folder = folder or hub_models.fetch(name, hub_models.TEXT_FILES, asked)
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever a damaged or unknown file makes transformers raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise NewLLMError(f"{asked.what} cannot be loaded ({reason[:200]}): {asked.instead}.") from error


def _holds_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json", "tokenizer.model"))


def _from_folder(folder: Path) -> PreTrainedTokenizerFast:
    from transformers import PreTrainedTokenizerFast

    try:
        return _ours(PreTrainedTokenizerFast.from_pretrained(str(folder)))
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise NewLLMError(
            f"The tokenizer in {folder} cannot be loaded ({reason}): is the folder whole?"
        ) from error


def _ours(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerFast:
    """The tokenizer itself if it already is one of ours, else wrapped."""
    if not getattr(tokenizer, "is_fast", False):
        raise NewLLMError(
            f"Tokenizer {tokenizer.name_or_path} has no fast version (tokenizer.json): name another one."
        )
    ours = tokenizer.bos_token == tokenizer.eos_token == END_OF_TEXT and tokenizer.pad_token == PAD
    if ours and tokenizer.chat_template in TEMPLATES.values():
        return tokenizer
    unknown = tokenizer.unk_token if tokenizer.unk_token != tokenizer.eos_token else None  # GPT-2 has none
    return wrap(tokenizer.backend_tokenizer, unknown)
