"""The hoisted loop gives the numbers of the loop as written: outputs and every gradient, on the CPU and from CUDA
graphs.
"""

import pytest
import torch
from torch import nn

from newllm_lib.ops.sequential_context import SequentialWeights, reference, sequential_context
from newllm_lib.ops.sequential_context.graph import STEPS
from tests.ops import kernel_checks as checks


class Layer(nn.Module):
    """The modules that hold the recurrence's parameters."""

    def __init__(self, embedding, context, hidden, layers):
        super().__init__()
        sizes = [embedding + context] + [hidden] * layers
        self.mlp = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes[:-1], sizes[1:], strict=True))
        self.gates, self.norm = nn.Linear(hidden, 3 * context), nn.LayerNorm(context)

    @property
    def weights(self):
        return SequentialWeights.of(self.mlp, self.gates, self.norm)


def _setting(batch, time, layers, flags, device="cpu", dtype=torch.float64, sizes=(5, 4, 6), seed=0):
    torch.manual_seed(seed)
    layer = Layer(*sizes, layers).to(device, dtype)
    with torch.no_grad():
        layer.norm.weight.uniform_(0.5, 1.5), layer.norm.bias.normal_()
    draw = checks.Draw(device, dtype, seed)
    embeddings, initial = draw.normal(batch, time, sizes[0]), draw.normal(batch, sizes[1])
    masks = [draw.flags(batch, time, share=share) if flags else None for share in (0.2, 0.8)]
    return layer, embeddings, initial, *masks


def _results(function, layer, embeddings, initial, starts, valid, seed=3):
    h, final = function(embeddings, layer.weights, initial, starts, valid)
    if valid is not None:
        h = h * valid.unsqueeze(-1)
    upstream = [torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)).to(x) for x in (h, final)]
    wanted = [x for x in (embeddings, initial) if x is not None]
    return [h.detach(), final.detach(), *torch.autograd.grad([h, final], [*wanted, *layer.parameters()], upstream)]


@pytest.mark.parametrize(
    ("batch", "time", "layers"), [(1, 1, 1), (3, STEPS, 1), (2, 2 * STEPS + 3, 1), (2, STEPS + 1, 3)]
)
@pytest.mark.parametrize("flags", [False, True])
def test_hoisted_equals_loop(batch, time, layers, flags):
    setting = _setting(batch, time, layers, flags)
    with checks.poisoned_buffers():
        found = _results(sequential_context, *setting)
    for x, y in zip(_results(reference.sequential_context, *setting), found, strict=True):
        torch.testing.assert_close(y, x, rtol=1e-10, atol=1e-10)


def test_without_a_state_it_starts_from_zero():
    layer, embeddings, initial, *_ = _setting(2, 5, 1, False)
    with_zeros = sequential_context(embeddings, layer.weights, torch.zeros_like(initial))
    for x, y in zip(with_zeros, sequential_context(embeddings, layer.weights), strict=True):
        torch.testing.assert_close(x, y)


def test_a_split_sequence_continues_from_its_context():
    layer, embeddings, initial, starts, _ = _setting(2, 21, 2, True)
    h, final = sequential_context(embeddings, layer.weights, initial, starts)
    first, middle = sequential_context(embeddings[:, :8], layer.weights, initial, starts[:, :8])
    second, last = sequential_context(embeddings[:, 8:], layer.weights, middle, starts[:, 8:])
    torch.testing.assert_close(torch.cat([first, second], 1), h)
    torch.testing.assert_close(last, final)


