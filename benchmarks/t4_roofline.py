"""What a training step asks of a T4: operations, bytes and launches, and the time that follows. Nothing runs.

    newllm bench t4_roofline [RECIPE …] [--markdown]

A step of each recipe's models is gone through with tensors that have sizes and no contents (torch's fake
tensors), by the implementations that a T4 gets; Triton's kernels are counted where they would be launched.
Bytes are what each operation reads and writes once; views cost nothing, and caches keep nothing. The time is,
summed over operations, the longer of bytes / 320 GB/s and operations / 65 TFLOP/s (the data sheet's), and
2 microseconds a launch, as a recording costs. A real T4 is slower: it reaches a half of either at best.
"""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from unittest import mock

import torch
from torch import Tensor, nn
from torch._library.custom_ops import OPDEFS
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from newllm_lib.console import say

RECIPES = ("demo", "wikitext", "dailydialog", "ultrachat", "phase7_small", "phase7_1.5b")
BANDWIDTH, TENSOR_CORES, PLAIN, LAUNCH = 320e9, 65e12, 8.1e12, 2e-6  # T4's data sheet; a graph's launch
_FREE = ("view", "reshape", "expand", "permute", "transpose", "slice", "select", "detach", "alias", "unbind")
_FREE += ("as_strided", "squeeze", "unsqueeze", "split", "empty", "new_empty", "empty_like", "t", "unfold")
_FREE += ("_unsafe_view", "lift_fresh", "bernoulli_", "div_", "split_with_sizes", "scalar_tensor", "set_")
# (dropout is one kernel on a GPU; on the CPU, which is gone through here, a bernoulli_, a div_ and a mul)


@dataclass
class Cost:
    """Of a step: `flops` of matrix products, `bytes`, `launches`, and the seconds they take at least."""

    flops: float = 0.0
    bytes: float = 0.0
    launches: int = 0
    seconds: float = 0.0
    kinds: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, flops: float, size: float, rate: float = TENSOR_CORES) -> None:
        self.flops, self.bytes, self.launches = self.flops + flops, self.bytes + size, self.launches + 1
        self.seconds += max(size / BANDWIDTH, flops / rate) + LAUNCH
        self.kinds[name] = self.kinds.get(name, 0) + 1


