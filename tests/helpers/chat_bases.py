"""Tiny bases that speak in turns of their own, as on the hub: each kind with its template's form."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerFast

from tests.helpers.texts import byte_level_bpe

LENGTH = 256
_END = "<|endoftext|>"  # DialoGPT's
_SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
_GROUPED = {**_SIZES, "num_key_value_heads": 1, "max_position_embeddings": LENGTH}
_NEOX = {**_SIZES, "max_position_embeddings": LENGTH, "tie_word_embeddings": False}
KINDS = {
    "qwen2": ("Qwen2ForCausalLM", _GROUPED),
    "llama": ("LlamaForCausalLM", _GROUPED),
    "gemma": ("GemmaForCausalLM", {**_GROUPED, "head_dim": 16}),
    "gpt2": ("GPT2LMHeadModel", {"n_embd": 32, "n_head": 2, "n_layer": 2, "n_positions": LENGTH}),
    "gpt_neox": ("GPTNeoXForCausalLM", _NEOX),
}
# what stands around a turn: ChatML with a system that is there unasked; Llama 3's headers; Gemma's two
# speakers, strictly in turn, without a system; GPT-2 and GPT-NeoX bring none
_QWEN = (
    "{% if messages and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}"
    "{% endif %}{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_LLAMA = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + "
    "m['content'] | trim + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
_GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}{{ '<start_of_turn>' + "
    "('model' if m['role'] == 'assistant' else m['role']) + '\n' + m['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
_WORDS = {
    "qwen2": (["<|endoftext|>", "<|im_start|>", "<|im_end|>"], None, "<|im_end|>", _QWEN),
    "llama": (
        ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        "<|begin_of_text|>",
        "<|eot_id|>",
        _LLAMA,
    ),
    "gemma": (["<bos>", "<start_of_turn>", "<end_of_turn>", "<eos>"], "<bos>", "<eos>", _GEMMA),
    "gpt2": (["<|endoftext|>"], "<|endoftext|>", "<|endoftext|>", None),
    "gpt_neox": (["<|endoftext|>", "<|padding|>"], "<|endoftext|>", "<|endoftext|>", None),
}


def chat_tokenizer(kind: str, template: str | None = None) -> PreTrainedTokenizerFast:
    """A tokenizer with a kind's control tokens and template, or with another template."""
    special, first, last, own = _WORDS[kind]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_level_bpe(400, special),
        bos_token=first,
        eos_token=last,
        additional_special_tokens=[token for token in special if token not in (first, last)],
    )
    tokenizer.chat_template = template or own
    return tokenizer


def chat_base(folder: Path, kind: str, template: str | None = None) -> Path:
    """Save a tiny model of one of `KINDS` with its tokenizer; returns the folder."""
    name, sizes = KINDS[kind]
    tokenizer = chat_tokenizer(kind, template)
    made = getattr(transformers, name)
    torch.manual_seed(0)
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    made(made.config_class(**sizes, vocab_size=len(tokenizer), pad_token_id=None, **ends)).save_pretrained(
        folder
    )
    tokenizer.save_pretrained(folder)
    return folder


def dialogpt(folder: Path) -> None:
    """A tiny model in the format of microsoft/DialoGPT-small: weights with old buffers, two files of
    vocabulary, its template in the tokenizer's configuration."""
    from transformers import GPT2Config, GPT2LMHeadModel

    folder.mkdir(parents=True)
    backend = byte_level_bpe(400, [_END])
    backend.model.save(str(folder))  # vocab.json, merges.txt
    end, sizes = (
        backend.token_to_id(_END),
        {"n_positions": 256, "n_ctx": 256, "n_embd": 32, "n_layer": 2, "n_head": 2},
    )
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=backend.get_vocab_size(), bos_token_id=end, eos_token_id=end, **sizes)
    model = GPT2LMHeadModel(config)
    buffers = {f"transformer.h.{i}.attn.bias": torch.ones(1, 1, 256, 256).tril().bool() for i in range(2)}
    weights = {
        name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"
    }  # tied
    save_file(weights | buffers, folder / "model.safetensors", {"format": "pt"})
    written = {**config.to_dict(), "architectures": ["GPT2LMHeadModel"]}
    (folder / "config.json").write_text(json.dumps(written))
    template = "{% for message in messages %}{{ message.content }}{{ eos_token }}{% endfor %}"
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"model_max_length": 256, "chat_template": template})
    )
