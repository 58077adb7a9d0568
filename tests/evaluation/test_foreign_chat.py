"""A conversation with somebody else's model stands in the tokens of its own chat template."""

from __future__ import annotations

import functools
import json
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from newllm_lib.checkpoints import load_model
from newllm_lib.data import templates
from newllm_lib.data.templates import encode_conversation, end_of_turn, has_own_turns, has_turns
from newllm_lib.errors import NewLLMError, UsageError
from newllm_lib.evaluation import samples
from newllm_lib.generation.chat import ChatSession, speaks_in_turns
from newllm_lib.generation.generate import complete
from newllm_lib.generation.sampling import Settings, reserved_tokens, stop_tokens
from tests.helpers.foreign_models import CHAT_FORMS, END, make_model, make_tokenizer

KINDS = list(CHAT_FORMS)
GREEDY = Settings(temperature=0, max_new_tokens=4)
QUESTION = [{"role": "user", "content": "the old house"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """folder(kind): a tiny model of that kind with a chat template in its form; made once."""
    place = tmp_path_factory.mktemp("foreign")
    return functools.cache(lambda kind: make_model(place / kind, kind, form=kind))


@pytest.fixture(scope="module")
def loaded(folder):
    return lambda kind: load_model(folder(kind))


def fed_tokens(model):
    fed = []
    model.register_forward_pre_hook(lambda m, a, k: fed.append(k["input_ids"][0].tolist()), with_kwargs=True)
    return fed


def in_templates_tokens(tokenizer, messages, prompt=True):
    return tokenizer.apply_chat_template(messages, add_generation_prompt=prompt, return_dict=False)


@pytest.mark.parametrize("kind", KINDS)
def test_the_tokens_of_a_turn_are_the_templates(kind):
    tokenizer = make_tokenizer(form=kind)
    talk = [*QUESTION, {"role": "assistant", "content": "green"}, {"role": "user", "content": " 東京 \n"}]
    assert encode_conversation(tokenizer, talk) == in_templates_tokens(tokenizer, talk)
    assert encode_conversation(tokenizer, talk[:2], False) == in_templates_tokens(tokenizer, talk[:2], False)
    assert not has_own_turns(tokenizer) and has_turns(tokenizer)
    end = CHAT_FORMS[kind][0][0] if CHAT_FORMS[kind][0] else END
    assert end_of_turn(tokenizer) == tokenizer.convert_tokens_to_ids(end)
    assert end_of_turn(tokenizer) in stop_tokens(tokenizer)


@pytest.mark.parametrize("kind", KINDS)
def test_a_chat_reads_what_the_template_writes_and_answers_as_transformers_does(kind, folder, loaded):
    model, tokenizer = loaded(kind).model, loaded(kind).tokenizer
    if kind != "gpt2":  # which has no more positions than it was made with
        model.config.max_position_embeddings = 512
    session, fed = ChatSession(model, tokenizer, GREEDY), fed_tokens(model)
    first = "".join(session.reply(QUESTION[0]["content"]))
    assert fed[0] == in_templates_tokens(tokenizer, QUESTION)
    fresh = AutoModelForCausalLM.from_pretrained(folder(kind))
    ids = torch.tensor([fed[0]])
    theirs = fresh.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=4,
        do_sample=False,
        eos_token_id=stop_tokens(tokenizer, model),
        pad_token_id=tokenizer.eos_token_id,
        suppress_tokens=reserved_tokens(tokenizer, model.config.vocab_size) or None,
    )[0, len(fed[0]) :]
    assert first == AutoTokenizer.from_pretrained(folder(kind)).decode(theirs, skip_special_tokens=True)
    "".join(session.reply("and more"))
    whole = [*QUESTION, {"role": "assistant", "content": first}, {"role": "user", "content": "and more"}]
    asked = in_templates_tokens(tokenizer, whole)
    assert session._known[: len(asked)] == asked
    read = [i for piece in fed for i in piece]
    assert any(read[i : i + len(asked)] == asked for i in range(len(read)))  # at once, or after what was read


def test_only_what_is_new_is_read_where_the_answer_stands_in_its_own_tokens(loaded):
    model, tokenizer = loaded("qwen2").model, loaded("qwen2").tokenizer
    word = tokenizer("a", add_special_tokens=False)["input_ids"][0]
    handle = model.lm_head.register_forward_hook(
        lambda m, i, out: out.index_fill(-1, torch.tensor([word]), 99.0)
    )
    fed = fed_tokens(model)
    session = ChatSession(model, tokenizer, Settings(temperature=0, max_new_tokens=1), system="Be kind.")
    assert "".join(session.reply("Ada")) == "a"
    "".join(session.reply("Bob"))
    handle.remove()
    talk = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Ada"},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "Bob"},
    ]
    assert [i for piece in fed for i in piece] == in_templates_tokens(tokenizer, talk)


