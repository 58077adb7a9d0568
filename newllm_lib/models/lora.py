"""LoRA adapters for our models and most others: small trained matrices beside frozen weights (PEFT)."""

from __future__ import annotations


def lora_config(model, rank: int, alpha: float, dropout: float, task_type: str = "CAUSAL_LM"):
    """PEFT's configuration for adapters on every linear layer but the head (of a reward model, "SEQ_CLS", the
    head itself is trained and saved with them)."""
    from peft import LoraConfig
    from transformers.pytorch_utils import Conv1D

    transposed = any(isinstance(module, Conv1D) for module in model.modules())  # how GPT-2 keeps its weights
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules="all-linear",
        # Mamba's kernels read these weights themselves, past any adapter: PEFT refuses them
        exclude_modules=["out_proj", "conv1d"] if "mamba" in model.config.model_type else None,
        task_type=task_type,
        fan_in_fan_out=transposed,
    )


def without_dropout(model):
    """The same model without dropout: log-probabilities of two models are compared, not of two dice."""
    from torch import nn

    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model
