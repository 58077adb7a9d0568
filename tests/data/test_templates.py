"""How turns are written: with control tokens alone, or in the words of the original's training text."""

from types import SimpleNamespace

import numpy as np
import pytest

from newllm_lib.data import prepare
from newllm_lib.data.blocks import Blocks
from newllm_lib.data.encoder import Encoder
from newllm_lib.data.records import Message, Record
from newllm_lib.data.schemas import parse_row
from newllm_lib.data.templates import TEMPLATES, encode_messages, template_of
from newllm_lib.generation import ChatSession
from newllm_lib.recipe import load_recipe
from tests.helpers.texts import paragraphs, write_jsonl


@pytest.fixture
def worded(bpe):
    """The small tokenizer with the original's words in its template."""
    from newllm_lib.data.tokenizer import wrap

    tokenizer = wrap(bpe.backend_tokenizer)
    tokenizer.chat_template = TEMPLATES["instruction"]
    return tokenizer


def read(tokenizer, ids) -> str:
    """The text without its control tokens."""
    return tokenizer.decode(ids, skip_special_tokens=True)


def packed(tokenizer, record, answers_only=False):
    return Encoder(tokenizer, answers_only).encode([record])


def test_the_originals_text_word_for_word(worded):
    row = {
        "instruction": "What is photosynthesis?",
        "context": "For plants.\n\nIn short.",
        "response": "It is a process.",
    }
    text = (
        "Instruction: What is photosynthesis?\nContext: For plants.\n\nIn short.\nResponse: It is a process."
    )
    assert read(worded, packed(worded, parse_row(row)).ids) == text
    assert "Context" not in read(worded, packed(worded, parse_row({**row, "context": ""})).ids)
    two = {"instruction": "One.\n\nTwo.", "input": "c", "output": "d"}
    assert (
        read(worded, packed(worded, parse_row(two)).ids)
        == "Instruction: One.\n\nTwo.\nContext: c\nResponse: d"
    )


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
        {"prompt": "a", "completion": "b"},
        {"instruction": "a", "response": "b"},
        {"data": ["a", "b"]},
    ],
)
def test_every_kind_of_row_reads_the_same(row, worded, bpe):
    record = parse_row(row)
    assert read(worded, packed(worded, record).ids) == "Instruction: a\nResponse: b"
    assert bpe.decode(packed(bpe, record).ids) == "<|endoftext|><|user|>a<|end|><|assistant|>b<|end|>"


DIALOGUE = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "The old\n house?"},
    {"role": "assistant", "content": "A green  one. "},
    {"role": "user", "content": "東京?"},
    {"role": "assistant", "content": "No."},
]


@pytest.mark.parametrize("name", TEMPLATES)
def test_apply_chat_template_gives_the_packed_ids(name, worded):
    worded.chat_template = TEMPLATES[name]
    ids = worded.apply_chat_template(DIALOGUE, return_dict=False)
    record = Record(None, tuple(Message(**message) for message in DIALOGUE))
    assert (
        ids
        == packed(worded, record).ids.tolist()
        == [worded.bos_token_id, *encode_messages(worded, DIALOGUE)]
    )
    asked = worded.apply_chat_template(DIALOGUE[:2], add_generation_prompt=True, return_dict=False)
    assert asked == [worded.bos_token_id, *encode_messages(worded, DIALOGUE[:2], add_generation_prompt=True)]
    assert ids[: len(asked)] == asked  # what is asked is how training began the answer


def test_the_texts_that_saved_tokenizers_hold_are_known_by_name(worded):
    """A tokenizer that was saved earlier is told by its template's text: one that changes would no longer be
    known as ours.
    """
    written = (
        "{{ '<|endoftext|>' }}{% for message in messages %}{% if message['role'] == 'assistant' %}{{ "
        "'<|assistant|>LEAD' }}{% generation %}{{ BEFOREmessage['content'] + '<|end|>' }}{% endgeneration "
        "%}{% else %}{{ '<|' + message['role'] + '|>' + WORDSmessage['content'] + AFTER'<|end|>' }}{% endif "
        "%}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>LEAD' }}{% endif %}"
    )
    words = {
        "chat": {"LEAD": "", "BEFORE": "", "WORDS": "", "AFTER": ""},
        "instruction": {
            "LEAD": "Response:",
            "BEFORE": "' ' + ",
            "WORDS": "('System: ' if message['role'] == 'system' else 'Instruction: ') + ",
            "AFTER": "'\n' + ('Context: ' + message['context'] + '\n' if message['context'] else '') + ",
        },
    }
    for name, parts in words.items():
        text = written
        for part, value in parts.items():
            text = text.replace(part, value)
        worded.chat_template = text
        assert template_of(worded) == name and TEMPLATES[name] == text


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_context_below_an_instruction_is_the_same_in_both(name, worded):
    worded.chat_template = TEMPLATES[name]
    row = {"instruction": "Sum it\n\nup.", "context": "A text.", "response": "A."}
    record = parse_row(row)
    asked = [m._asdict() for m in record.messages]
    if name == "instruction":  # it keeps the two apart
        asked[0] |= {"content": row["instruction"], "context": row["context"]}
    assert worded.apply_chat_template(asked, return_dict=False) == packed(worded, record).ids.tolist()


