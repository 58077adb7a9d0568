"""Records to token ids, with the original text's bytes and words, and what tokens cannot give back.

**Lost bytes** are what makes bits per byte honest for a tokenizer that loses text: the metric charges 8 bits
each.

- Byte-level BPE loses nothing: 0.
- `words` (lower-cased, split at white space): the UTF-8 bytes of every unknown word, and of every gap between
  words, before the first and after the last, that is not a single space between two words. Counted in the
  lower-cased text, as are the bytes.
- Any other tokenizer: each piece of text is decoded again; from the first character that differs to the last,
  all is lost (an upper bound, so such a tokenizer is never flattered).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from newllm_lib.data.foreign_turns import Document, TemplateEncoder, differing_bytes
from newllm_lib.data.records import Record
from newllm_lib.data.templates import (
    END_OF_TURN,
    ROLE_TOKENS,
    TURNS,
    has_own_turns,
    has_turns,
    render_turn,
    template_of,
)
from newllm_lib.data.tokenizer import WHITE_SPACE, cut_at_spaces, interruptibly
from newllm_lib.errors import NewLLMError, UsageError

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer
    from transformers import PreTrainedTokenizerBase

_SINGLE_SPACE = re.compile(f"(?<=[^{WHITE_SPACE}]) (?=[^{WHITE_SPACE}])")


class Encoded(NamedTuple):
    """Some records as a piece of the stream, with the counts of their text (or answers only)."""

    ids: np.ndarray  # (tokens,) each document begins with <|endoftext|>
    starts: np.ndarray  # (documents,) int64: where in `ids` the documents begin
    mask: np.ndarray | None  # (tokens,) uint8: 1 where a token counts as a target; None: all do
    account: np.ndarray  # int64: bytes, lost bytes, words, unknown tokens


class _Piece(NamedTuple):
    """A text that is tokenized by itself."""

    text: str
    counted: str  # of it, what the account counts
    answer: bool  # what assistants say, or a document: the targets where only answers count


class Encoder:
    """Encodes records with a tokenizer, on all cores.

    Works on a copy of the tokenizer in which control tokens are never found in text, whatever the text
    spells.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, answers_only: bool = False):
        import tokenizers

        self.backend = tokenizers.Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self.backend.encode_special_tokens = True
        self.backend.no_padding()
        self.backend.no_truncation()
        self.answers_only = answers_only
        self.lower_cased = lower_cases(self.backend)
        self.loss = kind_of_loss(self.backend)
        self.dtype = np.dtype("uint16" if len(tokenizer) <= 1 << 16 else "uint32")
        self.unk_id, first = tokenizer.unk_token_id, tokenizer.bos_token_id
        # Qwen's, say, has none: a document begins where the one before it ended
        self.end_of_text = tokenizer.eos_token_id if first is None else first
        self._lower = tokenizers.normalizers.Lowercase()
        self._labels = {role: tokenizer.convert_tokens_to_ids(token) for role, token in ROLE_TOKENS.items()}
        self._has_turns = has_own_turns(tokenizer)
        foreign = has_turns(tokenizer) and not self._has_turns
        # a tokenizer with a template of its own writes dialogues by it
        self.foreign = TemplateEncoder(tokenizer, self.loss == "none", answers_only) if foreign else None
        self.template = template_of(tokenizer)
        self._end_of_turn = tokenizer.convert_tokens_to_ids(END_OF_TURN)
        by_word = self.loss == "words"
        self._word_bytes: Any = _bytes_of_words(self.backend, self.unk_id) if by_word else None

    def encode(self, records: list[Record]) -> Encoded:
        """The records' documents in order. All texts of all records are tokenized in one call."""
        if not self.answers_only:
            refuse_muted(records)
        if self.foreign is not None and any(record.messages for record in records):
            return self._encode_by_template(self.foreign, records)
        pieces = [piece for record in records for piece in self._pieces(record)]
        texts = [piece.text for piece in pieces]
        encodings = interruptibly(
            lambda: self.backend.encode_batch_fast(texts, add_special_tokens=False), sum(map(len, texts))
        )
        remaining = iter(encodings)
        ids: list[int] = []
        starts, answers = [], []  # answers: from where to where in `ids`
        if not self._has_turns and any(record.messages for record in records):
            raise NewLLMError(
                "These are dialogues, and this model's tokenizer has no tokens for their turns (<|user|>, "
                "<|assistant|>) and no chat template: measure it on plain text (--data wikitext, or a folder "
                "of texts with --data_dir)."
            )
        for record in records:
            if not record.continues:
                starts.append(len(ids))
                ids.append(self.end_of_text)
            if record.text is not None:
                begin = len(ids)
                ids += next(remaining).ids
                answers.append((begin, len(ids)))
            for i, (role, _) in enumerate(record.messages):
                ids.append(self._labels[role])
                if TURNS[self.template][role].lead:
                    ids += next(remaining).ids
                begin = len(ids)
                ids += next(remaining).ids
                ids.append(self._end_of_turn)
                if role == "assistant" and i not in record.muted:
                    answers.append((begin, len(ids)))
        stream, mask = self._stream(ids, answers)
        account = self._account(pieces, encodings, stream, mask)
        return Encoded(stream, np.array(starts, dtype=np.int64), mask, account)

    def _stream(self, ids: list[int], answers: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray | None]:
        """Token ids, and where only answers count a mask of them."""
        stream = np.array(ids, dtype=self.dtype)
        if not self.answers_only:
            return stream, None
        mask = np.zeros(len(stream), dtype=np.uint8)
        for begin, end in answers:
            mask[begin:end] = 1
        return stream, mask

    def _encode_by_template(self, foreign: TemplateEncoder, records: list[Record]) -> Encoded:
        """The same of dialogues for a tokenizer that writes them by a chat template of its own."""
        dialogues = iter(foreign.encode([record for record in records if record.messages]))
        texts = [Record(record.text) for record in records if not record.messages]
        plain, number = self.encode(texts) if texts else None, 0
        ends = np.append(plain.starts, len(plain.ids)) if plain else None
        ids: list[int] = []
        starts, answers = [], []
        account = plain.account.copy() if plain else np.zeros(4, dtype=np.int64)
        for record in records:
            if record.messages:
                documents = next(dialogues)
            else:
                assert plain is not None and ends is not None
                own = plain.ids[ends[number] : ends[number + 1]].tolist()
                documents, number = [Document(own, [(1, len(own))], 0, 0, 0)], number + 1
            for document in documents:
                starts.append(len(ids))
                answers += [(begin + len(ids), end + len(ids)) for begin, end in document.answers]
                ids += document.ids
                account += np.array([document.bytes, document.lost_bytes, document.words, 0])
        stream, mask = self._stream(ids, answers)
        return Encoded(stream, np.array(starts, dtype=np.int64), mask, account)

    def _pieces(self, record: Record) -> list[_Piece]:
        """What of a record is tokenized at a time."""
        if record.text is not None:
            return [_Piece(record.text, record.text, True)]
        pieces = []
        asks = max((i for i, message in enumerate(record.messages) if message.role == "user"), default=-1)
        for i, (role, content) in enumerate(record.messages):
            lead, turn = render_turn(self.template, role, content, record.context if i == asks else "")
            if lead:
                pieces.append(_Piece(lead, lead, False))
            says = role == "assistant"
            # the space before an answer is not the author's
            pieces.append(_Piece(turn, content if says else turn, says and i not in record.muted))
        return pieces

    def _account(
        self, pieces: list[_Piece], encodings: list[Encoding], stream: np.ndarray, mask: np.ndarray | None
    ) -> np.ndarray:
        """(bytes, lost bytes, words, unknown tokens) of what counts."""
        if self.answers_only:
            encodings = [encoding for encoding, piece in zip(encodings, pieces, strict=True) if piece.answer]
            pieces = [piece for piece in pieces if piece.answer]
            assert mask is not None
            stream = stream[mask.astype(bool)]
        texts = [piece.counted for piece in pieces]
        words = sum(len(text.split()) for text in texts)
        if self.lower_cased:
            texts = ["".join(map(self._lower.normalize_str, cut_at_spaces(text))) for text in texts]
        size = sum(len(text.encode("utf-8")) for text in texts)
        unknown = int(np.count_nonzero(stream == self.unk_id)) if self.unk_id is not None else 0
        lost = 0
        if self.loss == "words":
            spaces = sum(len(_SINGLE_SPACE.findall(text)) for text in texts)
            lost = size - int(self._word_bytes[stream].sum()) - spaces
        elif self.loss == "other":
            ids = [encoding.ids for encoding in encodings]
            decoded = interruptibly(
                lambda: self.backend.decode_batch(ids, skip_special_tokens=False), len(stream)
            )
            lost = sum(differing_bytes(piece.text, back) for piece, back in zip(pieces, decoded, strict=True))
        return np.array([size, lost, words, unknown], dtype=np.int64)


