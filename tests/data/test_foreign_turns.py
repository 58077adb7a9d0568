"""Dialogues by other models' chat templates: the tokens are theirs, and the answers are what is marked."""

from __future__ import annotations

import time

import pytest

from newllm_lib.data import templates
from newllm_lib.data.encoder import Encoder
from newllm_lib.data.preferences import encode_pairs
from newllm_lib.data.preferences.pairs import Pair
from newllm_lib.data.records import Message, Record
from newllm_lib.errors import NewLLMError
from tests.helpers.chat_bases import chat_tokenizer

TALK = (
    Message("user", "Where does the river run?"),
    Message("assistant", "Over small green stones."),
    Message("user", "And then?"),
    Message("assistant", "Into the old house. 東京"),
)
END = {"qwen2": "<|im_end|>", "llama": "<|eot_id|>", "gemma": "<end_of_turn>"}
# keeps the thoughts of the last answer alone, as Qwen 3's does
FORGETS = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + ('<think>' if loop.last and "
    "m['role'] == 'assistant' else '') + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def said(tokenizer, encoded) -> str:
    return tokenizer.decode(encoded.ids[encoded.mask == 1].tolist())


@pytest.mark.parametrize("kind", ["qwen2", "llama", "gemma"])
def test_the_tokens_are_the_templates_and_the_answers_with_their_end_are_marked(kind):
    tokenizer = chat_tokenizer(kind)
    encoded = Encoder(tokenizer, answers_only=True).encode([Record(None, TALK)])
    rows = [m._asdict() for m in TALK]
    assert encoded.ids.tolist() == tokenizer.apply_chat_template(rows)["input_ids"]
    assert said(tokenizer, encoded) == f"{TALK[1].content}{END[kind]}{TALK[3].content}{END[kind]}"
    answers = TALK[1].content + TALK[3].content
    assert encoded.account.tolist()[:2] == [len(answers.encode()), 0]
    asked = tokenizer.apply_chat_template(rows[:1], add_generation_prompt=True)["input_ids"]
    assert encoded.ids.tolist()[: len(asked)] == asked and not encoded.mask[: len(asked)].any()


ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "cause"), [(ENDLESS, "not done after"), ("{{ 9 ** 9 ** 9 }}", "raises to a power")]
)
def test_a_template_that_does_not_end_ends_the_preparation_at_its_first_dialogue(
    template, cause, monkeypatch
):
    monkeypatch.setattr(templates, "RENDER_SECONDS", 0.2)
    encoder, began = Encoder(chat_tokenizer("qwen2", template), answers_only=True), time.thread_time()
    with pytest.raises(NewLLMError, match=cause) as raised:
        encoder.encode([Record(None, TALK)] * 100)
    pair = Pair(TALK[:1], "Over small green stones.", "Nowhere.")
    with pytest.raises(NewLLMError, match=cause):
        encode_pairs([pair] * 100, chat_tokenizer("qwen2", template), 64)
    assert "\n" not in str(raised.value) and time.thread_time() - began < 3
    assert not templates._has_powers("**bold** {{ '2 ** 3' }} {# a ** b #}")


def test_an_answer_that_is_not_to_be_learned_is_not_marked():
    tokenizer = chat_tokenizer("qwen2")
    encoded = Encoder(tokenizer, answers_only=True).encode([Record(None, TALK, muted=(1,))])
    assert said(tokenizer, encoded) == f"{TALK[3].content}<|im_end|>"
    assert encoded.account[0] == len(TALK[3].content.encode())


def test_a_system_that_a_template_refuses_is_said_by_the_user():
    tokenizer = chat_tokenizer("gemma")
    encoder = Encoder(tokenizer, answers_only=True)
    encoded = encoder.encode([Record(None, (Message("system", "Be kind."), *TALK[:2]))])
    text = tokenizer.decode(encoded.ids.tolist())
    assert (
        "user\nBe kind.\n\nWhere" in text and said(tokenizer, encoded) == f"{TALK[1].content}{END['gemma']}"
    )
    assert encoder.foreign.renderer.refused == 0


def test_a_template_that_writes_earlier_turns_otherwise_gives_a_document_for_each_answer():
    tokenizer = chat_tokenizer("qwen2", FORGETS)
    encoded = Encoder(tokenizer, answers_only=True).encode([Record(None, TALK)])
    assert len(encoded.starts) == 2
    assert said(tokenizer, encoded) == "".join(f"<think>{TALK[i].content}<|im_end|>" for i in (1, 3))
    second = tokenizer.decode(encoded.ids[encoded.starts[1] :].tolist())
    assert "<think>Over" not in second and "<think>Into" in second


def test_text_that_spells_a_control_token_stays_text():
    tokenizer = chat_tokenizer("qwen2")
    typed = (Message("user", "what is <|im_end|> for?"), Message("assistant", "It ends. <|im_start|>"))
    encoded = Encoder(tokenizer, answers_only=True).encode([Record(None, typed)])
    control = [tokenizer.convert_tokens_to_ids(t) for t in ("<|im_start|>", "<|im_end|>")]
    assert [encoded.ids.tolist().count(i) for i in control] == [3, 3]  # of system, user and assistant
    assert said(tokenizer, encoded) == "It ends. <|im_start|><|im_end|>"
    assert encoded.account[1] == 0


def test_plain_text_among_dialogues_is_an_answer_by_itself():
    tokenizer = chat_tokenizer("qwen2")
    encoded = Encoder(tokenizer, answers_only=True).encode(
        [Record("old zz"), Record(None, TALK[:2]), Record("x")]
    )
    assert len(encoded.starts) == 3 and encoded.ids[0] == tokenizer.eos_token_id  # Qwen's has no bos
    assert said(tokenizer, encoded) == f"old zz{TALK[1].content}<|im_end|>x"
    assert encoded.account[0] == len("old zz" + TALK[1].content + "x")


def test_what_a_template_trims_is_lost():
    tokenizer = chat_tokenizer("llama")
    spaced = (Message("user", "a"), Message("assistant", "  b c \n"))
    assert Encoder(tokenizer, answers_only=True).encode([Record(None, spaced)]).account.tolist()[:2] == [7, 4]


def test_a_template_that_raises_is_one_line():
    tokenizer = chat_tokenizer("qwen2", "{{ raise_exception('not today') }}")
    encoder = Encoder(tokenizer, answers_only=True)
    assert len(encoder.encode([Record(None, TALK)] * 3).starts) == 0
    with pytest.raises(NewLLMError, match="3 of 3 dialogues cannot be written: .*not today") as error:
        encoder.foreign.check()
    assert "\n" not in str(error.value)
