"""Layers made of ops: each file one idea."""

from newllm_lib.lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    submod_attrs={
        "linear_attention": ["LinearAttention"],
        "local_attention": ["LocalAttention"],
        "phase7_block": ["Phase7Block"],
        "sequential_context": ["SequentialContext"],
        "tensor_train": ["TensorTrainEmbedding", "TensorTrainHead"],
    },
)
