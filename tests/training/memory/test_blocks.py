"""Blocks that compute their activations again: the same losses and gradients, in less memory, whatever passes
through them.
"""

import copy

import pytest
import torch
from torch import nn

from newllm_lib.errors import NewLLMError
from newllm_lib.evaluation.memory import peak_memory
from newllm_lib.training.memory import blocks
from newllm_lib.training.memory.blocks import checkpoint_blocks
from tests.helpers.small_models import model


def loss_and_gradients(m, ids, **inputs):
    m.zero_grad()
    torch.manual_seed(1)
    loss = m(ids, labels=ids, use_cache=False, **inputs).loss
    loss.backward()
    return [loss.detach(), *(p.grad for p in m.parameters())]


@pytest.mark.parametrize("name", ["new_llm", "tiny_gpt2", "llama"])
@pytest.mark.parametrize("sequences", [None, 2, 3])
def test_losses_and_gradients_are_the_same_in_chunks_of_any_size(name, sequences):
    plain = model(name)
    again = copy.deepcopy(plain)
    checkpoint_blocks(again, sequences)
    ids = torch.randint(0, 60, (7, 12))
    for a, b in zip(loss_and_gradients(plain, ids), loss_and_gradients(again, ids), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_padding_is_cut_with_its_sequences():
    plain = model("llama")
    again = copy.deepcopy(plain)
    checkpoint_blocks(again, 2)
    ids, mask = torch.randint(0, 60, (5, 12)), torch.ones(5, 12, dtype=torch.long)
    mask[1, :4], mask[4, :9] = 0, 0
    found, expected = (loss_and_gradients(m, ids, attention_mask=mask) for m in (again, plain))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["new_llm", "tiny_gpt2"])
def test_dropout_falls_alike_in_both_runs_of_a_block(name):
    plain = model(name, dropout=0.3)
    again = copy.deepcopy(plain)
    checkpoint_blocks(again)
    ids = torch.randint(0, 60, (4, 12))
    for a, b in zip(loss_and_gradients(plain, ids), loss_and_gradients(again, ids), strict=True):
        torch.testing.assert_close(a, b)


def test_a_step_needs_less_memory_and_still_less_in_chunks():
    ids = torch.randint(0, 60, (16, 48))
    peaks = []
    for how in ({}, {"sequences": None}, {"sequences": 2}):
        m = model("llama")
        if how:
            checkpoint_blocks(m, **how)
        peaks.append(peak_memory(lambda m=m: loss_and_gradients(m, ids), torch.device("cpu")))
    assert peaks[1] < 0.75 * peaks[0] and peaks[2] < 0.75 * peaks[1]


def test_a_state_goes_through_a_block_and_out_of_it():
    plain = model("new_llm")
    again = copy.deepcopy(plain)
    checkpoint_blocks(again, 2)
    ids = torch.randint(0, 60, (5, 12))
    carried = plain(ids, use_cache=True).state
    a, b = (m(ids, labels=ids, state=carried, use_cache=True) for m in (plain, again))
    torch.testing.assert_close(a.state, b.state)
    torch.testing.assert_close(a.loss, b.loss)


def test_evaluation_and_generation_pass_through_unchanged():
    m = model("tiny_gpt2").eval()
    ids = torch.randint(0, 60, (2, 8))
    with torch.no_grad():
        before = m(ids).logits
        checkpoint_blocks(m, 1)
        assert torch.equal(m(ids).logits, before)


def test_a_model_without_blocks_and_a_block_without_a_batch_are_refused():
    with pytest.raises(NewLLMError, match="gradient_checkpointing must stay off"):
        checkpoint_blocks(nn.Linear(2, 2))

    class Sum(nn.Module):
        def forward(self, x):
            return x.sum()

    m = nn.Module()
    m.layers = nn.ModuleList([Sum()])
    m.weight = nn.Parameter(torch.ones(1))
    checkpoint_blocks(m, 1)
    with pytest.raises(NewLLMError, match="without a batch dimension"):
        m.layers[0](torch.ones(4, 2) * m.weight)


def test_with_inputs_on_the_host_a_tensor_train_head_holds_fewer_logits(monkeypatch):
    plain = model("phase7")
    again = copy.deepcopy(plain)
    monkeypatch.setattr(blocks, "SMALL_HEAD", 640)  # ten tokens of 64 rows
    checkpoint_blocks(again, 2, offload=True)
    assert plain.lm_head.block_elements is None and again.lm_head.block_elements == 640
    ids = torch.randint(0, 60, (4, 12))
    for a, b in zip(loss_and_gradients(plain, ids), loss_and_gradients(again, ids), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("offload", [False, True])
def test_on_a_gpu_with_inputs_on_the_host(offload):
    plain = model("llama").cuda()
    again = copy.deepcopy(plain)
    passes = checkpoint_blocks(again, 2, offload)
    for _ in range(3):  # the host's buffers are used again
        ids = torch.randint(0, 60, (8, 32), device="cuda")
        for a, b in zip(loss_and_gradients(plain, ids), loss_and_gradients(again, ids), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    assert not offload or (not passes.store.waiting and len(passes.store.free) == 1)
