"""Preference training on other people's architectures, as the bases that the notebook offers have them: tiny,
made here.
"""

from __future__ import annotations

import json
import math

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from newllm_lib.training import train
from newllm_lib.training.preferences import preference_task
from tests.helpers.loading import load_run
from tests.helpers.preference_bases import recipe
from tests.helpers.texts import byte_level_bpe

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
LENGTH = 256


def open_calm(folder, size, ends):
    """cyberagent/open-calm: GPT-NeoX, head and embedding apart, no chat template."""
    config = GPTNeoXConfig(
        vocab_size=size, max_position_embeddings=LENGTH, tie_word_embeddings=False, **SMALL, **ends
    )
    GPTNeoXForCausalLM(config).save_pretrained(folder)
    return {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|padding|>"}


def sarashina(folder, size, ends):
    """sbintuitions/sarashina2.2-instruct: Llama, a chat template of its own."""
    config = LlamaConfig(
        vocab_size=size, max_position_embeddings=LENGTH, num_key_value_heads=1, **SMALL, **ends
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    template = (
        "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + eos_token }}{% "
        "endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    return {
        "bos_token": "<s>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|padding|>",
        "chat_template": template,
    }


def rinna(folder, size, ends):
    """rinna/japanese-gpt2: GPT-2, ends of its own, no chat template."""
    config = GPT2Config(vocab_size=size, n_positions=LENGTH, n_embd=32, n_layer=1, n_head=2, **ends)
    GPT2LMHeadModel(config).save_pretrained(folder)
    return {"bos_token": "<s>", "eos_token": "<|endoftext|>", "pad_token": "<|padding|>"}


@pytest.mark.parametrize("make", [open_calm, sarashina, rinna])
def test_a_base_of_another_architecture_is_trained_measured_and_loaded(make, tmp_path, monkeypatch):
    monkeypatch.setattr(preference_task, "_WATCHED", 2)
    monkeypatch.setattr(preference_task, "collapsed", lambda now, before: None)  # random weights
    torch.manual_seed(0)
    backend = byte_level_bpe(420, ["<|endoftext|>", "<|padding|>", "<s>", "<|user|>", "<|assistant|>"])
    ends = {"eos_token_id": 0, "pad_token_id": 1, "bos_token_id": 2}
    words = make(tmp_path / "base", backend.get_vocab_size(), ends)
    PreTrainedTokenizerFast(tokenizer_object=backend, **words).save_pretrained(tmp_path / "base")
    small = {
        "max_seq_length": LENGTH,
        "max_samples": 24,
        "eval_pairs": 8,
        "max_steps": 4,
        "learning_rate": 1e-2,
    }
    run = train(recipe(tmp_path, tmp_path / "base", **small))
    rows = [row for row in run.metrics() if "loss" in row]
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    result = json.loads((run.path / "preferences.json").read_text(encoding="utf-8"))
    assert result["after"]["figures"]["margin"] != result["before"]["figures"]["margin"]
    adapters = json.loads((run.best / "adapter_config.json").read_text(encoding="utf-8"))
    assert not {"lm_head", "embed_out"} & set(adapters["target_modules"])
    model, tokenizer, _ = load_run(run)
    said = tokenizer.apply_chat_template(
        [{"role": "user", "content": "a"}], tokenize=False, add_generation_prompt=True
    )
    assert said == {"open_calm": "a<|endoftext|>", "rinna": "<s>a<|endoftext|>"}.get(
        make.__name__, "<s><|user|>a<|endoftext|><|assistant|>"
    )
