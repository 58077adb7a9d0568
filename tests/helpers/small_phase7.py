"""A small Phase 7 model."""

import torch

import newllm_lib.models as models
from newllm_lib.recipe import load_recipe
from newllm_lib.training.model_config import model_config
from tests.helpers.model_checks import BOS, PAD, VOCAB

SMALL = {
    "sized_for": "cpu",
    "model": "phase7",
    "hidden_size": 24,
    "context_dim": 16,
    "mlp_size": 32,
    "num_layers": 2,
    "num_heads": 2,
    "dropout": 0.0,
    "max_seq_length": 64,
    "attention_window": 6,
    "ssm_ranks": 4,
    "htt_rank": 3,
}


def build(**changes):
    """`changes`: of the recipe's keys, or of what only the model's configuration can say."""
    own = {
        name: changes.pop(name)
        for name in ("tie_word_embeddings", "linear_features", "reset_at_bos")
        if name in changes
    }
    config = model_config(load_recipe("demo", {**SMALL, **changes}), VOCAB)
    for name, value in own.items():
        setattr(config, name, value)
    torch.manual_seed(0)
    built = models.Phase7ForCausalLM(config).eval()
    built.config.bos_token_id, built.config.eos_token_id, built.config.pad_token_id = BOS, BOS, PAD
    built.generation_config.eos_token_id, built.generation_config.pad_token_id = BOS, PAD
    built.model.curvature_factor.fill_(0.6)
    return built
