"""Preference pairs as people bring them, and bases that are not what they seem."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
)

from newllm_lib.checkpoints import load_model
from newllm_lib.data.preferences import encode_pairs, load_preferences
from newllm_lib.data.preferences.encode import with_template
from newllm_lib.data.records import Message
from newllm_lib.errors import NewLLMError
from newllm_lib.models.lora import lora_config
from newllm_lib.recipe import load_recipe
from tests.helpers.cases import answered, asked
from tests.helpers.texts import byte_level_bpe, write_jsonl

ROWS = 30
RULE = "Speak like a clerk."
U, A, S = "user", "assistant", "system"
HUMAN = "\n\nHuman: {}\n\nAssistant:"


def said(role, content):
    return {"role": role, "content": content}


def bad(i):
    return f"Nobody has weighed number {i}."


def both(i, prompt, **more):
    return {"prompt": prompt, "chosen": answered(i), "rejected": bad(i), **more}


# a kind of row: i -> (row, what stands before the question)
KINDS = {
    "a system column": lambda i: (both(i, asked(i), system=RULE), [(S, RULE)]),
    "an empty system message": lambda i: (both(i, [said(S, ""), said(U, asked(i))]), []),
    "earlier turns": lambda i: (both(i, asked(i), history=[["a", "b"]]), [(U, "a"), (A, "b")]),
    "Orca": lambda i: (
        {"system": RULE, "question": asked(i), "chosen": answered(i), "rejected": bad(i)},
        [(S, RULE)],
    ),
    "Alpaca": lambda i: ({"instruction": asked(i), "input": "", "output": [answered(i), bad(i)]}, []),
    "ShareGPT": lambda i: (
        {
            "conversations": [{"from": "human", "value": asked(i)}],
            "chosen": {"from": "gpt", "value": answered(i)},
            "rejected": {"from": "gpt", "value": bad(i)},
        },
        [],
    ),
    "UltraFeedback": lambda i: (
        {
            "prompt": asked(i),
            "messages": [said(U, asked(i)), said(A, answered(i))],
            "chosen": [said(U, asked(i)), said(A, answered(i))],
            "rejected": [said(U, asked(i)), said(A, bad(i))],
            "score_chosen": 8.0,
        },
        [],
    ),
    "OpenAI": lambda i: (
        {
            "input": {"messages": [said(S, RULE), said(U, asked(i))]},
            "preferred_output": [said(A, answered(i))],
            "non_preferred_output": [said(A, bad(i))],
        },
        [(S, RULE)],
    ),
    "a text prompt with messages as answers": lambda i: (
        {"prompt": asked(i), "chosen": [said(A, answered(i))], "rejected": [said(A, bad(i))]},
        [],
    ),
    "labels in the prompt": lambda i: (
        {
            "prompt": HUMAN.format(asked(i)),
            "chosen": f" {answered(i)}",
            "rejected": f" {bad(i)}",
        },
        [],
    ),
    "labels, and the prompt repeated": lambda i: (
        {
            "prompt": HUMAN.format(asked(i)),
            "chosen": HUMAN.format(asked(i)) + f" {answered(i)}",
            "rejected": HUMAN.format(asked(i)) + f" {bad(i)}",
        },
        [],
    ),
    "labels of several turns": lambda i: (
        {
            "prompt": f"Human: a\n\nAssistant: b{HUMAN.format(asked(i))}",
            "chosen": answered(i),
            "rejected": bad(i),
        },
        [(U, "a"), (A, "b")],
    ),
    "the prompt repeated": lambda i: (
        {
            "prompt": asked(i),
            "chosen": f"{asked(i)}\n{answered(i)}",
            "rejected": f"{asked(i)}\n{bad(i)}",
        },
        [],
    ),
    "ChatML": lambda i: (
        {
            "prompt": f"<|im_start|>system\n{RULE}<|im_end|>\n<|im_start|>user\n{asked(i)}<|im_end|>\n"
            "<|im_start|>assistant\n",
            "chosen": f"{answered(i)}<|im_end|>",
            "rejected": f"{bad(i)}<|im_end|>",
        },
        [(S, RULE)],
    ),
}


def pairs_of(tmp_path, rows):
    path = write_jsonl(tmp_path / "pairs.jsonl", rows)
    found = load_preferences(
        load_recipe("dpo", {"sized_for": "cpu", "data": str(path), "max_samples": "none"})
    )
    return found, {pair.question(): pair for pair in (*found.train, *found.evaluation)}


KINDS |= {
    "columns in capitals": lambda i: (
        {"Prompt": asked(i), "Chosen": answered(i), "Rejected": bad(i), "System": RULE},
        [(S, RULE)],
    ),
    "accepted and rejected": lambda i: (
        {"question": asked(i), "accepted": answered(i), "rejected": bad(i)},
        [],
    ),
    "answers in lists": lambda i: (
        {"prompt": asked(i), "chosen": [answered(i)], "rejected": [bad(i)]},
        [],
    ),
    "labels in Japanese": lambda i: (both(i, f"ユーザー: {asked(i)}\nアシスタント:"), []),
    "a label before the prompt alone": lambda i: (both(i, f"Human: {asked(i)}"), []),
    "a label in each": lambda i: (
        {
            "prompt": f"\n\nHuman: {asked(i)}",
            "chosen": f"\n\nAssistant: {answered(i)}",
            "rejected": f"\n\nAssistant: {bad(i)}",
        },
        [],
    ),
    "conversations as JSON": lambda i: (
        {
            "chosen": json.dumps([said(U, asked(i)), said(A, answered(i))]),
            "rejected": json.dumps([said(U, asked(i)), said(A, bad(i))]),
        },
        [],
    ),
    "ms-swift": lambda i: (
        {"messages": [said(U, asked(i)), said(A, answered(i))], "rejected_response": bad(i)},
        [],
    ),
    "ms-swift's older form": lambda i: (
        {"system": RULE, "query": asked(i), "response": answered(i), "rejected_response": bad(i)},
        [(S, RULE)],
    ),
    "non_preferred": lambda i: (
        {"prompt": asked(i), "preferred": answered(i), "non_preferred": bad(i)},
        [],
    ),
    "Stack Exchange": lambda i: (
        {"question": asked(i), "response_j": answered(i), "response_k": bad(i)},
        [],
    ),
    "a system column, and rows of no weight": lambda i: (
        both(i, asked(i), system=RULE, weight=1),
        [(S, RULE)],
    ),
    "a token that ends the answers": lambda i: (
        {"prompt": asked(i), "chosen": f"{answered(i)}</s>", "rejected": f"{bad(i)}</s>"},
        [],
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_form_gives_the_pair_that_it_means(kind, tmp_path):
    rows, before = zip(*(KINDS[kind](i) for i in range(ROWS)), strict=True)
    _, pairs = pairs_of(tmp_path, list(rows))
    for i in range(ROWS):
        pair = pairs[asked(i)]
        assert [tuple(message) for message in pair.prompt] == [*before[i], (U, asked(i))]
        assert (pair.chosen, pair.rejected) == (answered(i), bad(i))


def test_single_answers_with_a_label_are_put_together_by_their_prompt(tmp_path):
    rows = [
        row
        for i in range(ROWS)
        for row in (
            {"prompt": asked(i), "completion": answered(i), "label": True},
            {"prompt": asked(i), "completion": bad(i), "label": False},
        )
    ]
    found, pairs = pairs_of(tmp_path, [*rows, {"prompt": "Alone?", "completion": "Yes.", "label": True}])
    assert len(pairs) == ROWS and all(pairs[asked(i)].chosen == answered(i) for i in range(ROWS))
    assert "1 × a single answer" in found.description()


def test_columns_that_are_not_read_are_named(tmp_path):
    found, _ = pairs_of(tmp_path, [both(i, asked(i), rating=3, note=None) for i in range(ROWS)])
    assert any("not read: rating" in line for line in found.report.lines())
    assert not any("note" in line for line in found.report.lines())


def test_what_is_read_beside_the_answers_is_what_is_used(tmp_path):
    rows = [both(i, asked(i), query="Else?", response="Unused.", label=1) for i in range(ROWS)]
    found, pairs = pairs_of(tmp_path, rows)
    assert set(pairs) == {asked(i) for i in range(ROWS)}
    assert any(line.strip() == "not read: query, response, label" for line in found.report.lines())
    numbers, _ = pairs_of(
        tmp_path, [{"prompt": asked(i), "chosen": i, "rejected": i + 1} for i in range(ROWS)]
    )
    assert {(pair.chosen, pair.rejected) for pair in numbers.train} <= {
        (f"{i}", f"{i + 1}") for i in range(ROWS)
    }


def test_pairs_are_shown_and_checked_by_the_command(tmp_path, monkeypatch, capsys):
    from newllm_lib.cli import main

    monkeypatch.setenv("NEWLLM_CACHE", str(tmp_path / "cache"))
    path = write_jsonl(tmp_path / "pairs.jsonl", [both(i, asked(i), rating=3) for i in range(ROWS)])
    for action in ("show", "check"):
        assert main(["data", action, "dpo", "--data", str(path), "--sized_for", "cpu"]) == 0
        said = capsys.readouterr().out
        assert "not read: rating" in said and "held out" in said
    assert main(["data", "check", str(path), "--data", str(path)]) == 2
    assert "both name data" in capsys.readouterr().err


def test_an_empty_prompt_is_one_and_no_other_is(tmp_path):
    rows = [both(i, asked(i)) for i in range(ROWS)]
    found, _ = pairs_of(tmp_path, [*rows, both(90, "")])
    assert "1 × an empty prompt" in found.description()


TAKES_TURNS = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate user/assistant') }}{% endif %}"
    "{{ m['content'] + eos_token }}{% endfor %}"
)


@pytest.fixture
def strict():
    """A tokenizer whose template wants user and assistant in turn, as Mistral's and Gemma's do."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_level_bpe(300, ["</s>"]), eos_token="</s>")
    tokenizer.chat_template = TAKES_TURNS
    return with_template(tokenizer)