class Counting(TorchDispatchMode):
    """Counts what would be launched; our own operators are entered, so that what they launch counts."""

    def __init__(self, cost: Cost):
        super().__init__()
        self.cost = cost

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        own = OPDEFS.get(func._schema.name)
        if own is not None:
            with self:
                return own._init_fn(*args, **kwargs)
        if func not in flop_registry and func is not torch.ops.prim.device.default:
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        out = func(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::")
        if name.removesuffix("_copy") not in _FREE and "::" not in name:
            counted = flop_registry.get(func._overloadpacket)
            flops = counted(*args, **kwargs, out_val=out) if counted else 0
            halves = any(t.element_size() == 2 for t in tree_leaves(args) if isinstance(t, Tensor))
            self.cost.add(name, flops, _bytes((args, kwargs, out)), TENSOR_CORES if halves else PLAIN)
        return out


def _bytes(tensors) -> int:
    unique = {id(t): t.numel() * t.element_size() for t in tree_leaves(tensors) if isinstance(t, Tensor)}
    return sum(unique.values())


@contextlib.contextmanager
def as_on_a_t4(cost: Cost) -> Iterator[None]:
    """Within it the kernels' implementations are chosen for any tensor, and their launches only counted."""
    from triton.runtime.jit import JITFunction

    from newllm_lib.ops.common import dispatch

    def launch(kernel, grid):
        return lambda *arguments, **_: cost.add(kernel.fn.__name__, 0, _bytes(arguments))

    any_tensor = (lambda x, *_: not _switched_off and x.dtype in _KERNEL_DTYPES).__code__  # noqa: F821
    before, about = dispatch.runs_triton.__code__, mock.Mock()
    about.multi_processor_count, about.shared_memory_per_block_optin = 40, 65_536
    patches = [
        mock.patch.object(JITFunction, "__getitem__", launch),
        mock.patch.dict(os.environ, {"NEWLLM_DEVICE": "t4"}),
        mock.patch.object(torch.cuda, "device_of", lambda _: contextlib.nullcontext()),
        mock.patch.object(torch.cuda, "get_device_properties", lambda _: about),
    ]
    dispatch.runs_triton.__code__ = any_tensor
    try:
        with contextlib.ExitStack() as stack:
            for patch in patches:
                stack.enter_context(patch)
            yield
    finally:
        dispatch.runs_triton.__code__ = before


def cost_of_a_step(name: str, model_name: str) -> tuple[Cost, int, int]:
    """A step's cost, tokens in it, and parameters."""
    from newllm_lib.device import known_gpu
    from newllm_lib.recipe import load_recipe
    from newllm_lib.training.estimate import micro_batch_size
    from newllm_lib.training.model_config import build_model

    cost, device = Cost(), known_gpu("t4")
    with as_on_a_t4(cost):
        recipe = load_recipe(name, {"model": model_name})
        with torch.device("meta"):
            model = build_model(recipe, recipe.vocab_size or 4096).train()
        model.config.bos_token_id, model.config.use_cache = 0, False
        micro = micro_batch_size(recipe, device)
        checkpointed = recipe.gradient_checkpointing != "off"
        with FakeTensorMode(allow_non_fake_inputs=True):
            _materialise(model)
            stepped = Cost()
            _step_optimizer(model, recipe, stepped)
            ids = torch.ones(micro, recipe.max_seq_length, dtype=torch.long)
            tokens = torch.ones(())
            with Counting(cost), torch.autocast("cpu", torch.float16, cache_enabled=False):
                loss = model(input_ids=ids, shift_labels=ids, num_items_in_batch=tokens, use_cache=False).loss
            forward = Cost(cost.flops, cost.bytes, cost.launches, cost.seconds)
            with Counting(cost):
                (loss * 2.0).backward()
    repeats = recipe.batch_size // micro
    for part in (cost, forward):
        part.flops, part.bytes = part.flops * repeats, part.bytes * repeats
        part.launches, part.seconds = part.launches * repeats, part.seconds * repeats
    if checkpointed:  # each block's forward pass runs twice
        for key in ("flops", "bytes", "launches", "seconds"):
            setattr(cost, key, getattr(cost, key) + getattr(forward, key))
    for key in ("flops", "bytes", "launches", "seconds"):
        setattr(cost, key, getattr(cost, key) + getattr(stepped, key))
    for kind, count in stepped.kinds.items():
        cost.kinds[f"optimizer: {kind}"] = count
    return cost, recipe.batch_size * recipe.max_seq_length, sum(p.numel() for p in model.parameters())


def _step_optimizer(model: nn.Module, recipe, cost: Cost) -> None:
    """Clipping and the optimizer's step; then the weights that are read in half precision alone are in it, as
    two kernels make them in each step."""
    from newllm_lib.training.optim.build import build_optimizer

    for p in model.parameters():
        p.grad = torch.empty_like(p)
    optimizer = build_optimizer(model, recipe)
    optimizer.step()  # makes its states
    with Counting(cost):
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        optimizer.step()
    halves = set(model.half_weights()) if hasattr(model, "half_weights") else set()
    light = recipe.weights_dtype != "fp32"
    for name, p in list(model.named_parameters()):
        p.grad = None
        if name in halves or (light and p.ndim > 1):
            place, _, last = name.rpartition(".")
            model.get_submodule(place)._parameters[last] = nn.Parameter(
                torch.empty(p.shape, dtype=torch.float16)
            )
    if halves:
        for _ in range(2):  # there, and their gradients back
            cost.add("halves", 0, 6 * sum(p.numel() for n, p in model.named_parameters() if n in halves))


def _materialise(model: nn.Module) -> None:
    """Fake tensors in place of the meta device's; tied ones stay one."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, p in module._parameters.items():
            if p is not None:
                module._parameters[name] = made.setdefault(
                    id(p), nn.Parameter(torch.empty(p.shape, dtype=p.dtype))
                )
        for name, b in module._buffers.items():
            if b is not None:
                module._buffers[name] = torch.empty(b.shape, dtype=b.dtype)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipes", nargs="*", default=list(RECIPES), help="recipes of the package")
    parser.add_argument("--kinds", action="store_true", help="also list what is launched how often")


def main(arguments: argparse.Namespace) -> None:
    say("| recipe | model | parameters | a step's tokens | TFLOP | GB | launches | at least | at most |")
    say("|---|---|---:|---:|---:|---:|---:|---:|---:|")
    for name in arguments.recipes:
        for model in ["phase7"] if name.startswith("phase7") else ["new_llm", "tiny_gpt2"]:
            cost, tokens, parameters = cost_of_a_step(name, model)
            say(
                f"| {name} | {model} | {parameters / 1e6:,.1f}M | {tokens:,} | {cost.flops / 1e12:.2f} | "
                f"{cost.bytes / 1e9:.1f} | {cost.launches:,} | {1e3 * cost.seconds:,.0f} ms | "
                f"{tokens / cost.seconds / 1e3:,.0f}k tokens/s |"
            )
            if arguments.kinds:
                for kind, count in sorted(cost.kinds.items(), key=lambda item: -item[1]):
                    say(f"    {count:5d} {kind}")
