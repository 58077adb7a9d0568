"""On a GPU: figures equal those of the processor, in half precision nearly; chat, completion and
timing run.
"""

import pytest
import torch

from newllm_lib.device import probe
from newllm_lib.evaluation import evaluate, measure_speed
from newllm_lib.generation import ChatSession, Settings, complete

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]
KINDS = ["new_llm", "tiny_gpt2"]


@pytest.mark.parametrize("kind", KINDS)
def test_figures_are_those_of_the_processor(kind, bpe, make_model, tools):
    split = tools.pack(bpe, tools.sentences(60, seed=5))
    model = make_model(bpe, kind)
    expected = evaluate(model, split, bpe)
    exact = evaluate(model.to("cuda"), split, bpe, batch_size=7, block_length=19)
    half = evaluate(model, split, bpe, dtype=probe().dtype)
    assert model.device.type == "cuda"
    assert exact["loss"] == pytest.approx(expected["loss"], rel=1e-4)
    assert half["loss"] == pytest.approx(expected["loss"], rel=0.02)
    assert half["tokens"] == exact["tokens"] == expected["tokens"]
    for key in [k for k in expected if k.startswith("context_") and expected[k] is not None]:
        assert exact[key] == pytest.approx(expected[key], rel=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_it_completes_talks_and_is_timed(kind, bpe, make_model):
    model = make_model(bpe, kind, max_seq_length=64)
    here = complete(model, bpe, ["Ada likes", "Bob"], temperature=0, max_new_tokens=5)
    model.cuda()
    assert complete(model, bpe, ["Ada likes", "Bob"], temperature=0, max_new_tokens=5) == here
    first, again = (complete(model, bpe, "Ada", max_new_tokens=9, seed=3) for _ in range(2))
    assert first == again
    session = ChatSession(model, bpe, Settings(max_new_tokens=6, seed=1), dialogue=True)
    said = ["".join(session.reply("Ada?")) for _ in range(2)]
    session.reset()
    assert "".join(session.reply("Ada?")) == said[0]
    speed = measure_speed(model, dtype=probe().dtype, repeats=2, decode_tokens=4)
    assert speed["batch_size"] == 128 and speed["peak_memory_mib"] > 1
    assert speed["training_tokens_per_second"] > 0 and speed["decode_memory_bytes"] > 0
