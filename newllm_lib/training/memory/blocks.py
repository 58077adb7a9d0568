"""Activation checkpointing by block: the whole batch passes one block before the next is touched.

A batch too large for the memory is usually cut into micro-batches, and every parameter's gradient is kept
until the last of them. Here it is cut inside each block instead: the backward pass runs block L over all
chunks of sequences, then block L - 1. So a block's gradient is whole as soon as that block is done, it can be
used and freed at once, and accumulation is exact at no cost in memory. Between the passes only the blocks'
inputs are kept, on the device or on the host.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_flatten, tree_unflatten

from newllm_lib import layers
from newllm_lib.errors import NewLLMError
from newllm_lib.training.cuda_graphs import BlockGraphs
from newllm_lib.training.memory.host_store import HostStore, InPlace

SMALL_HEAD = 1 << 26  # logits that exist at a time: 128 MiB in half precision


class GradientConsumer(Protocol):
    """Who uses a parameter's gradient as soon as it is whole, such as an optimizer in the backward pass."""

    waits: Collection[Tensor]  # parameters whose gradients are kept for later

    def whole(self, parameter: Tensor) -> None:
        """Use the gradient of a parameter, which nothing adds to any more."""


@dataclass
class BlockPasses:
    """How the blocks of one model run: `sequences` at a time (None: all). `complete`: this backward's
    gradients are the last ones. `stepper`: who is told of a parameter whose gradient is whole, if anybody.
    """

    sequences: int | None
    store: HostStore | InPlace
    compiled: bool = False
    graphs: BlockGraphs | None = None
    stepper: GradientConsumer | None = None
    complete: bool = True
    blocks: list[nn.Module] = field(default_factory=list)


def find_blocks(model: nn.Module) -> list[nn.Module]:
    """The model's blocks: of its module lists the one with the most parameters.

    Raises:
        NewLLMError: it has none.
    """
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m)]
    if not lists:
        raise NewLLMError(
            f"{type(model).__name__} has no list of blocks: gradient_checkpointing must stay off."
        )
    return list(max(lists, key=lambda m: sum(p.numel() for p in m.parameters())))


def checkpoint_blocks(
    model: nn.Module,
    sequences: int | None = None,
    offload: bool = False,
    compiled: bool = False,
    graphs: bool = False,
) -> BlockPasses:
    """From now on training keeps only each block's input, and recomputes the rest in the backward pass.

    Args:
        sequences: at a time inside a block; None: the whole batch. A block's tensors whose first dimension is
            the batch's (that of its first argument) are cut, all others are given to each chunk whole.
        offload: keep the inputs in the host's memory (pinned), fetched ahead of their use. With them gone, a
            tensor-train head's logits would be most of what is left: they come in smaller blocks.
        compiled: compile the blocks' forward with torch.compile, once for all of them.
        graphs: replay each block's two passes from CUDA graphs, on a GPU, once parameters are stepped in the
            backward pass. Only for blocks that draw no random numbers and wait for nothing.
    """
    device = next(model.parameters()).device
    store = HostStore(device) if offload and device.type == "cuda" else InPlace()
    head = getattr(model, "lm_head", None)
    if offload and isinstance(head, layers.TensorTrainHead):
        head.block_elements = SMALL_HEAD
    passes = BlockPasses(
        sequences, store, compiled, BlockGraphs(device) if graphs else None, blocks=find_blocks(model)
    )
    for block in passes.blocks:
        inner = torch.compile(block.forward, dynamic=False) if compiled else block.forward
        block.forward = _forward_of(block, inner, passes)
    return passes


def _forward_of(block: nn.Module, inner, passes: BlockPasses):
    def forward(*args, **kwargs):
        if not (block.training and torch.is_grad_enabled()):
            return inner(*args, **kwargs)
        leaves, structure = tree_flatten((args, kwargs))
        tensors, constants = _split(leaves)
        call = _Call(block, inner, passes, tensors, constants, structure)
        # the parameters' gradients are wanted even where no input has one
        anchor = torch.zeros((), requires_grad=True)
        outputs = _CheckpointedBlock.apply(call, anchor, *tensors)
        return tree_unflatten(_joined(outputs, call.output_constants), call.output_structure)

    return forward


