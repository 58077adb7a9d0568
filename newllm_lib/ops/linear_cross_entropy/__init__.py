"""Cross-entropy of a linear head without ever holding all logits: a 512 x 128 batch over 50,257 words would
need 12 GiB.
"""

from newllm_lib.ops.linear_cross_entropy.chunked import linear_cross_entropy
from newllm_lib.ops.linear_cross_entropy.reference import IGNORE

__all__ = ["IGNORE", "linear_cross_entropy"]
