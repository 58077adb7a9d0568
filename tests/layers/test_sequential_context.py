"""The original recurrence: padding, documents, states, dtypes. Its equations:
`tests/models/test_models.py`.
"""

import pytest
import torch

from newllm_lib.layers.sequential_context import SequentialContext


def _setting(batch=3, time=21, layers=2, dtype=torch.float64):
    torch.manual_seed(0)
    layer = SequentialContext(5, 4, 6, layers).to(dtype)
    with torch.no_grad():
        layer.norm.weight.uniform_(0.5, 1.5), layer.norm.bias.normal_()
    doc_starts, mask = torch.rand(batch, time) < 0.2, torch.rand(batch, time) < 0.8
    return (
        layer,
        torch.randn(batch, time, 5, dtype=dtype),
        torch.randn(batch, 4, dtype=dtype),
        doc_starts,
        mask,
    )


def test_a_split_sequence_continues_from_its_context():
    layer, x, state, doc_starts, mask = _setting()
    h, final = layer(x, state, doc_starts, mask)
    first, middle = layer(x[:, :8], state, doc_starts[:, :8], mask[:, :8])
    second, last = layer(x[:, 8:], middle, doc_starts[:, 8:], mask[:, 8:])
    torch.testing.assert_close(torch.cat([first, second], 1), h)
    torch.testing.assert_close(last, final)


def test_padding_is_as_if_it_were_not_there():
    layer, x, state, doc_starts, mask = _setting()
    h, final = layer(x, state, doc_starts, mask)
    for row, kept in enumerate(mask):
        alone, last = layer(x[row, kept][None], state[row, None], doc_starts[row, kept][None])
        torch.testing.assert_close(h[row, kept], alone[0])
        torch.testing.assert_close(final[row], last[0])


def test_a_document_sees_nothing_before_its_start():
    layer, x, state, *_ = _setting()
    doc_starts = torch.zeros(3, 21, dtype=torch.bool)
    doc_starts[:, 9] = True
    h, _ = layer(x, state, doc_starts)
    torch.testing.assert_close(h[:, 9:], layer(x[:, 9:], torch.zeros_like(state))[0])


@pytest.mark.parametrize("layers", [1, 3])
def test_float32_and_autocast_stay_near_float64(layers):
    layer, x, state, doc_starts, mask = _setting(layers=layers)
    exact, exact_final = layer(x, state, doc_starts, mask)
    h, final = layer.float()(x.float(), state.float(), doc_starts, mask)
    torch.testing.assert_close(h.double(), exact, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(final.double(), exact_final, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        h, final = layer(x.float(), state.float(), doc_starts, mask)
    assert h.dtype == torch.bfloat16 and final.dtype == torch.float32
    assert (final.double() - exact_final).norm() < 3e-2 * exact_final.norm()


def test_all_gradients_are_those_of_the_equations():
    layer, x, state, doc_starts, mask = _setting(2, 5)
    doc_starts, mask = doc_starts[:2, :5], mask[:2, :5]
    parameters = [p.detach().requires_grad_() for p in layer.parameters()]
    names = [name for name, _ in layer.named_parameters()]

    def outputs(x, state, *values):
        h, final = torch.func.functional_call(
            layer, dict(zip(names, values, strict=True)), (x, state, doc_starts, mask)
        )
        return h * mask.unsqueeze(-1), final

    assert torch.autograd.gradcheck(outputs, (x.requires_grad_(), state.requires_grad_(), *parameters))
