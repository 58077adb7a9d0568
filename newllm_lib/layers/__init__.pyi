"""What this package shows; a module is loaded when a name of it is first used."""

from newllm_lib.layers.linear_attention import LinearAttention as LinearAttention
from newllm_lib.layers.local_attention import LocalAttention as LocalAttention
from newllm_lib.layers.phase7_block import Phase7Block as Phase7Block
from newllm_lib.layers.sequential_context import SequentialContext as SequentialContext
from newllm_lib.layers.tensor_train import (
    TensorTrainEmbedding as TensorTrainEmbedding,
    TensorTrainHead as TensorTrainHead,
)