def test_a_pair_that_a_template_refuses_is_left_out_and_counted(strict, tmp_path):
    rows = [both(i, [said(S, RULE), said(U, asked(i))] if i in (4, 9) else asked(i)) for i in range(ROWS)]
    rows[5]["prompt"] = [said(U, "One."), said(U, asked(5))]
    _, pairs = pairs_of(tmp_path, rows)
    encoded = encode_pairs(pairs.values(), strict, 400)
    assert len(encoded.rows) == len(encoded.pairs) == ROWS - 3
    assert (
        encoded.summary()
        == "3 pairs left out that the base's chat template refuses (Roles must alternate user/assistant)"
    )
    refused = [pair for pair in pairs.values() if len(pair.prompt) > 1]
    assert all(isinstance(message, Message) for pair in refused for message in pair.prompt)
    with pytest.raises(
        NewLLMError, match="No pair is left .*Roles must alternate.* name another --base"
    ) as e:
        encode_pairs(refused, strict, 400)
    assert "\n" not in str(e.value)


def saved_tokenizer(place):
    PreTrainedTokenizerFast(tokenizer_object=byte_level_bpe(300, ["</s>"]), eos_token="</s>").save_pretrained(
        place
    )


@pytest.mark.parametrize("name", ["base", "best"])
def test_a_pickle_is_refused_with_the_way_to_convert_it(name, tmp_path):
    place = tmp_path / name
    saved_tokenizer(place)
    GPT2Config(vocab_size=300, n_embd=8, n_layer=1, n_head=1).save_pretrained(place)
    torch.save({}, place / "pytorch_model.bin")
    with pytest.raises(NewLLMError, match=r"only as a pickle .*\.save_pretrained\(FOLDER\)") as error:
        load_model(str(place))
    assert "\n" not in str(error.value)


def test_what_is_no_language_model_is_said_before_how_it_is_saved(tmp_path):
    saved_tokenizer(tmp_path / "t5")
    T5Config(vocab_size=300).save_pretrained(tmp_path / "t5")
    torch.save({}, tmp_path / "t5" / "pytorch_model.bin")
    with pytest.raises(NewLLMError, match="no causal language model of text"):
        load_model(str(tmp_path / "t5"))


def test_mamba_gets_adapters_where_it_can_have_them():
    from peft import get_peft_model

    model = MambaForCausalLM(MambaConfig(vocab_size=30, hidden_size=8, state_size=4, num_hidden_layers=1))
    adapted = get_peft_model(model, lora_config(model, 2, 4.0, 0.0))
    trained = [name for name, p in adapted.named_parameters() if p.requires_grad]
    names = {name.split(".lora_")[0].split(".")[-1] for name in trained}
    assert names == {"in_proj", "x_proj", "dt_proj"}
    plain = GPT2LMHeadModel(GPT2Config(vocab_size=30, n_embd=8, n_layer=1, n_head=1))
    assert get_peft_model(plain, lora_config(plain, 2, 4.0, 0.0))