_TENSOR = object()  # stands where a tensor stood


def _split(leaves: list) -> tuple[list[Tensor], list]:
    """The tensors, and the leaves with a mark in each tensor's place."""
    return [x for x in leaves if isinstance(x, Tensor)], [
        _TENSOR if isinstance(x, Tensor) else x for x in leaves
    ]


def _joined(tensors, constants: list) -> list:
    found = iter(tensors)
    return [next(found) if c is _TENSOR else c for c in constants]


class _Call:
    """One block's call: its function, its arguments, and what must be as it was when it runs again."""

    def __init__(
        self, block: nn.Module, inner, passes: BlockPasses, tensors: list[Tensor], constants: list, structure
    ):
        self.block, self.inner, self.passes, self.constants, self.structure = (
            block,
            inner,
            passes,
            constants,
            structure,
        )
        self.batch, self.device = tensors[0].shape[0], tensors[0].device
        self.cut = [t.ndim > 0 and t.shape[0] == self.batch for t in tensors]
        kind = self.device.type
        self.autocast = {
            "device_type": kind,
            "enabled": torch.is_autocast_enabled(kind),
            "dtype": torch.get_autocast_dtype(kind),
        }
        # what a graph casts lies in its own memory, and must not be found by others
        self.autocast["cache_enabled"] = False
        self.random = _random_state(self.device)

    @property
    def graphs(self) -> BlockGraphs | None:
        return self.passes.graphs if self.passes.stepper is not None else None

    def chunks(self) -> list[slice]:
        size = self.passes.sequences or self.batch
        return [slice(start, min(start + size, self.batch)) for start in range(0, self.batch, size)]

    def part(self, tensors: list[Tensor], rows: slice) -> list[Tensor]:
        return [t[rows] if cut else t for t, cut in zip(tensors, self.cut, strict=True)]

    def run(self, tensors: list[Tensor], parameters: dict[str, Tensor] | None = None) -> list[Tensor]:
        """The tensors that the block returns for these; with other `parameters` than its own, if given."""
        args, kwargs = tree_unflatten(_joined(tensors, self.constants), self.structure)
        with torch.autocast(**self.autocast):
            if parameters is None:
                found = self.inner(*args, **kwargs)
            else:
                found = functional_call(_Inner(self.block, self.inner), parameters, args, kwargs)
            leaves, self.output_structure = tree_flatten(found)
        outputs, self.output_constants = _split(leaves)
        return outputs


class _Inner(nn.Module):
    """A block whose own forward has been replaced, under its name `block`, with the forward it had."""

    def __init__(self, block: nn.Module, inner):
        super().__init__()
        self.block, self.inner = block, inner

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)


