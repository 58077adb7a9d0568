"""What followed the same word before, and what followed the same two words: counted in a text's last tokens, exactly.

For a token at place p of a text w, with the words w_p = a and w_{p-1} = b:

    one_p[v] = Σ_s keep^(p-s) [w_s = v, w_{s-1} = a],   two_p[v] = Σ_s keep^(p-s) [w_s = v, w_{s-1} = a, w_{s-2} = b]

over s up to p, within the document and the last `reach` tokens. An n-gram cache (Jelinek et al., 1991, DARPA workshop on speech)
that needs no table: the words themselves are kept. No gradients go through it. Sums on a GPU are made in no fixed order.
"""

from __future__ import annotations

from torch import Tensor

from newllm_lib.ops.backend import runs_triton
from newllm_lib.ops.followers import reference


def followers(words: Tensor, place: Tensor, first: Tensor, reach: int, keep: float, like: Tensor) -> list[Tensor]:
    """The counts `one` and `two`, each (batch, time, size) float32.

    Args:
        words: (batch, length) int64, a word's number plus 1; 0: none. place: (batch, time) int64, of the tokens that ask.
        first: (batch, time), where each one's document begins. like: (size,), on whose device it runs.
    """
    chosen = reference
    if runs_triton(like):
        from newllm_lib.ops.followers import triton as chosen
    return list(chosen.followers(words, place, first, reach, keep, like.shape[0]))
