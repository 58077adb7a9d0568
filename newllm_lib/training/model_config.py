"""From a recipe and a tokenizer to a model: sizes, special tokens, TinyGPT2 matched in parameters."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.overrides import TorchFunctionMode
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

from newllm_lib.errors import UsageError
from newllm_lib.models.causal_lm import parameters
from newllm_lib.models.new_llm import NewLLMConfig, NewLLMForCausalLM
from newllm_lib.models.phase7 import Phase7Config, Phase7ForCausalLM
from newllm_lib.models.tiny_gpt2 import TinyGPT2Config, TinyGPT2ForCausalLM
from newllm_lib.recipe import Recipe


def build_model(
    recipe: Recipe, vocab_size: int, tokenizer=None, device: str | None = None
) -> PreTrainedModel:
    """A freshly initialised model, float32, from the global random state of the device where it is made.

    Args:
        vocab_size: the tokenizer's full size.
        tokenizer: for its special tokens and generation settings; None for counting.
        device: where (default: the CPU). A large model is made on its GPU: the host may have less memory.
    """
    config = model_config(recipe, vocab_size)
    if tokenizer is not None:
        config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
        config.pad_token_id = tokenizer.pad_token_id
    if isinstance(config, TinyGPT2Config):
        config._attn_implementation = "sdpa"
    with torch.device(device or "cpu"):
        model = _CLASSES[type(config)](config)
    if tokenizer is not None:
        model.generation_config = _generation_config(tokenizer)
    return model


def load_model(folder: Path, recipe: Recipe) -> PreTrainedModel:
    """The model saved in `folder`, to be trained on: on the CPU, float32, with the recipe's dropout."""
    changes = {"dropout": recipe.dropout}
    if recipe.model == "tiny_gpt2":
        changes = {"resid_pdrop": recipe.dropout, "embd_pdrop": recipe.dropout, "attn_implementation": "sdpa"}
    kind = _CLASSES[_CONFIGS[recipe.model]]
    return kind.from_pretrained(
        folder, use_safetensors=True, local_files_only=True, dtype=torch.float32, **changes
    )


def model_config(recipe: Recipe, vocab_size: int) -> PreTrainedConfig:
    """The transformers config that a recipe describes."""
    if recipe.model == "tiny_gpt2":
        return matched_tiny_gpt2(recipe, _SIZED[recipe.match](recipe, vocab_size))
    return _SIZED[recipe.model](recipe, vocab_size)


def _new_llm(recipe: Recipe, vocab_size: int) -> NewLLMConfig:
    return NewLLMConfig(
        vocab_size=vocab_size,
        hidden_size=recipe.hidden_size,
        context_dim=recipe.context_dim,
        mlp_size=recipe.mlp_size,
        num_hidden_layers=recipe.num_layers,
        recurrence=recipe.recurrence,
        time_scales=recipe.time_scales,
        dropout=recipe.dropout,
        bos_token_id=None,
        eos_token_id=None,
    )


def _phase7(recipe: Recipe, vocab_size: int) -> Phase7Config:
    if recipe.hidden_size % (2 * recipe.num_heads):
        raise UsageError(
            f"hidden_size {recipe.hidden_size} must be an even multiple of num_heads {recipe.num_heads}: "
            "change one of them."
        )
    if recipe.ar_ssm and recipe.context_dim % recipe.ssm_ranks:
        raise UsageError(
            f"context_dim {recipe.context_dim} must be a multiple of ssm_ranks {recipe.ssm_ranks}: change "
            "one of them."
        )
    return Phase7Config(
        vocab_size=vocab_size,
        hidden_size=recipe.hidden_size,
        num_hidden_layers=recipe.num_layers,
        num_attention_heads=recipe.num_heads,
        mlp_size=recipe.mlp_size,
        context_dim=recipe.context_dim,
        attention=recipe.attention,
        attention_window=recipe.attention_window,
        flash_attention=recipe.flash_attention,
        ar_ssm=recipe.ar_ssm,
        ssm_ranks=recipe.ssm_ranks,
        embedding=recipe.embedding,
        htt_rank=recipe.htt_rank,
        dropout=recipe.dropout,
        bos_token_id=None,
        eos_token_id=None,
    )


def matched_tiny_gpt2(recipe: Recipe, other: PreTrainedConfig) -> TinyGPT2Config:
    """A TinyGPT2 with `other`'s parameters (within 2 %), the recipe's layers, heads and length.

    The width is the multiple of the heads whose usual MLP (4 x width) comes nearest; then the MLP's width
    makes up the rest.

    Raises:
        UsageError: the sizes leave no such TinyGPT2.
    """
    target = count_parameters(other)
    vocab, window, layers, heads = (
        other.vocab_size,
        recipe.max_seq_length,
        recipe.num_layers,
        recipe.num_heads,
    )

    def fixed(width):  # embeddings, attention, norms, and biases of the MLP's output
        return (vocab + window) * width + layers * (4 * width * width + 4 * width + 5 * width) + 2 * width

    def total(width, inner):
        return fixed(width) + layers * (2 * width * inner + inner)

    step = 2 * heads if heads % 2 else heads
    widths = [w for w in range(step, 16384, step) if fixed(w) < target]
    if not widths:
        raise UsageError(
            "The model is too small to match with a TinyGPT2: raise hidden_size, or lower vocab_size."
        )
    width = min(widths, key=lambda w: abs(total(w, 4 * w) - target))
    inner = round((target - fixed(width)) / (layers * (2 * width + 1)))
    config = TinyGPT2Config(
        vocab_size=vocab,
        n_positions=window,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        n_inner=max(1, inner),
        activation_function="gelu_pytorch_tanh",  # "gelu_new" by one kernel of torch's, not by eight
        resid_pdrop=recipe.dropout,
        embd_pdrop=recipe.dropout,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
    )
    found = count_parameters(config)
    if abs(found - target) > 0.02 * target:
        raise UsageError(
            f"No TinyGPT2 with {heads} heads and {layers} layers has {target:,} parameters (nearest: "
            f"{found:,}): change hidden_size or num_heads."
        )
    return config


def count_parameters(config) -> int:
    """Stored parameters of the model that `config` describes, without allocating it."""
    with torch.device("meta"), _NoFirstValues():
        model = _CLASSES[type(config)](config)
    return parameters(model)


class _NoFirstValues(TorchFunctionMode):
    """Within it nothing is drawn in this thread: on no device that is done in Python, which imports SymPy."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func.__name__ in ("normal_", "uniform_"):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def _generation_config(tokenizer) -> GenerationConfig:
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    stop = [tokenizer.eos_token_id] + ([end] if end is not None and end != tokenizer.unk_token_id else [])
    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=stop, pad_token_id=tokenizer.pad_token_id
    )


_SIZED = {"new_llm": _new_llm, "phase7": _phase7}  # TinyGPT2's sizes come from one of these
_CONFIGS = {"new_llm": NewLLMConfig, "tiny_gpt2": TinyGPT2Config, "phase7": Phase7Config}
_CLASSES = {
    NewLLMConfig: NewLLMForCausalLM,
    TinyGPT2Config: TinyGPT2ForCausalLM,
    Phase7Config: Phase7ForCausalLM,
}