def refuse_muted(records: Iterable[Record]) -> None:
    """Raise UsageError where a message is not to be learned, though everything counts."""
    if any(record.muted for record in records):
        raise UsageError(
            "Some messages say that they are not to be learned (a weight of 0): use --loss_on answers, "
            "or take that key out of the data."
        )


def lower_cases(backend: Tokenizer) -> bool:
    """Whether a tokenizer lower-cases its text."""
    return backend.normalizer is not None and backend.normalizer.normalize_str("A") == "a"


def kind_of_loss(backend: Tokenizer) -> str:
    """What a tokenizer may lose: "none" (byte-level BPE), "words" (unknown words, gaps), or "other"."""
    parts = json.loads(backend.to_str())
    model, before = parts["model"], parts["pre_tokenizer"] or {}
    if model["type"] == "WordLevel" and before.get("type") == "WhitespaceSplit":
        return "words"
    byte_level = before.get("type") == "ByteLevel" and not before["add_prefix_space"]
    complete = model["type"] == "BPE" and set(_byte_alphabet()) <= set(model["vocab"])
    return "none" if byte_level and complete and parts["normalizer"] is None else "other"


def _byte_alphabet() -> list[str]:
    from tokenizers import pre_tokenizers

    return pre_tokenizers.ByteLevel.alphabet()


def _bytes_of_words(backend: Tokenizer, unk_id: int) -> np.ndarray:
    sizes = np.zeros(backend.get_vocab_size(with_added_tokens=True), dtype=np.int64)
    for word, index in backend.get_vocab(with_added_tokens=True).items():
        sizes[index] = len(word.encode("utf-8"))
    # neither <unk> nor a control token gives back any text
    sizes[[unk_id, *backend.get_added_tokens_decoder()]] = 0
    return sizes