def test_float32_and_autocast_stay_near_float64():
    layer, embeddings, initial, starts, valid = _setting(3, 20, 2, True)
    exact = _results(reference.sequential_context, layer, embeddings, initial, starts, valid)
    layer, embeddings, initial = layer.float(), embeddings.float().detach(), initial.float().detach()
    setting = layer, embeddings.requires_grad_(), initial.requires_grad_(), starts, valid
    for x, y in zip(_results(sequential_context, *setting), exact, strict=True):
        checks.assert_near(x, y, 1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        h, final = sequential_context(setting[1], layer.weights, *setting[2:])
    assert h.dtype == torch.bfloat16 and final.dtype == torch.float32
    checks.assert_near(final, exact[1], 3e-2)


@pytest.mark.parametrize(("layers", "flags"), [(1, True), (2, False)])
def test_operator_is_well_formed(layers, flags):
    layer, embeddings, initial, starts, valid = _setting(2, 3, layers, flags, dtype=torch.float32)
    (first, bias), *rest = layer.weights.mlp
    pre = nn.functional.linear(embeddings, first[:, :5], bias).detach().requires_grad_()
    hidden = [pre.new_empty(0, 6, 6), pre.new_empty(0, 6)]
    if rest:
        hidden = [torch.stack(parts).detach() for parts in zip(*rest, strict=True)]
    recurrent = first[:, 5:].detach().clone().requires_grad_()
    arguments = (pre, recurrent, *hidden, *layer.weights.gates, *layer.weights.norm)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_static")
    operator = torch.ops.newllm.sequential_loop.default
    torch.library.opcheck(operator, (*arguments, initial, starts, valid, 1e-5), test_utils=tests)


def test_compiles_without_graph_break():
    layer, embeddings, initial, starts, _ = _setting(2, 5, 1, True, dtype=torch.float32)

    def function(embeddings, initial):
        h, final = sequential_context(torch.tanh(embeddings), layer.weights, initial, starts)
        return h * 2, final

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    gradients = [
        torch.autograd.grad([x.square().sum() for x in version(embeddings, initial)], [embeddings, *layer.parameters()])
        for version in (function, compiled)
    ]
    for eager, found in zip(*gradients, strict=True):
        torch.testing.assert_close(found, eager)


def test_kernels_in_the_interpreter():
    checks.run_interpreted("sequential_kernels")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sizes", [(7, 100, 33), (16, 256, 64), (24, 48, 1040)])
def test_kernels_on_a_gpu(sizes, dtype):
    checks.check_sequential_kernels("cuda", dtype, 37, 3, sizes, layers=2)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("time", "layers", "flags"), [(1, 1, False), (STEPS, 1, True), (2 * STEPS + 5, 1, False), (40, 3, True)]
)
def test_graphs_equal_loop_in_float32(time, layers, flags):
    layer, embeddings, initial, starts, valid = _setting(5, time, layers, flags, "cuda", torch.float32, (24, 20, 33))
    found = _results(sequential_context, layer, embeddings, initial, starts, valid)
    exact = [x.detach().double().requires_grad_() for x in (embeddings, initial)]
    expected = _results(reference.sequential_context, layer.double(), *exact, starts, valid)
    for x, y in zip(found, expected, strict=True):
        checks.assert_near(x, y, 2e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_graphs_under_autocast_are_as_near_as_the_loop(dtype):
    layer, embeddings, initial, starts, valid = _setting(64, 40, 1, True, "cuda", torch.float32, (64, 64, 128))
    errors = []
    exact = [x.detach().double().requires_grad_() for x in (embeddings, initial)]
    runs = []
    for function in (reference.sequential_context, sequential_context):
        with torch.autocast("cuda", dtype):
            h, final = function(embeddings, layer.weights, initial, starts, valid)
            loss = (h.float() * valid.unsqueeze(-1)).square().mean() + final.square().mean()
        gradients = torch.autograd.grad(loss, [embeddings, initial, *layer.parameters()])
        runs.append([h * valid.unsqueeze(-1), final, *gradients])
    layer.double()
    h, final = reference.sequential_context(exact[0], layer.weights, exact[1], starts, valid)
    loss = (h * valid.unsqueeze(-1)).square().mean() + final.square().mean()
    expected = [h * valid.unsqueeze(-1), final, *torch.autograd.grad(loss, [*exact, *layer.parameters()])]
    for run in runs:
        errors.append([(x.double() - y).norm().item() / y.norm().item() for x, y in zip(run, expected, strict=True)])
    for by_loop, by_graph in zip(*errors, strict=True):
        assert by_graph < 1.5 * by_loop + 1e-3 and by_graph < 5e-2, errors


@pytest.mark.gpu
def test_a_graph_serves_many_calls():
    """Two calls before their backward passes, and new weights: nothing of one call may leak into another."""
    settings = [_setting(4, STEPS, 1, False, "cuda", torch.float32, (16, 16, 32), seed) for seed in (0, 1)]
    alone = [_results(sequential_context, *setting) for setting in settings]
    outputs = [sequential_context(e, layer.weights, c, s, v) for layer, e, c, s, v in settings]
    for (layer, e, c, *_), (h, final), expected in zip(settings, outputs, alone, strict=True):
        upstream = [torch.randn(x.shape, generator=torch.Generator().manual_seed(3)).to(x) for x in (h, final)]
        found = [h, final, *torch.autograd.grad([h, final], [e, c, *layer.parameters()], upstream)]
        for x, y in zip(found, expected, strict=True):
            torch.testing.assert_close(x, y)


@pytest.mark.gpu
def test_inside_a_callers_graph_and_compiled():
    layer, embeddings, initial, *_ = _setting(4, 2 * STEPS, 1, False, "cuda", torch.float32, (16, 16, 32))
    with torch.no_grad():
        expected, _ = sequential_context(embeddings, layer.weights, initial)
        compiled = torch.compile(lambda e, c: sequential_context(e, layer.weights, c)[0] + 1, fullgraph=True)
        torch.testing.assert_close(compiled(embeddings, initial), expected + 1)
        recorded = torch.cuda.CUDAGraph()
        with torch.cuda.graph(recorded):
            h, _ = sequential_context(embeddings, layer.weights, initial)
        h.zero_()
        recorded.replay()
        torch.testing.assert_close(h, expected)
