"""Passes recorded once and replayed: CUDA graphs on a GPU, one launch for hundreds of kernels.

A step of 1.5 billion parameters is some 18,000 kernels of 25 microseconds; a slow CPU needs 75 to launch
each. What a graph reads and writes lies at fixed places: inputs are copied there before a replay, results are
taken from there after it. Parameters are read where they are; their gradients are added up at places that all
blocks share, as one block is done before the next begins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call

from newllm_lib.ops.common.dispatch import uncollected


class Recorder:
    """Records functions as graphs that share one pool of memory: only one of them is replayed at a time."""

    def __init__(self, device: torch.device):
        self.device, self.warm = device, set()
        self.on_gpu = device.type == "cuda"
        if self.on_gpu:
            self.pool, self.stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream(device)

    def record(
        self, function: Callable[[], None], kind, sums: list[Tensor], forget=lambda: None
    ) -> Callable[[], None]:
        """What repeats `function`, which works on tensors that stay. On the CPU the function itself.

        Args:
            kind: functions of one kind start the same kernels with the same sizes; the first of them is run
                once before.
            sums: what it adds to; they are left as they were.
            forget: called after a first run, to let go of what that has made.
        """
        before = [x.clone() for x in sums]
        replay = self._recorded(function, kind, forget)
        for x, was in zip(sums, before, strict=True):
            x.copy_(was)
        return replay

    def _recorded(self, function: Callable[[], None], kind, forget) -> Callable[[], None]:
        if not self.on_gpu:
            function()  # as on a GPU: what it leaves behind besides its results is known
            return function
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            if kind not in self.warm:
                torch.cuda.empty_cache()
                function()  # compiles kernels, starts libraries: what must not happen while recording
                torch.cuda.synchronize(self.device)
                forget()
                torch.cuda.empty_cache()  # memory of this stream, which nobody else would get
                self.warm.add(kind)
            graph = torch.cuda.CUDAGraph()
            with uncollected():
                graph.capture_begin(pool=self.pool, capture_error_mode="thread_local")
                try:
                    function()
                finally:
                    graph.capture_end()
        current.wait_stream(self.stream)
        return graph.replay


class Places:
    """Tensors that stay where they are, by name, shape and dtype."""

    def __init__(self):
        self.tensors: dict[tuple, Tensor] = {}

    def of(self, name, like: Tensor) -> Tensor:
        key = name, like.shape, like.dtype, like.device
        if key not in self.tensors:
            self.tensors[key] = torch.empty(like.shape, dtype=like.dtype, device=like.device)
        return self.tensors[key]

    def filled(self, name: str, values: list[Tensor | None]) -> list[Tensor | None]:
        """The places of these values, which are copied there."""
        return [None if x is None else self.of((name, i), x).copy_(x) for i, x in enumerate(values)]


def stand_ins(parameters: dict[str, Tensor], gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    """Leaves that share the parameters' memory and add their gradients to the given ones (where there are
    some): made while recording they belong to its stream, as the parameters' own do not, and their hooks stay
    silent."""
    made = {name: parameter.detach().requires_grad_() for name, parameter in parameters.items()}
    for name, gradient in gradients.items():
        made[name].grad = gradient
    return made


_ALIGNED = 64  # elements: where kernels read fastest


def side_by_side(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Tensors of the same shapes and dtypes, and the buffers they are parts of, one for each dtype."""
    starts: dict[str, int] = {}
    ends: dict[tuple, int] = {}
    for name, x in tensors.items():
        kind = x.dtype, x.device
        starts[name] = ends.get(kind, 0)
        ends[kind] = starts[name] + -(-x.numel() // _ALIGNED) * _ALIGNED
    wholes = {kind: torch.zeros(size, dtype=kind[0], device=kind[1]) for kind, size in ends.items()}
    parts = {}
    for name, x in tensors.items():
        whole = wholes[x.dtype, x.device]
        parts[name] = whole[starts[name] : starts[name] + x.numel()].view(x.shape)
    return parts, list(wholes.values())


class BlockGraphs:
    """The two passes of checkpointed blocks (`blocks`), a graph for each block and each size of a chunk."""

    def __init__(self, device: torch.device):
        self.recorder, self.places = Recorder(device), Places()
        self.replays: dict[tuple, tuple] = {}

    def forward(self, call, tensors: list[Tensor]) -> list[Tensor]:
        """What the block returns for these, in tensors that the next call overwrites."""
        fixed = self.places.filled("input", tensors)

        def record():
            results: list[Tensor] = []

            def run():
                with torch.no_grad():
                    results[:] = self.places.filled("output", call.run(fixed))

            return run, results

        replay, results, about = self._replay("forward", call, fixed, (), record, [])
        replay()
        call.output_structure, call.output_constants = about
        return results

    def backward(
        self, call, tensors: list[Tensor], wanted, upstream: list[Tensor | None], first: bool, through
    ):
        """The wanted tensors' gradients, until the next call; parameters' wait for `hand_over`.

        Args:
            first: of the block's chunks: gradients begin at zero.
            through: blocks._backward_through.
        """
        fixed, above = self.places.filled("input", tensors), self.places.filled("upstream", upstream)
        parameters, gradients = self._parameters(call.block)

        def record():
            results: list[Tensor | None] = []

            def run():
                found = through(call, fixed, wanted, above, stand_ins(parameters, gradients))
                results[:] = self.places.filled("gradient", found)

            return run, results

        chosen = tuple(wanted), tuple(x is None for x in upstream)
        sums = list(gradients.values())
        replay, results, _ = self._replay("backward", call, fixed, chosen, record, [] if first else sums)
        if first:
            torch._foreach_zero_(sums)
        replay()
        return results

    def hand_over(self, block: nn.Module, stepper) -> None:
        """Give the block's parameters their gradients, which are whole, and tell `stepper` of each."""
        parameters, gradients = self._parameters(block)
        for name, parameter in parameters.items():
            gradient = gradients[name]
            if parameter.grad is not None:  # from another block that uses it
                parameter.grad += gradient
            else:
                parameter.grad = gradient.clone() if parameter in stepper.waits else gradient
            stepper.whole(parameter)

    def _parameters(self, block: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The trained ones by name in `blocks._Inner`, and the places of their gradients."""
        trained = {f"block.{name}": p for name, p in block.named_parameters() if p.requires_grad}
        return trained, {name: self.places.of(("parameter", name), p) for name, p in trained.items()}

    def _replay(
        self, direction: str, call, fixed: list[Tensor], chosen: tuple, record, sums: list[Tensor]
    ) -> tuple:
        """(replay, results, the block's output structure and constants), recorded the first time."""
        sizes = tuple((x.shape, x.dtype) for x in fixed)
        kind = direction, sizes, tuple(call.constants), tuple(call.autocast.values()), chosen
        key = call.block, *kind
        if key not in self.replays:
            run, results = record()
            replay = self.recorder.record(run, kind, sums)
            self.replays[key] = replay, results, (call.output_structure, call.output_constants)
        return self.replays[key]


class StepGraph:
    """A model's loss and gradients as one graph, for a step that keeps its activations."""

    def __init__(
        self,
        model: nn.Module,
        device: torch.device,
        dtype: torch.dtype | None,
        together: bool = False,
        loss_scale: Tensor | None = None,
    ):
        """
        Args:
            dtype: of autocast, or None.
            together: gradients lie side by side in `sums`, anew each step.
            loss_scale: by which gradients are to be multiplied, on the device; read in each step.
        """
        self.model, self.dtype, self.loss_scale = model, dtype, loss_scale
        self.recorder, self.places = Recorder(device), Places()
        self.replays: dict[tuple, tuple] = {}
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        # Weights read in half precision alone are converted, and their gradients back, in two kernels.
        self.halves = model.half_weights() if dtype is not None and hasattr(model, "half_weights") else []
        # the kind of the first graph, which makes the gradients; others add to them
        self.maker: tuple | None = None
        self.gradients, self.sums = side_by_side(self.parameters) if together else ({}, [])

    def __call__(self, inputs: dict[str, Tensor], **constants) -> tuple[Tensor, Tensor | None]:
        """The loss of the model called with these, and its state, which the next call overwrites (None: it
        has none); gradients are added to the parameters' (begun where there are none).

        `sums` holds them together, in a tensor or two: what several processes have to add up once a step.
        """
        fixed = dict(zip(inputs, self.places.filled("input", list(inputs.values())), strict=True))
        kind = tuple((name, x.shape, x.dtype) for name, x in fixed.items()), tuple(constants.items())
        fresh = [
            name
            for name, p in self.parameters.items()
            if p.grad is None or p.grad is not self.gradients.get(name)
        ]
        self.maker = self.maker or kind
        makes = not self.sums and kind == self.maker and len(fresh) == len(self.parameters)
        replay, results = self._recorded(fixed, constants, kind, makes, fresh)
        if fresh and not makes:
            torch._foreach_zero_([self.gradients[name] for name in fresh if name in self.gradients])
            self._hand_over(fresh)
        replay()
        if makes:
            self._hand_over(fresh)
        return results[0].clone(), results[1]

    def _recorded(
        self, fixed: dict[str, Tensor], constants: dict, kind: tuple, makes: bool, fresh: list[str]
    ) -> tuple:
        """(what repeats the step, where its loss and state lie), recorded the first time."""
        key = kind, makes
        if key not in self.replays:
            results: list[Tensor | None] = []

            def run():
                results.clear()
                if makes:
                    self.gradients.clear()
                leaves = self._leaves()
                enabled = self.dtype is not None
                with torch.autocast(
                    self.recorder.device.type, self.dtype, enabled=enabled, cache_enabled=False
                ):
                    outputs = functional_call(self.model, leaves, (), {**fixed, **constants})
                (outputs.loss if self.loss_scale is None else outputs.loss * self.loss_scale).backward()
                self._gather(leaves, makes)
                results[:] = self.places.filled("result", [outputs.loss.detach(), outputs.get("state")])

            sums = [] if makes else [g for name, g in self.gradients.items() if name not in fresh]
            forget = self.gradients.clear if makes else lambda: None
            with _same_random_numbers(self.recorder.device):
                self.replays[key] = self.recorder.record(run, key, sums, forget), results
        return self.replays[key]

    def _leaves(self) -> dict[str, Tensor]:
        leaves = stand_ins(self.parameters, {n: g for n, g in self.gradients.items() if n not in self.halves})
        if self.halves:
            halves = [torch.empty_like(self.parameters[name], dtype=self.dtype) for name in self.halves]
            torch._foreach_copy_(halves, [self.parameters[name].detach() for name in self.halves])
            leaves |= {name: half.requires_grad_() for name, half in zip(self.halves, halves, strict=True)}
        return leaves

    def _gather(self, leaves: dict[str, Tensor], makes: bool) -> None:
        """Keep the leaves' gradients, or add those that have not added themselves."""
        if makes:
            self.gradients |= {
                n: x.grad for n, x in leaves.items() if n not in self.halves and x.grad is not None
            }
        if self.halves:
            whole = [torch.empty_like(self.parameters[name]) for name in self.halves]
            torch._foreach_copy_(whole, [leaves[name].grad for name in self.halves])
            if makes:
                self.gradients |= dict(zip(self.halves, whole, strict=True))
            else:
                torch._foreach_add_([self.gradients[name] for name in self.halves], whole)

    def _hand_over(self, names: list[str]) -> None:
        for name in names:
            self.parameters[name].grad = self.gradients.get(name)


@contextmanager
def _same_random_numbers(device: torch.device) -> Iterator[None]:
    """Recording runs the step once for real: a run that is continued must draw what it would have drawn."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
