"""Single operations beside plain references and peers: forward, forward + backward, bytes moved, memory.

    newllm bench ops [NAME …]          all operations, or these

On a GPU replayed from a CUDA graph, in bfloat16; without one at small sizes in float32, for those ways that
need no GPU. "Bytes moved" are those of every input, output and gradient, each moved once each way: divided by
the time they say how near an operation comes to what the memory bus allows. A way that cannot run (a package
that is not there, too little memory) is said and left out.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import common
from benchmarks.common import Rows
from benchmarks.ops_peers import eager_distance, flex_distance
from newllm_lib.console import say
from newllm_lib.errors import UsageError

Inputs = list[Tensor]
OURS = "New-LLM"
SETS = 3  # of inputs, so that a GPU's cache flatters nobody


@dataclass(frozen=True)
class Way:
    """Who computes an operation: `function` of what `draw` gives; gradients of all inputs that require one.

    Args:
        graph: a CUDA graph can hold it.
        cpu: it runs without a GPU.
    """

    function: Callable[..., Tensor]
    draw: Callable[[], Inputs]
    graph: bool = True
    cpu: bool = True


@dataclass(frozen=True)
class Operation:
    """One row of the table.

    Args:
        benchmark: its name in results.csv.
        ways: from the device, the dtype and a size (its numbers) to who computes it: ours, the plain
            reference, the peers.
        names: what the numbers of a size are.
        sizes: on a GPU.
        small: without one.
        note: of every figure.
    """

    benchmark: str
    ways: Callable[..., dict[str, Way]]
    names: str
    sizes: tuple[tuple, ...]
    small: tuple[tuple, ...]
    note: str = ""


# --- the operations -----------------------------------------------------------------------------------------


def normal(device: str, dtype: torch.dtype, *shape: int, scale: float = 1.0) -> Tensor:
    """Random numbers whose gradient is wanted."""
    return (scale * torch.randn(*shape, device=device)).to(dtype).requires_grad_()


def gated_scan(device: str, dtype: torch.dtype, batch: int, length: int, dim: int) -> dict[str, Way]:
    """New-LLM's recurrence: gates, scan, read-out."""
    from newllm_lib.ops.gated_scan import gated_scan as ours, reference

    doc_starts = torch.rand(batch, length, device=device) < 0.01

    def draw() -> Inputs:
        wide, vector = partial(normal, device, dtype), partial(normal, device, torch.float32)
        return [wide(batch, length, 3 * dim), vector(dim), vector(dim), vector(batch, dim)]

    def by(function) -> Callable[..., Tensor]:
        return lambda p, bias, weight, state: function(p, bias, weight, doc_starts, None, state)[0]

    return {OURS: Way(by(ours), draw), "plain torch": Way(by(reference.gated_scan), draw)}


def short_conv(device: str, dtype: torch.dtype, batch: int, length: int, dim: int) -> dict[str, Way]:
    """The short causal convolution before the gates."""
    from newllm_lib.ops.short_conv import reference, short_conv as ours

    doc_starts = torch.rand(batch, length, device=device) < 0.01

    def draw() -> Inputs:
        vector = partial(normal, device, torch.float32)
        return [normal(device, dtype, batch, length, dim), vector(dim, 4), vector(batch, 3, dim)]

    return {
        OURS: Way(lambda x, weight, conv_state: ours(x, weight, doc_starts, conv_state=conv_state)[0], draw),
        "plain torch": Way(
            lambda x, weight, conv_state: reference.short_conv(x, weight, doc_starts, conv_state), draw
        ),
    }


