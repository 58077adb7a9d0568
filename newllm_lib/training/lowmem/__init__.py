"""Training in little memory: every gradient is used and freed while the backward pass goes on.

Four parts, each of use by itself: `weights` (bfloat16 matrices, rounded stochastically, made on the GPU), `blocks` (a block at a
time runs over the whole batch in chunks of sequences, its inputs kept on the host), `in_backward` (a parameter is stepped the
moment its gradient is whole) and `adafactor`, `muon` (whose momentum takes 4 or 8 bits).
"""
