"""From a recipe and a tokenizer to a model: sizes, special tokens, and TinyGPT2 matched to New-LLM's stored parameters."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import GenerationConfig, PreTrainedModel

from newllm_lib.errors import UsageError
from newllm_lib.models.new_llm import NewLLMConfig, NewLLMForCausalLM
from newllm_lib.models.tiny_gpt2 import TinyGPT2Config, TinyGPT2ForCausalLM
from newllm_lib.recipe import Recipe


def parameters(model: torch.nn.Module) -> int:
    """Stored, trainable parameters; tied ones count once."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def build_model(recipe: Recipe, vocab_size: int, tokenizer=None) -> PreTrainedModel:
    """A freshly initialised model (from torch's global random state), on the CPU, float32.

    Args:
        vocab_size: the tokenizer's full size. tokenizer: for its special tokens and generation settings; None for counting.
    """
    config = model_config(recipe, vocab_size)
    if tokenizer is not None:
        config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
        config.pad_token_id = tokenizer.pad_token_id
    if isinstance(config, NewLLMConfig):
        model = NewLLMForCausalLM(config)
    else:
        config._attn_implementation = "sdpa"
        model = TinyGPT2ForCausalLM(config)
    if tokenizer is not None:
        model.generation_config = _generation_config(tokenizer)
    return model


def load_model(folder: Path, recipe: Recipe) -> PreTrainedModel:
    """The model saved in `folder`, to be trained on: on the CPU, float32, with the recipe's dropout."""
    if recipe.model == "new_llm":
        kind, changes = NewLLMForCausalLM, {"dropout": recipe.dropout}
    else:
        kind, changes = TinyGPT2ForCausalLM, {"resid_pdrop": recipe.dropout, "embd_pdrop": recipe.dropout}
        changes["attn_implementation"] = "sdpa"
    return kind.from_pretrained(folder, use_safetensors=True, local_files_only=True, dtype=torch.float32, **changes)


def model_config(recipe: Recipe, vocab_size: int) -> NewLLMConfig | TinyGPT2Config:
    """The transformers config that a recipe describes."""
    new_llm = NewLLMConfig(
        vocab_size=vocab_size, hidden_size=recipe.hidden_size, context_dim=recipe.context_dim, mlp_size=recipe.mlp_size,
        num_hidden_layers=recipe.num_layers, conv_width=recipe.conv_width, recurrence=recipe.recurrence,
        dropout=recipe.dropout, reset_at_bos=recipe.separate_documents, tie_word_embeddings=recipe.tie_embeddings,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return new_llm if recipe.model == "new_llm" else matched_tiny_gpt2(recipe, new_llm)


def matched_tiny_gpt2(recipe: Recipe, new_llm: NewLLMConfig) -> TinyGPT2Config:
    """A TinyGPT2 with the stored parameters of `new_llm` (within 2 %), the recipe's layers, heads and block length.

    The width is the multiple of the heads whose usual MLP (4 x width) comes nearest; then the MLP's width makes up the rest.

    Raises:
        UsageError: the sizes leave no such TinyGPT2.
    """
    target = count_parameters(new_llm)
    vocab, window, layers, heads = new_llm.vocab_size, recipe.max_seq_length, recipe.num_layers, recipe.num_heads
    head = vocab if not recipe.tie_embeddings else 0

    def fixed(width):  # embeddings, attention, norms, and biases of the MLP's output
        return (vocab + head + window) * width + layers * (4 * width * width + 4 * width + 5 * width) + 2 * width

    def total(width, inner):
        return fixed(width) + layers * (2 * width * inner + inner)

    step = 2 * heads if heads % 2 else heads
    widths = [w for w in range(step, 16384, step) if fixed(w) < target]
    if not widths:
        raise UsageError("New-LLM is too small to match with a TinyGPT2: raise hidden_size, or lower vocab_size.")
    width = min(widths, key=lambda w: abs(total(w, 4 * w) - target))
    inner = round((target - fixed(width)) / (layers * (2 * width + 1)))
    config = TinyGPT2Config(
        vocab_size=vocab, n_positions=window, n_embd=width, n_layer=layers, n_head=heads, n_inner=max(1, inner),
        resid_pdrop=recipe.dropout, embd_pdrop=recipe.dropout, attn_pdrop=0.0, tie_word_embeddings=recipe.tie_embeddings,
        separate_documents=recipe.separate_documents, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    found = count_parameters(config)
    if abs(found - target) > 0.02 * target:
        raise UsageError(
            f"No TinyGPT2 with {heads} heads and {layers} layers has {target:,} parameters (nearest: {found:,}): "
            "change hidden_size or num_heads."
        )
    return config


def count_parameters(config) -> int:
    """Stored parameters of the model that `config` describes, without allocating it."""
    with torch.device("meta"):
        model = NewLLMForCausalLM(config) if isinstance(config, NewLLMConfig) else TinyGPT2ForCausalLM(config)
    return parameters(model)


def _generation_config(tokenizer) -> GenerationConfig:
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    stop = [tokenizer.eos_token_id] + ([end] if end is not None and end != tokenizer.unk_token_id else [])
    return GenerationConfig(bos_token_id=tokenizer.bos_token_id, eos_token_id=stop, pad_token_id=tokenizer.pad_token_id)