def hyperbolic_attention(
    device: str, dtype: torch.dtype, batch: int, heads: int, length: int, dim: int, window: int | None
) -> dict[str, Way]:
    """Attention by exact Poincaré distance. The peers get points inside the ball; ours gets vectors and maps
    them itself. SDPA, by dot product, is another mathematics: the price of the distance is the gap to it."""
    from newllm_lib.ops.hyperbolic_attention import hyperbolic_attention as ours

    shape = batch, heads, length, dim

    def vectors() -> Inputs:
        """q, k of length about 1.5, v, beta and curvature."""
        drawn = [
            normal(device, dtype, *shape, scale=scale) for scale in (1.5 * dim**-0.5, 1.5 * dim**-0.5, 1.0)
        ]
        return [*drawn, *(torch.ones(heads, device=device).requires_grad_() for _ in range(2))]

    def points() -> Inputs:
        """The same as points of the unit ball of curvature -1."""
        q, k, v, *_ = vectors()
        lengths = (x.detach().norm(dim=-1, keepdim=True) for x in (q, k))
        inside = [
            F.normalize(x.detach(), dim=-1) * torch.tanh(n) for x, n in zip((q, k), lengths, strict=True)
        ]
        return [*(x.requires_grad_() for x in inside), v]

    ways = {OURS: Way(lambda *x: ours(*x, window=window), vectors)}
    if window is None or device == "cpu":
        ways["eager torch"] = Way(partial(eager_distance, window), points)
    if window is None:
        ways["SDPA (dot product)"] = Way(partial(F.scaled_dot_product_attention, is_causal=True), points)
    if length in (1024, 4096):  # it compiles for each length, which takes long
        ways["FlexAttention"] = Way(flex_distance(device, window, length), points, cpu=False)
    return ways


def linear_attention(
    device: str, dtype: torch.dtype, batch: int, heads: int, length: int, features: int, dim: int
) -> dict[str, Way]:
    """Phase 8's attention. flash-linear-attention's `chunk_simple_gla` is the same recurrence, without the
    division by the sum of the weights; everyone gets the inputs in the layout that it wants."""
    from newllm_lib.ops.linear_attention import linear_attention as ours

    def draw(*places: int) -> Inputs:
        q, k = (torch.randn(*places, features, device=device).softmax(-1).to(dtype) for _ in "qk")
        v, gate = torch.randn(*places, dim, device=device).to(dtype), torch.randn(*places, device=device)
        return [x.requires_grad_() for x in (q, k, v, F.logsigmoid(gate + 4))]

    def by_fla(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor) -> Tensor:
        from fla.ops.simple_gla import chunk_simple_gla

        return chunk_simple_gla(q, k, v, log_decay, scale=1.0)[0]

    heads_first, time_first = partial(draw, batch, heads, length), partial(draw, batch, length, heads)
    return {
        OURS: Way(lambda *x: ours(*x)[0], heads_first),
        "plain torch, in chunks": Way(lambda *x: ours(*x, backend="chunked")[0], heads_first),
        "flash-linear-attention": Way(by_fla, time_first, cpu=False),
    }


def head(device: str, dtype: torch.dtype, tokens: int, vocabulary: int, dim: int) -> dict[str, Way]:
    """An output layer with its cross-entropy: Phase 7's tensor train, and a dense one."""
    from newllm_lib.ops.linear_cross_entropy import linear_cross_entropy
    from newllm_lib.ops.tensor_train import tensor_train_cross_entropy

    labels = torch.randint(0, vocabulary, (tokens,), device=device)

    def dense(dtype_of_weight: torch.dtype, words: int = vocabulary) -> Inputs:
        hidden = normal(device, dtype, tokens, dim)
        return [hidden, normal(device, dtype_of_weight, words, dim, scale=0.02)]

    def fused(hidden: Tensor, weight: Tensor) -> Tensor:
        return linear_cross_entropy(hidden, weight, labels)

    def plain(hidden: Tensor, weight: Tensor) -> Tensor:
        return F.cross_entropy((hidden @ weight.T).float(), labels)

    whole_tiles = vocabulary + -vocabulary % 128
    ways = {}
    for rank in (64, 128):
        function, draw = _tensor_train(device, dtype, tokens, vocabulary, dim, rank)
        loss = partial(_on_cores, tensor_train_cross_entropy, function, labels, vocabulary)
        ways[f"tensor train, rank 2 x {rank}"] = Way(loss, draw, graph=False)
    return ways | {
        "dense, fused": Way(fused, partial(dense, dtype), graph=False),
        "dense, fused, fp32 weight": Way(fused, partial(dense, torch.float32), graph=False),
        f"dense, fused, {whole_tiles:,} words": Way(fused, partial(dense, dtype, whole_tiles), graph=False),
        "dense, all logits": Way(plain, partial(dense, dtype), graph=False),
    }