def test_a_context_can_be_given_to_the_template(worded):
    message = {"role": "user", "content": "Sum it up.", "context": "A text."}
    ids = worded.apply_chat_template([message], add_generation_prompt=True, return_dict=False)
    assert read(worded, ids) == "Instruction: Sum it up.\nContext: A text.\nResponse:"


def test_answers_count_without_the_words_before_them(worded):
    record = parse_row({"instruction": "a b", "context": "c", "response": "d e f"})
    encoded = packed(worded, record, answers_only=True)
    assert worded.decode(encoded.ids[encoded.mask.astype(bool)]) == " d e f<|end|>"
    assert encoded.account[0] == len("d e f")  # the space is not the author's
    masks = worded.apply_chat_template(
        [{"role": "user", "content": "a b", "context": "c"}, {"role": "assistant", "content": "d e f"}],
        return_assistant_tokens_mask=True,
        return_dict=True,
    )["assistant_masks"]
    assert masks == encoded.mask.tolist()


def test_lost_words_are_counted_with_the_words_of_the_template(words):
    words.chat_template, before = TEMPLATES["instruction"], words.chat_template
    try:
        encoded = packed(words, parse_row({"instruction": "the river", "response": "an odd river"}))
        text = "instruction: the river\nresponse:an odd river"
        assert encoded.account[0] == len(text)
        # neither `instruction:` nor `response:` nor `an odd` is in the vocabulary; a line break is no single
        # space
        assert (
            encoded.account[1] == len("instruction:") + len("\n") + len("response:") + len("anodd")
            and encoded.account[3] == 4
        )
    finally:
        words.chat_template = before


def test_the_recipe_decides_and_the_tokenizer_remembers(tmp_path, cache):
    rows = [{"instruction": t, "context": "", "response": f"Yes {i}."} for i, t in enumerate(paragraphs(300))]
    write_jsonl(tmp_path / "train.jsonl", rows)
    chosen = {"data_dir": str(tmp_path), "template": "instruction", "vocab_size": 400, "max_seq_length": 32}
    recipe = load_recipe("dolly", chosen, device_kind="cpu")
    assert "instruction" in recipe.run_name
    data = prepare(recipe, cache)
    plain = prepare(load_recipe("dolly", {**chosen, "template": "chat"}, device_kind="cpu"), cache)
    assert template_of(data.tokenizer) == "instruction" and data.fingerprint != plain.fingerprint
    text = read(data.tokenizer, data.train.ids)
    assert (
        text.count("Instruction: ")
        == text.count("Response: Yes ")
        == data.train.documents
        == plain.train.documents
    )
    learned = [
        Blocks(data.train, 32)[start]["labels"].numpy() for start in range(0, data.train.tokens - 1, 32)
    ]
    said = data.tokenizer.decode(np.concatenate(learned)[np.concatenate(learned) >= 0])
    assert (
        "Instruction" not in said and "Response" not in said and said.count("<|end|>") == data.train.documents
    )
    data.tokenizer.save_pretrained(tmp_path / "saved")
    again = prepare(
        load_recipe("dolly", {**chosen, "tokenizer": str(tmp_path / "saved")}, device_kind="cpu"), cache
    )
    assert again.train.path == data.train.path


def test_a_chat_asks_as_training_did_and_shows_the_answer_alone(worded, monkeypatch):
    read_ids, answer = [], worded(" The green house.", add_special_tokens=False)["input_ids"]

    class Said:
        """Stands for the model: keeps what it reads, and gives the same answer."""

        def __init__(self, *args):
            self.unread = []

        reset = use = lambda self, *args: None

        def write(self, most):
            read_ids.extend(self.unread)
            self.unread = []
            yield from answer

    monkeypatch.setattr("newllm_lib.generation.chat.Text", Said)
    session = ChatSession(
        SimpleNamespace(config=SimpleNamespace(vocab_size=len(worded))), worded, dialogue=True
    )
    assert "".join(session.reply("What colour?")) == "The green house."
    assert read_ids == worded.apply_chat_template(
        [{"role": "user", "content": "What colour?"}], add_generation_prompt=True, return_dict=False
    )
    assert read(worded, read_ids) == "Instruction: What colour?\nResponse:"