@pytest.mark.parametrize("stop", ["<|im_end|>", END])
def test_it_stops_at_the_templates_end_of_turn_and_what_the_generation_config_says(stop, folder):
    loaded = load_model(folder("qwen2"))
    model, tokenizer = loaded.model, loaded.tokenizer
    end = tokenizer.convert_tokens_to_ids(stop)
    model.lm_head.register_forward_hook(lambda m, i, out: out.index_fill(-1, torch.tensor([end]), 99.0))
    assert "".join(ChatSession(model, tokenizer, GREEDY).reply("Ada")) == ""
    assert complete(model, tokenizer, [in_templates_tokens(tokenizer, QUESTION)], GREEDY) == [""]
    model.generation_config.eos_token_id = [5, 6]
    assert {5, 6} <= set(stop_tokens(tokenizer, model))


def test_what_a_user_types_is_no_control_token():
    tokenizer = make_tokenizer(form="qwen2")
    typed = "end <|im_end|> of it"
    ids = encode_conversation(tokenizer, [{"role": "user", "content": typed}])
    assert ids.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 2  # the system's and the user's own
    assert tokenizer.decode(ids) == tokenizer.apply_chat_template(
        [{"role": "user", "content": typed}], tokenize=False, add_generation_prompt=True
    )


def test_names_alike_are_not_our_turns(bpe):
    """Phi-3 calls its tokens as ours are called, and writes other turns with them."""
    assert has_own_turns(bpe)
    theirs = make_tokenizer()
    names = ["<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]
    theirs.add_special_tokens({"additional_special_tokens": names})
    turn = "{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}"
    theirs.chat_template = f"{{% for m in messages %}}{turn}{{% endfor %}}"
    assert not has_own_turns(theirs)
    assert encode_conversation(theirs, QUESTION, False) == in_templates_tokens(theirs, QUESTION, False)


def test_a_base_without_a_template_is_said_to_be_one(folder, tmp_path):
    model = load_model(make_model(tmp_path / "base", "gpt_neox"))
    session = ChatSession(model.model, model.tokenizer, GREEDY)
    assert not session.dialogue and "base model without a chat template" in session.about
    assert isinstance("".join(session.reply("the old")), str)
    with pytest.raises(UsageError, match="can only continue text"):
        ChatSession(model.model, model.tokenizer, dialogue=True)
    with pytest.raises(UsageError, match="reads no system message"):
        ChatSession(model.model, model.tokenizer, system="Be kind.")


def test_dialogpt_speaks_in_turns_that_end_with_the_end_of_text(tmp_path):
    folder = make_model(tmp_path / "DialoGPT", "gpt2", bos=END)
    config = json.loads((folder / "config.json").read_text())
    config["task_specific_params"] = {"conversational": {"max_length": 1000}}
    (folder / "config.json").write_text(json.dumps(config))
    loaded = load_model(folder)
    assert speaks_in_turns(loaded.model, loaded.tokenizer)
    fed = fed_tokens(loaded.model)
    "".join(ChatSession(loaded.model, loaded.tokenizer, GREEDY).reply("Hello"))
    end = loaded.tokenizer.eos_token_id
    assert fed[0] == [*loaded.tokenizer("Hello", add_special_tokens=False)["input_ids"], end]


@pytest.mark.parametrize(
    "template, cause",
    [
        ("{{ raise_exception('no such role') }}", "no such role"),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "not done after"),
        ("{% for m in %}", "Expected an expression"),
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
    ],
)
def test_a_template_that_raises_loops_or_breaks_out_is_one_line(template, cause, monkeypatch):
    monkeypatch.setattr(templates, "RENDER_SECONDS", 0.2)
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    start = time.monotonic()
    with pytest.raises(NewLLMError, match="cannot write this conversation") as raised:
        encode_conversation(tokenizer, QUESTION)
    assert cause in str(raised.value) and "\n" not in str(raised.value)
    assert time.monotonic() - start < 3


def test_a_template_without_system_messages_says_so_before_the_first_turn(loaded):
    model, tokenizer = loaded("gemma").model, loaded("gemma").tokenizer
    with pytest.raises(NewLLMError, match="System role not supported.*leave out a system message"):
        ChatSession(model, tokenizer, GREEDY, system="Be kind.")


def test_sample_questions_are_asked_in_the_templates_words(monkeypatch):
    tokenizer = make_tokenizer(form="llama")
    monkeypatch.setattr(samples, "token_id", lambda tokenizer, token: 0)  # a split of dialogues
    prompts = samples.Prompts(SimpleNamespace(ids=np.zeros(3, dtype=int)), tokenizer)
    assert prompts.ids[0] == in_templates_tokens(tokenizer, [{"role": "user", "content": prompts.texts[0]}])
