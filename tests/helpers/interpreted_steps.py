"""Training steps with the kernels in Triton's interpreter, at odd sizes, in a process of their own: no
kernel may leave its tensors (`kernel_memory`).
"""

import os

import pytest
import torch

from newllm_lib.generation.decoding import read_prompts
from newllm_lib.ops.common import dispatch
from newllm_lib.recipe import load_recipe
from newllm_lib.training.model_config import build_model
from newllm_lib.training.optim.build import build_optimizer
from tests.helpers import kernel_memory

assert os.environ.get("TRITON_INTERPRET") == "1", "run this through the test file"

SMALL = {"num_layers": 2, "dropout": 0.1}
WIDE = {"hidden_size": 512, "context_dim": 512, "mlp_size": 1536, **SMALL}
NARROW = {"hidden_size": 48, "context_dim": 40, "mlp_size": 100, "num_heads": 4, **SMALL}


@pytest.fixture(autouse=True)
def kernels_on_a_cpu(monkeypatch):
    """The rules choose the kernels as on a GPU with tensor cores."""

    def takes(x, *_):
        return _HAS_TRITON and not _switched_off and x.dtype in _KERNEL_DTYPES  # noqa: F821

    monkeypatch.setattr(dispatch.runs_triton, "__code__", takes.__code__)
    monkeypatch.setattr(dispatch, "_tensor_core_dot", lambda: True)
    with kernel_memory.checked() as launched:
        yield
    assert launched


@pytest.mark.parametrize(
    ("name", "changes", "vocabulary", "batch", "time", "dtype"),
    [
        ("text", WIDE, 1024, 1, 37, None),
        ("text", WIDE, 1000, 2, 19, torch.bfloat16),
        ("text", {**NARROW, "optimizer": "adamw"}, 50257, 3, 5, None),
        ("demo", NARROW, 1000, 1, 1, None),
    ],
    ids=str,
)
def test_two_steps_stay_in_their_tensors(name, changes, vocabulary, batch, time, dtype):
    """With a document's start inside, the state carried into the second, and a few tokens said at the end."""
    recipe = load_recipe(name, {"weights_dtype": "fp32", "optimizer_in_backward": False, **changes})
    torch.manual_seed(0)
    model = build_model(recipe, vocabulary).train()
    model.config.bos_token_id = 0
    optimizer = build_optimizer(model, recipe)
    state = {}
    for _ in range(2):
        ids = torch.randint(1, vocabulary, (batch, time))
        ids[:, time // 2] = 0
        labels = ids.roll(-1, 1)
        labels[:, -1] = -100
        carries = "state" if recipe.model != "tiny_gpt2" else None
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            output = model(input_ids=ids, shift_labels=labels, use_cache=carries is not None, **state)
        output.loss.backward()
        if hasattr(optimizer, "clip_norm"):
            optimizer.clip_norm(1.0)
        optimizer.step()
        model.zero_grad(set_to_none=True)
        state = {carries: output[carries].detach()} if carries else {}
    if state and recipe.model == "new_llm":
        read, _ = read_prompts(model, [[1, 2, 3], [4]])
        with torch.no_grad():
            model.eval()(input_ids=torch.tensor([[1], [2]]), state=read, use_cache=True)
    assert all(p.isfinite().all() for p in model.parameters())
