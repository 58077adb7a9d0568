"""Token ids of pairs: in our own chat format, in a tokenizer's template, and as plain turns; what does not
fit is counted.
"""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from newllm_lib.data.preferences import Pair, encode_pairs
from newllm_lib.data.preferences.encode import PLAIN_TURNS, with_template
from newllm_lib.data.records import Message
from newllm_lib.data.tokenizer import train_bpe, wrap
from newllm_lib.errors import NewLLMError
from tests.helpers.texts import byte_level_bpe, paragraphs


def pair(prompt, chosen="yes, it is", rejected="no"):
    return Pair((Message("user", prompt),), chosen, rejected)


@pytest.fixture(scope="module")
def ours():
    return wrap(train_bpe(iter([paragraphs(20)]), 400))


@pytest.fixture
def foreign():
    backend = byte_level_bpe(400, ["<|endoftext|>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|endoftext|>", bos_token="<|endoftext|>"
    )


def test_our_own_models_read_pairs_as_they_read_dialogues(ours):
    row = encode_pairs([pair("old house")], ours, 64).rows[0]
    assert ours.decode(row["prompt_ids"]) == "<|endoftext|><|user|>old house<|end|><|assistant|>"
    assert ours.decode(row["chosen_ids"]) == "yes, it is<|end|>"
    template = ours.apply_chat_template(
        [{"role": "user", "content": "old house"}], add_generation_prompt=True, tokenize=False
    )
    assert template == ours.decode(row["prompt_ids"])


def test_control_tokens_in_a_users_text_stay_text(ours):
    row = encode_pairs([pair("a<|end|>b", "c<|endoftext|>", "d")], ours, 64).rows[0]
    end = ours.convert_tokens_to_ids("<|end|>")
    assert row["prompt_ids"].count(end) == 1 and ours.bos_token_id not in row["chosen_ids"]


def test_a_tokenizer_without_a_template_gets_turns_that_end_with_the_end_of_text(foreign):
    row = encode_pairs([pair("old house")], with_template(foreign), 64).rows[0]
    assert foreign.chat_template == PLAIN_TURNS and foreign.pad_token == "<|endoftext|>"
    assert foreign.decode(row["prompt_ids"]) == "old house<|endoftext|>"
    assert foreign.decode(row["chosen_ids"]) == "yes, it is<|endoftext|>"


def test_a_tokenizers_own_template_is_used(foreign):
    foreign.chat_template = (
        "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{{ eos_token }}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant] {% endif %}"
    )
    row = encode_pairs([pair("old house")], with_template(foreign), 64).rows[0]
    assert foreign.decode(row["prompt_ids"]) == "[user] old house<|endoftext|>\n[assistant] "
    assert foreign.decode(row["chosen_ids"]) == "yes, it is<|endoftext|>"


def test_what_does_not_fit_is_counted(ours):
    size = len(encode_pairs([pair("old house")], ours, 64).rows[0]["prompt_ids"])
    long, alike = pair("old house " * 20), pair("old house", "the river " * 9 + "a", "the river " * 9 + "b")
    encoded = encode_pairs([pair("old house"), long, alike], ours, size + 2)
    assert encoded.pairs == [pair("old house")] and (encoded.long_prompts, encoded.alike) == (1, 1)
    assert encoded.cut_answers == 2 and len(encoded.rows[0]["chosen_ids"]) == 2
    for words in ("1 pairs left out for a prompt", "1 pairs left out whose answers", "2 answers cut"):
        assert words in encoded.summary()


def test_no_pair_that_fits_is_one_line(ours):
    with pytest.raises(NewLLMError, match="No pair fits into 8 tokens .*raise --max_seq_length"):
        encode_pairs([pair("old house " * 20)], ours, 8)


def test_a_tokenizer_without_an_end_is_refused():
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_level_bpe(300, ["<x>"]))
    with pytest.raises(NewLLMError, match="no end-of-text token"):
        with_template(tokenizer)
