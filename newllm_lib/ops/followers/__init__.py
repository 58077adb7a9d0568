"""What followed the same word before, and what followed the same two words: counted in a text's last tokens, exactly.

For a token at place p of a text w, with the words w_p = a and w_{p-1} = b:

    one_p[v] = Σ_s keep^(p-s) [w_s = v, w_{s-1} = a],   two_p[v] = Σ_s keep^(p-s) [w_s = v, w_{s-1} = a, w_{s-2} = b]

over s up to p; all words that are looked at lie within the document and the last `reach` tokens, the token's own apart. An n-gram
cache (Jelinek et al., 1991, DARPA workshop on speech) that needs no table: the words themselves are kept. No gradients go through
it. The kernel adds in no fixed order, so plain torch takes its place where deterministic algorithms are asked for.
"""

from __future__ import annotations

import torch
from torch import Tensor

from newllm_lib.ops.common.dispatch import runs_triton
from newllm_lib.ops.followers import processor, reference


def followers(words: Tensor, place: Tensor, first: Tensor, reach: int, keep: float, like: Tensor) -> list[Tensor]:
    """The counts `one` and `two`, each (batch, time, size) float32.

    Args:
        words: (batch, length) int64, a word's number plus 1; 0: none. place: (batch, time) int64, of the tokens that ask.
        first: (batch, time), where each one's document begins. like: (size,), on whose device it runs.
    """
    chosen = reference
    if runs_triton(like) and not torch.are_deterministic_algorithms_enabled():
        from newllm_lib.ops.followers import triton as chosen
    elif words.device.type == "cpu" and not torch.compiler.is_compiling():
        chosen = processor
    return list(chosen.followers(words, place, first, reach, keep, like.shape[0]))