def _tensor_train(device: str, dtype: torch.dtype, tokens: int, vocabulary: int, dim: int, rank: int):
    """The table whose cores make the head, and what draws hidden states and the cores' parameters."""
    from newllm_lib.layers.tensor_train import TensorTrainEmbedding

    with torch.device(device):
        layer = TensorTrainEmbedding(vocabulary, dim, rank)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=layer.core_std(0.02))
    return layer, lambda: [normal(device, dtype, tokens, dim), *layer.parameters()]


def _on_cores(loss, layer, labels: Tensor, vocabulary: int, hidden: Tensor, *parameters: Tensor) -> Tensor:
    return loss(hidden, *layer.cores(), labels, vocabulary)


def embedding(device: str, dtype: torch.dtype, tokens: int, vocabulary: int, dim: int) -> dict[str, Way]:
    """The look-up with its gradient."""
    from newllm_lib.ops.tensor_train import tensor_train_rows

    labels = torch.randint(0, vocabulary, (tokens,), device=device)
    layer, _ = _tensor_train(device, dtype, tokens, vocabulary, dim, 128)
    weight = normal(device, torch.float32, vocabulary, dim, scale=0.02)
    return {
        "rows, rank 2 x 128": Way(
            lambda *cores: tensor_train_rows(labels, *layer.cores()), lambda: [*layer.parameters()], False
        ),
        "rows, dense": Way(lambda table: F.embedding(labels, table), lambda: [weight], False),
    }


