"""The original New-LLM recurrence, whose gates read the context and which must therefore be walked token by token.

    h_t = MLP_L([e_t; c_{t-1}]),   c_t = LN(sigmoid(W_f h_t) * c_{t-1} + sigmoid(W_i h_t) * W_d h_t),   c_0 = 0

`reference.py` is that loop as one reads it. `hoisted.py` gives the same numbers to rounding, several times faster, and
is what runs: the parts that do not depend on c are matrix products over all tokens, and on a GPU the loop is a captured
CUDA graph.
"""

from __future__ import annotations

from newllm_lib.ops.sequential_context.hoisted import sequential_context
from newllm_lib.ops.sequential_context.weights import SequentialWeights

__all__ = ["SequentialWeights", "sequential_context"]