class _CheckpointedBlock(torch.autograd.Function):
    @staticmethod
    def forward(ctx, call: _Call, anchor: Tensor, *tensors: Tensor):
        whole: list[Tensor] = []
        chunks = call.chunks()
        wanted = ctx.wanted = ctx.needs_input_grad[2:]
        for rows in chunks:
            if call.graphs is not None:
                part = call.graphs.forward(call, call.part(tensors, rows))
                whole = whole or [_whole(x, call.batch, rows) for x in part]
                for target, x in zip(whole, part, strict=True):
                    target[rows] = x
                continue
            # Compiled, both runs are one graph with its gradients: one without them would be compiled too.
            with torch.set_grad_enabled(call.passes.compiled):
                inputs = [
                    t.detach().requires_grad_(w)
                    for t, w in zip(call.part(tensors, rows), wanted, strict=True)
                ]
                part = [x.detach() for x in call.run(inputs)]
            if not whole:
                whole = part if len(chunks) == 1 else [_whole(x, call.batch, rows) for x in part]
            if len(chunks) > 1:
                for target, x in zip(whole, part, strict=True):
                    target[rows] = x
        ctx.call = call
        # large and needed once: may go to the host
        kept = [i for i, t in enumerate(tensors) if ctx.wanted[i] and call.cut[i]]
        ctx.handles = {i: call.passes.store.put(tensors[i]) for i in kept}
        ctx.save_for_backward(*(None if i in ctx.handles else t for i, t in enumerate(tensors)))
        ctx.mark_non_differentiable(*(x for x in whole if not x.is_floating_point()))
        ctx.set_materialize_grads(False)
        return tuple(whole)

    @staticmethod
    def backward(ctx, *upstream):
        call, passes = ctx.call, ctx.call.passes
        tensors = [
            passes.store.take(ctx.handles[i]) if i in ctx.handles else t
            for i, t in enumerate(ctx.saved_tensors)
        ]
        gradients: list[Tensor | None] = [None] * len(tensors)
        chunks, was_complete = call.chunks(), passes.complete
        with _random_replay(call):
            for number, rows in enumerate(chunks):
                passes.complete = was_complete and number == len(chunks) - 1
                some = [None if g is None else g[rows] for g in upstream]
                if call.graphs is not None:
                    found = call.graphs.backward(
                        call, call.part(tensors, rows), ctx.wanted, some, number == 0, _backward_through
                    )
                else:
                    found = _backward_through(call, call.part(tensors, rows), ctx.wanted, some)
                for i, new in enumerate(found):
                    # a graph's results are overwritten by the next one's
                    several = len(chunks) > 1 or call.graphs is not None
                    gradients[i] = _gathered(
                        gradients[i], new, tensors[i], rows if call.cut[i] else None, several
                    )
        if call.graphs is not None and was_complete:
            call.graphs.hand_over(call.block, passes.stepper)
        passes.complete = was_complete
        return None, None, *gradients


def _whole(part: Tensor, batch: int, rows: slice) -> Tensor:
    if part.ndim == 0 or part.shape[0] != rows.stop - rows.start:
        raise NewLLMError(
            "A block returned a tensor without a batch dimension: it cannot be run in chunks of sequences."
        )
    return part.new_empty((batch, *part.shape[1:]))


def _backward_through(call: _Call, tensors, wanted, upstream, parameters=None) -> list[Tensor | None]:
    """Compute the block again with gradients, and send `upstream` through it, into the parameters. Returns
    the gradients of the tensors that are wanted."""
    inputs = [t.detach().requires_grad_(w) for t, w in zip(tensors, wanted, strict=True)]
    with torch.enable_grad():
        outputs = call.run(inputs, parameters)
    pairs = [(y, g) for y, g in zip(outputs, upstream, strict=True) if g is not None and y.requires_grad]
    if pairs:
        torch.autograd.backward(*zip(*pairs, strict=True))
    return [x.grad for x in inputs]


def _gathered(
    sofar: Tensor | None, new: Tensor | None, like: Tensor, rows: slice | None, several: bool
) -> Tensor | None:
    """Gradients of a cut input are put beside each other, those of one that every chunk reads are summed."""
    if new is None or not several:
        return new
    if rows is None:
        return new.clone() if sofar is None else sofar.add_(new)
    if sofar is None:
        sofar = torch.zeros_like(like)
    sofar[rows] = new
    return sofar


def _random_state(device: torch.device) -> list[Tensor]:
    return [torch.get_rng_state()] + ([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])


@contextmanager
def _random_replay(call: _Call):
    """Random numbers as in the block's first run (dropout), and afterwards as if it had not run again."""
    with torch.random.fork_rng([call.device] if call.device.type == "cuda" else []):
        torch.set_rng_state(call.random[0])
        if len(call.random) > 1:
            torch.cuda.set_rng_state(call.random[1], call.device)
        yield