_RECURRENCE = ((512, 128, 256), (32, 1024, 1024), (1, 65_536, 256))  # the first is a small model's training
_WORDS = ((16_384, 50_257, 2048),)
OPERATIONS = {
    "gated_scan": Operation("gated scan", gated_scan, "batch x time x dim", _RECURRENCE, ((4, 64, 32),)),
    "short_conv": Operation(
        "short convolution", short_conv, "batch x time x dim", _RECURRENCE, ((4, 64, 32),)
    ),
    "hyperbolic_attention": Operation(
        "hyperbolic attention",
        hyperbolic_attention,
        "batch x heads x time x head size",
        (
            (8, 16, 1024, 128, None),
            (2, 16, 4096, 128, None),
            (8, 16, 1024, 64, None),
            *((8192 // length, 16, length, 128, None) for length in (128, 256, 512, 2048, 8192)),
            *((1, 16, length, 128, 128) for length in (4096, 8192, 16_384, 32_768, 65_536)),
        ),
        ((1, 2, 32, 16, None), (1, 2, 32, 16, 8)),
        "exact Poincaré distance",
    ),
    "linear_attention": Operation(
        "linear attention",
        linear_attention,
        "batch x heads x time x features x value size",
        tuple(
            (batch, 8, length, 64, 64) for batch, length in ((64, 256), (4, 4096), (1, 16_384), (1, 65_536))
        ),
        ((2, 2, 64, 8, 8),),
    ),
    "head": Operation("head with cross-entropy", head, "tokens x words x dim", _WORDS, ((64, 300, 32),)),
    "embedding": Operation(
        "head with cross-entropy", embedding, "tokens x words x dim", _WORDS, ((64, 300, 32),)
    ),
}


# --- the command --------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_out(parser)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"some of {' '.join(OPERATIONS)} (default: all)"
    )
    parser.add_argument("--peers", nargs="+", metavar="WAY", help="only ways whose names begin so (and ours)")


def main(arguments: argparse.Namespace) -> dict | None:
    names = common.choose(arguments.names, list(OPERATIONS), "operation")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.float32
    if device == "cuda":
        dtype = torch.bfloat16 if torch.cuda.get_device_capability() >= (8, 0) else torch.float16
    speed = copy_bandwidth(device)
    say(f"{common.hardware()}, {str(dtype)[6:]}; a large copy moves {speed / 1e12:.3f} TB/s")
    collected = [
        row for name in names for row in measure_all(OPERATIONS[name], device, dtype, speed, arguments.peers)
    ]
    if arguments.peers and not collected:
        raise UsageError(f"No way begins with {' or '.join(arguments.peers)}.")
    rows = Rows("ops")
    rows.rows = collected
    return common.record(rows, arguments)


def measure_all(
    operation: Operation, device: str, dtype: torch.dtype, speed: float, peers: list[str] | None
) -> list[dict[str, str]]:
    """The rows of all ways at all sizes.

    Args:
        speed: bytes a second of a large copy.
    """
    rows = Rows(operation.benchmark)
    for size in operation.sizes if device == "cuda" else operation.small:
        *shape, window = (*size, None) if operation.ways is not hyperbolic_attention else size
        of = " x ".join(f"{number:,}" for number in shape) + (f", window {window}" if window else "")
        for name, way in operation.ways(device, dtype, *size).items():
            wanted = peers is None or name.startswith((OURS, *peers))
            if not wanted or (device == "cpu" and not way.cpu):
                continue
            try:
                found = measure(way, device)
            except (ImportError, torch.OutOfMemoryError) as error:
                say(f"{operation.benchmark}, {name}, {of}: left out ({common.last_line(str(error))})")
                continue
            finally:
                if device == "cuda":
                    torch.cuda.empty_cache()
            _add(rows, name, of, found, f"{operation.names}, {str(dtype)[6:]}", operation.note, speed)
    return rows.rows


def _add(rows: Rows, name: str, of: str, found: dict[str, float], what: str, note: str, speed: float) -> None:
    note = f"{what}, {note}" if note else what
    moved, step = found["bytes moved"], found["forward + backward"]
    line = f"{name:<28}{of:<34} {found['forward']:>9.3f} ms forward, {step:>9.3f} with backward"
    share = moved / speed / (step * 1e-3)
    say(f"{line}, {moved / 2**20:,.1f} MiB moved ({100 * share:.0f} % of a copy's speed)")
    units = {
        "seconds to the first result": "s",
        "bytes moved": "bytes",
        "peak memory beyond the inputs": "GiB",
    }
    for metric, value in found.items():
        rows.add(name, f"{metric}, {of}", value, units.get(metric, "ms"), note)


def measure(way: Way, device: str) -> dict[str, float]:
    """Milliseconds (medians) of forward and of forward + backward, seconds of the first of these, bytes
    moved, and on a GPU the GiB that it holds beyond its inputs."""
    sets = [way.draw() for _ in range(SETS if device == "cuda" else 1)]
    wanted = [[x for x in inputs if x.requires_grad] for inputs in sets]
    began = time.monotonic()
    upstream = torch.randn_like(way.function(*sets[0]))

    def step(number: int) -> None:
        torch.autograd.grad(way.function(*sets[number]), wanted[number], upstream)

    def steps() -> None:
        for number in range(len(sets)):
            step(number)

    def forwards() -> None:
        with torch.no_grad():
            for inputs in sets:
                way.function(*inputs)

    step(0)
    if device == "cuda":
        torch.cuda.synchronize()
    found = {"seconds to the first result": time.monotonic() - began}
    found["forward"] = common.median_ms(forwards, device, graph=way.graph) / len(sets)
    found["forward + backward"] = common.median_ms(steps, device, graph=way.graph) / len(sets)
    # forward: inputs and output; backward: inputs again, the output's gradient, the inputs' gradients
    sizes = [2 * _bytes(x) for x in (*sets[0], upstream)] + [_bytes(x) for x in wanted[0]]
    found["bytes moved"] = float(sum(sizes))
    if device == "cuda":
        found["peak memory beyond the inputs"] = common.peak_gib(lambda: step(0))
    return found


def _bytes(x: Tensor) -> int:
    return x.numel() * x.element_size()


def copy_bandwidth(device: str) -> float:
    """Bytes a second of a large copy on the device, read and written."""
    source = torch.rand(2**29 if device == "cuda" else 2**22, device=device)
    target = torch.empty_like(source)
    # by the copy engine, and by a kernel
    copies = [lambda: target.copy_(source), lambda: torch.mul(source, 2.0, out=target)]
    best = min(common.median_ms(copy, device) for copy in copies)
    return 2 * _bytes(source) / (best * 1e-3)
