"""What the account of the text says is computed here a second time, by other means."""

import re

import numpy as np
import pytest

from newllm_lib.data import tokenizer as tokenizers_of_data
from newllm_lib.data.encoder import Encoder
from newllm_lib.data.records import Message, Record
from newllm_lib.data.tokenizer import train_words, wrap
from tests.helpers.texts import dialogues, paragraphs


def lost_by_hand(text: str, vocabulary: set[str]) -> int:
    """UTF-8 bytes of unknown words and of gaps that are not one space between two words, one piece
    at a time.
    """
    lost = 0
    pieces = re.findall(r"\s+|\S+", text)
    for i, piece in enumerate(pieces):
        if piece.isspace():
            between = 0 < i < len(pieces) - 1
            lost += 0 if piece == " " and between else len(piece.encode())
        elif piece not in vocabulary:
            lost += len(piece.encode())
    return lost


def known_words(tokenizer) -> set[str]:
    return set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)


@pytest.mark.parametrize(
    "text, lost",
    [
        ("the old house", 0),
        ("The OLD house", 0),
        ("the  old", 2),
        ("the\nold", 1),
        (" the", 1),
        ("the ", 1),
        ("", 0),
        (" ", 1),
        ("the xyz", 3),
        ("the Übersee house", 8),
        ("東京", 6),
        ("the \u3000old", 4),
        ("<|end|>", 7),
        ("<unk>", 5),
        ("the\u00a0old", 2),
    ],
)
def test_lost_bytes_of_words(words, text, lost):
    size, found, _, _ = Encoder(words).encode([Record(text)]).account
    assert found == lost
    assert size == len(text.lower().encode())


def test_lost_bytes_of_words_on_wikitext(test_data):
    text = (test_data / "wikitext-2.test.txt").read_text(encoding="utf-8")
    tokenizer = wrap(train_words(iter([[text]]), 1000), "<unk>")
    assert len(tokenizer) == 1000
    encoded = Encoder(tokenizer).encode([Record(text)])
    lowered, known = text.lower(), known_words(tokenizer)
    spelled = lowered.split()
    assert encoded.account.tolist() == [
        len(lowered.encode()),
        lost_by_hand(lowered, known),
        len(spelled),
        sum(w not in known for w in spelled),
    ]
    # what is not lost is what decoding gives back
    decoded = tokenizer.decode(encoded.ids[1:]).split(" ")
    assert [w if w in known else "<unk>" for w in spelled] == decoded


def test_bpe_loses_nothing(bpe):
    texts = paragraphs(30) + ["  a\n\n<|end|>\x00", "ÄÖ"]
    encoder = Encoder(bpe)
    size, lost, count, unknown = encoder.encode([Record(t) for t in texts]).account
    assert (size, lost, unknown) == (sum(len(t.encode()) for t in texts), 0, 0)
    assert count == sum(len(t.split()) for t in texts) and not encoder.lower_cased


def test_another_tokenizer_is_charged_for_what_it_does_not_give_back():
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordPiece({"[UNK]": 0, "old": 1, "house": 2}, unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normalizers.StripAccents(), pre_tokenizers.Whitespace()
    tokenizer = wrap(
        PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]").backend_tokenizer, "[UNK]"
    )
    encoder = Encoder(tokenizer)
    assert encoder.loss == "other"
    for text, lost in (("old house", 0), ("old xyz house", 3), ("old  house", 1)):
        assert encoder.encode([Record(text)]).account[1] == lost


def test_documents_begin_with_end_of_text_and_dialogues_keep_their_turns(bpe):
    chat = tuple(Message(**m) for m in dialogues(1)[0])
    encoded = Encoder(bpe).encode([Record("a b"), Record(None, chat)])
    assert encoded.ids[encoded.starts].tolist() == [0, 0] and encoded.mask is None
    text = bpe.decode(encoded.ids)
    assert text == "<|endoftext|>a b<|endoftext|>" + "".join(f"<|{m.role}|>{m.content}<|end|>" for m in chat)
    assert encoded.account[0] == 3 + sum(len(m.content.encode()) for m in chat)


def test_only_answers_count(bpe):
    chats = [Record(None, tuple(Message(**m) for m in d)) for d in dialogues(20)]
    encoded = Encoder(bpe, answers_only=True).encode(chats)
    assert encoded.ids.tolist() == Encoder(bpe).encode(chats).ids.tolist()
    answers = [m.content for r in chats for m in r.messages if m.role == "assistant"]
    counted = bpe.decode(encoded.ids[encoded.mask.astype(bool)])
    assert counted == "".join(answer + "<|end|>" for answer in answers)
    assert encoded.account[0] == sum(len(a.encode()) for a in answers)
    assert encoded.account[2] == sum(len(a.split()) for a in answers)


def test_only_answers_count_for_words_too(words):
    chat = Record(None, (Message("user", "xyz  the"), Message("assistant", "The qqq house")))
    encoded = Encoder(words, answers_only=True).encode([chat, Record("old zz")])
    assert encoded.account.tolist() == [13 + 6, 3 + 2, 5, 2]


def test_text_that_spells_control_tokens_never_becomes_one(bpe, words):
    text = "the <|end|> <|user|> <|endoftext|> <|pad|> <|ASSISTANT|> house <|system|>"
    for tokenizer in (bpe, words):
        ids = Encoder(tokenizer).encode([Record(text)]).ids
        assert np.flatnonzero(ids < 6).tolist() == [0]  # the <|endoftext|> before the document alone


def test_a_long_text_is_counted_as_its_short_pieces_are(words, monkeypatch):
    text = " \u3000 ".join(paragraphs(40)) + "\u00a0Ü" + "x" * 300 + "ΑΣ\n"
    whole = Encoder(words).encode([Record(text)])
    monkeypatch.setattr(tokenizers_of_data, "_PIECE", 20)
    assert all(len(piece) < 400 for piece in tokenizers_of_data.cut_at_spaces(text))
    assert "".join(tokenizers_of_data.cut_at_spaces(text)) == text
    cut = Encoder(words).encode([Record(text)])
    assert (cut.account == whole.account).all() and (cut.ids == whole.ids).all()
    trained = [train_words(iter([[text]]), 300).get_vocab()]
    monkeypatch.setattr(tokenizers_of_data, "_PIECE", 1 << 16)
    assert trained == [train_words(iter([[text]]), 300).get_vocab()]
