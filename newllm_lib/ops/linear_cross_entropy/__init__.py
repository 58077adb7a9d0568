"""Cross-entropy of a linear head without all logits (512 x 128 tokens of 50,257 words: 12 GiB)."""

from newllm_lib.ops.linear_cross_entropy.chunked import linear_cross_entropy
from newllm_lib.ops.linear_cross_entropy.reference import IGNORE

__all__ = ["IGNORE", "linear_cross_entropy"]
