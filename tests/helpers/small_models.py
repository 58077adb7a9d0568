"""A small model of each kind."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from newllm_lib.recipe import load_recipe
from newllm_lib.training.model_config import build_model


def model(name, dropout=0.0):
    torch.manual_seed(0)
    if name == "llama":
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
        return LlamaForCausalLM(LlamaConfig(vocab_size=60, max_position_embeddings=64, **sizes)).train()
    small = {
        "hidden_size": 32,
        "context_dim": 32,
        "mlp_size": 64,
        "num_layers": 3,
        "num_heads": 2,
        "sized_for": "cpu",
    }
    return build_model(load_recipe("demo", {**small, "model": name, "dropout": dropout}), 60).train()
