"""A few steps of the sequential recurrence as a CUDA graph, captured once for each shape and replayed along every sequence.

A step is four small kernels: launching them one by one would take longer than running them. The first piece of the first
sequence runs as it is, which compiles the kernels and sets up the matrix library (a capture may do neither); the second
is captured.
"""

from __future__ import annotations

from collections import OrderedDict

import torch

from newllm_lib.ops.sequential_context.loop import Cell, LoopWeights, Shape

STEPS = 16  # a piece: long enough to make a graph's launch cheap, short enough that most sequences have several
_KEPT = 8  # pieces, each with a cell: both directions of training, and a few other shapes


class Piece:
    """A cell and how to run it for STEPS steps in one direction."""

    def __init__(self, cell: Cell, run, capture: bool):
        self.cell, self.run, self.capture = cell, run, capture
        self.warm, self.graph = False, None

    def __call__(self) -> None:
        if not self.capture or not self.warm:
            self.run(STEPS)
            self.warm = True
            return
        if self.graph is None:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self.run(STEPS)
            self.graph = graph
        self.graph.replay()


_pieces: OrderedDict[tuple, Piece] = OrderedDict()


def piece(cell_type: type[Cell], direction: str, shape: Shape, weights: LoopWeights, capturable: bool) -> Piece:
    """A piece for these weights. A capturable one is kept, with weights of its own, and given to later callers too.

    Args:
        direction: "forward" or "backward".
    """
    if not capturable or torch.cuda.is_current_stream_capturing():  # then the steps become part of the caller's graph
        cell = cell_type(shape, weights)
        return Piece(cell, getattr(cell, f"run_{direction}"), False)
    key = cell_type, direction, shape
    if key not in _pieces:
        cell = cell_type(shape, LoopWeights(*(torch.empty_like(w) for w in weights)))
        _pieces[key] = Piece(cell, getattr(cell, f"run_{direction}"), True)
        while len(_pieces) > _KEPT:
            _pieces.popitem(last=False)
    _pieces.move_to_end(key)
    for own, new in zip(_pieces[key].cell.weights, weights, strict=True):
        own.copy_(new)
    return _pieces[key]


def forget() -> None:
    """Drop all pieces, and what they captured."""
    _pieces.clear()
