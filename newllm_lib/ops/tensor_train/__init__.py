"""A V x d matrix as two small cores: rows looked up, logits and loss computed, the matrix never built.

Row w = i1 * V2 + i2 and column j = j1 * d2 + j2 are written with two digits each; then (a tensor train of two
cores, Oseledets 2011, SIAM J. Sci. Comput. 33; as an embedding Hrinchuk et al. 2020, arXiv 1901.10787)

    W[i1 V2 + i2, j1 d2 + j2] = sum_r first[i1, j1, r] second[i2, r, j2]

so a row is a product of a (d1 x rank) and a (rank x d2) matrix. `holographic` gives each rank of each digit a
phase.
"""

from newllm_lib.ops.tensor_train.cross_entropy import tensor_train_cross_entropy
from newllm_lib.ops.tensor_train.logits import tensor_train_logits
from newllm_lib.ops.tensor_train.reference import factors, holographic, matrix
from newllm_lib.ops.tensor_train.rows import tensor_train_rows

__all__ = [
    "factors",
    "holographic",
    "matrix",
    "tensor_train_cross_entropy",
    "tensor_train_logits",
    "tensor_train_rows",
]
