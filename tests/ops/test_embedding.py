"""Rows of the embedding: the plain ones follow autocast and train, the kernels give the same."""

import pytest
import torch

from newllm_lib.ops import embedding as op
from newllm_lib.recipe import load_recipe
from newllm_lib.training.model_config import build_model
from tests.helpers import kernel_checks as checks

SIZES = [(8192, 256, (512, 128)), (1000, 100, (3, 7)), (50, 513, (1, 1)), (5, 1, (64, 63))]


def test_in_the_interpreter():
    checks.run_interpreted("token_embedding and not operator")


def test_under_autocast_the_model_embeds_as_torch_does():
    model = build_model(load_recipe("demo", {"sized_for": "cpu"}), 300).train()
    ids = torch.randint(0, 300, (2, 9))
    found = []
    for plain in (False, True):
        hook = (
            model.model.embed_tokens.register_forward_hook(lambda *_: None) if plain else None
        )  # a hook wants to be called
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(ids, labels=ids).loss
        found.append((loss, *torch.autograd.grad(loss, list(model.parameters()))))
    hook.remove()
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_on_a_gpu(sizes, dtype):
    checks.check_token_embedding("cuda", dtype, *sizes)


@pytest.mark.gpu
def test_with_deterministic_algorithms_two_gradients_are_equal(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    weight = torch.randn(10, 256, device="cuda", requires_grad=True)
    ids, upstream = torch.randint(0, 10, (4096,), device="cuda"), torch.randn(4096, 256, device="cuda")
    torch.use_deterministic_algorithms(True)
    try:
        a, b = (
            torch.autograd.grad(op.token_embedding(ids, weight, torch.float32), weight, upstream)[0]
            for _ in range(2)
        )
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(a, b)
