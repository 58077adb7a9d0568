"""Training in little memory.

Begin with `plan`: it says what a recipe's keys mean for a run, and refuses what does not go together.
`low_precision` keeps weights in bfloat16; `blocks` computes a block's activations again in the backward pass,
and `host_store` keeps its inputs meanwhile; `peak` goes on with fewer sequences at a time where memory is
short.
"""

from newllm_lib.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
