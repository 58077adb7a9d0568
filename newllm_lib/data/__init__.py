"""From a recipe to packed tokens: sources → records → tokenizer → packed splits.

Only this room knows sources, tokenizers and packing. Everyone else asks `prepare` (training) or `load_split`
(evaluating a finished run with the run's own tokenizer), and cuts blocks with `newllm_lib.data.blocks`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from newllm_lib import console

if TYPE_CHECKING:
    from newllm_lib.data.packing import PackedSplit


@dataclass
class PreparedData:
    """All that a run needs to know of its data."""

    tokenizer: object  # transformers.PreTrainedTokenizerFast
    train: PackedSplit
    validation: PackedSplit
    test: PackedSplit
    description: str  # one line: source, documents, tokens, vocabulary, share of <unk>
    fingerprint: str  # the same if and only if tokenizer and tokens of all splits are: for exact resume


def prepare(recipe, cache_dir: str | Path | None = None, tokenizer=None) -> PreparedData:
    """Make (or find in the cache) everything that training on a recipe's data needs, saying what is done.

    Args:
        recipe: a `Recipe`; its fields data, data_dir, max_samples, tokenizer, vocab_size, max_seq_length and loss_on are used.
        cache_dir: where prepared data is kept; default: $NEWLLM_CACHE, else ~/.cache/newllm.
        tokenizer: another run's, to use instead of the recipe's.
    Raises:
        NewLLMError: one line that says what is wrong with the data and how to mend it.
    """
    from newllm_lib.data.cache import cache_root, key_hash
    from newllm_lib.data.packing import check_answers, check_length, pack
    from newllm_lib.data.sources import open_source
    from newllm_lib.data.splits import SPLITS, check_train
    from newllm_lib.data.tokenizer import load_tokenizer

    cache = cache_root(cache_dir)
    source = open_source(recipe, cache)
    check_train(source, set(SPLITS))
    tokenizer = tokenizer or load_tokenizer(recipe, source, cache)
    answers_only = recipe.loss_on == "answers"
    packed = pack(source, tokenizer, list(SPLITS), cache, max_samples=recipe.max_samples, answers_only=answers_only)
    for split in packed.values():
        check_length(split, recipe.max_seq_length)
        check_answers(split)
    train = packed["train"]
    description = (
        f"{source.title}: {train.documents:,} documents, {console.count(train.tokens)} tokens to train on "
        f"(validation {console.count(packed['validation'].tokens)}, test {console.count(packed['test'].tokens)}), "
        f"vocabulary {len(tokenizer):,}, <unk> {100 * train.unk_share:.1f} %"
        + (", text lower-cased" if train.lower_cased else "")
        + (f", loss on the answers ({100 * train.loss_mask.mean():.0f} % of the tokens)" if answers_only else "")
    )
    fingerprint = key_hash({split: part.path.name for split, part in packed.items()})
    return PreparedData(tokenizer, train, packed["validation"], packed["test"], description, fingerprint)


def load_split(recipe, tokenizer, split: str, cache_dir: str | Path | None = None) -> PackedSplit:
    """One split of a recipe's data, packed with a given tokenizer (a finished run's own).

    Raises:
        NewLLMError: as `prepare`.
    """
    from newllm_lib.data.cache import cache_root
    from newllm_lib.data.packing import check_answers, pack
    from newllm_lib.data.sources import open_source
    from newllm_lib.data.splits import SPLITS, check_train
    from newllm_lib.errors import UsageError

    if split not in SPLITS:
        raise UsageError(f"Unknown split {split!r}: use one of {', '.join(SPLITS)}.")
    cache = cache_root(cache_dir)
    source = open_source(recipe, cache)
    check_train(source, {split})
    answers_only = recipe.loss_on == "answers"
    packed = pack(source, tokenizer, [split], cache, max_samples=recipe.max_samples, answers_only=answers_only)[split]
    check_answers(packed)
    return packed
