"""Segments of the sequential recurrence as CUDA graphs, captured once for each shape and replayed for every piece.

A step is four small kernels: launching them one by one would take longer than running them.
"""

from __future__ import annotations

from collections import OrderedDict

import torch

from newllm_lib.ops.sequential_context.segment import LoopWeights, Shape

_KEPT = 4  # graphs, each with its buffers; enough for both directions of training and of one other shape


class CapturedSegment:
    """A segment with its own copy of the weights, whose `run` is a graph's replay."""

    def __init__(self, kind: type, shape: Shape, weights: LoopWeights, cell):
        own = LoopWeights(*(torch.empty_like(w).copy_(w) for w in weights))
        self.segment = kind(shape, own, cell)
        self.graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # compiles the kernels and sets up the matrix library, which a capture may not
            self.segment.run()
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self.segment.run()

    def use(self, weights: LoopWeights):
        """The segment, holding these weights."""
        for own, new in zip(self.segment.weights, weights, strict=True):
            own.copy_(new)
        return self.segment

    def run(self) -> None:
        self.graph.replay()


_captured: OrderedDict[tuple, CapturedSegment] = OrderedDict()


def captured(kind: type, shape: Shape, weights: LoopWeights, cell) -> CapturedSegment:
    """The captured segment of this kind and shape; the least recently used one is dropped when there are too many."""
    key = (kind, shape)
    if key not in _captured:
        _captured[key] = CapturedSegment(kind, shape, weights, cell)
        while len(_captured) > _KEPT:
            _captured.popitem(last=False)
    _captured.move_to_end(key)
    return _captured[key]


def can_capture(device: torch.device) -> bool:
    """On CUDA, unless the caller is itself recording a graph: then the steps become part of that one."""
    return device.type == "cuda" and not torch.cuda.is_current_stream_capturing()
