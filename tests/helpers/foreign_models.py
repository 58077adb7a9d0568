"""Tiny models of other people's kinds, as on the hub: random weights, a tokenizer of their form."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from transformers import PreTrainedTokenizerFast

from tests.helpers.texts import byte_level_bpe

END = "<|endoftext|>"
_SIZES = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 24}
_KINDS = {
    "gpt2": ("GPT2LMHeadModel", {"n_embd": 16, "n_head": 2, "n_layer": 2, "n_positions": 64}),
    "qwen2": ("Qwen2ForCausalLM", {**_SIZES, "num_key_value_heads": 1, "max_position_embeddings": 64}),
    "llama": ("LlamaForCausalLM", {**_SIZES, "num_key_value_heads": 1, "max_position_embeddings": 64}),
    "gemma": (
        "GemmaForCausalLM",
        {**_SIZES, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 64},
    ),
    "gpt_neox": ("GPTNeoXForCausalLM", {**_SIZES, "max_position_embeddings": 64}),
    "t5": (
        "T5ForConditionalGeneration",
        {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_heads": 2, "num_layers": 1},
    ),
    "bert": ("BertForMaskedLM", {**_SIZES, "max_position_embeddings": 64}),
}

# Chat templates in the forms that these kinds have on the hub: what stands around a turn, where the text is
# trimmed, what is refused. The first token is what ends a turn.
CHAT_FORMS = {
    "qwen2": (
        ("<|im_end|>", "<|im_start|>"),
        "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}"
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    ),
    "llama": (
        ("<|eot_id|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>"),
        "{{ '<|begin_of_text|>' }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + "
        "'<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
    ),
    "gemma": (
        ("<end_of_turn>", "<bos>", "<start_of_turn>"),
        "{{ '<bos>' }}{% if messages[0]['role'] == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}{% for m in messages %}"
        "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role'])"
        " + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
    ),
    "gpt2": (
        (),
        "{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}",
    ),
    "gpt_neox": (
        (),
        "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}",
    ),
}


def make_tokenizer(
    eos: str | None = END, bos: str | None = None, form: str | None = None
) -> PreTrainedTokenizerFast:
    """A byte-level BPE without any of our control tokens, as Qwen's and GPT-2's are.

    Args:
        form: of `CHAT_FORMS`, whose tokens and chat template it has.
    """
    more, template = CHAT_FORMS[form] if form else ((), None)
    return PreTrainedTokenizerFast(
        tokenizer_object=byte_level_bpe(300, [END]),
        eos_token=eos,
        bos_token=bos,
        additional_special_tokens=list(more),
        chat_template=template,
    )


def make_model(
    folder: Path,
    kind: str,
    eos: str | None = END,
    bos: str | None = None,
    form: str | None = None,
    **more: int,
) -> Path:
    """Save a tiny model of a `kind` of `_KINDS` with its tokenizer; returns the folder.

    Args:
        more: sizes of its config that are not as in `_KINDS`.
    """
    name, sizes = _KINDS[kind]
    tokenizer = make_tokenizer(eos, bos, form)
    torch.manual_seed(0)
    made = getattr(transformers, name)
    config = made.config_class(
        **{**sizes, **more}, vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id
    )
    made(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_adapter(folder: Path, base: Path, base_name: str) -> Path:
    """Save LoRA adapters that change what a base says, without a tokenizer; returns the folder."""
    from peft import LoraConfig, get_peft_model

    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    with torch.no_grad():
        for parameter_name, parameter in adapted.named_parameters():
            if "lora_B" in parameter_name:
                parameter.normal_()
    adapted.peft_config["default"].base_model_name_or_path = base_name
    adapted.save_pretrained(folder)
    return folder
