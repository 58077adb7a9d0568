"""The reported figures equal what one computes by hand, whatever the batch and block sizes."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from newllm_lib.errors import NewLLMError
from newllm_lib.evaluation import metrics
from newllm_lib.evaluation.batching import balanced_rows, blocks, cut_to_windows, document_pieces

KINDS = {
    "parallel": {"model": "new_llm"},
    "sequential": {"model": "new_llm", "recurrence": "sequential"},
    "joined": {"model": "new_llm"},
    "tiny_gpt2": {"model": "tiny_gpt2"},
}


def by_hand(model, split):
    """Log-probability and correctness of each target, document by document (GPT-2: window by window), one by
    one.
    """
    log_p, right, targets = [], [], []
    size = getattr(model.config, "n_positions", 10**9)
    ends = [*split.document_starts[1:], len(split.ids) - 1]
    for start, end in zip(split.document_starts, ends, strict=True):
        for left in range(start, end, size):
            ids = torch.from_numpy(split.ids[left : min(left + size, end) + 1].astype(np.int64))[None]
            with torch.no_grad():
                scores = model(input_ids=ids[:, :-1]).logits[0].double().log_softmax(-1)
            counted = torch.ones(ids.shape[1] - 1, dtype=torch.bool)
            if split.loss_mask is not None:
                counted = torch.from_numpy(split.loss_mask[left + 1 : left + ids.shape[1]].astype(bool))
            wanted = ids[0, 1:]
            log_p.append(scores.gather(1, wanted[:, None])[counted, 0])
            right.append((scores.argmax(1) == wanted)[counted])
            targets.append(wanted[counted])
    return torch.cat(log_p), torch.cat(right), torch.cat(targets)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["bpe", "words"])
def test_figures_equal_those_computed_by_hand(name, kind, masked, request, make_model, tools):
    tokenizer = request.getfixturevalue(name)
    model = make_model(tokenizer, **KINDS[kind])
    model.config.reset_at_bos = kind != "joined"
    mask = (lambda n: np.arange(n) % 3 != 0) if masked else None
    split = tools.pack(tokenizer, tools.sentences(23, seed=5), mask, lost_bytes=17)
    result = metrics.evaluate(model, split, tokenizer, batch_size=5, block_length=11)
    log_p, right, targets = by_hand(model, split)
    nats = -float(log_p.sum())
    assert result["tokens"] == len(targets)
    assert masked or result["tokens"] == len(split.ids) - 1
    assert result["loss"] == pytest.approx(nats / len(targets), rel=1e-5)
    assert result["perplexity"] == pytest.approx(math.exp(nats / len(targets)), rel=1e-4)
    assert result["bits_per_byte"] == pytest.approx((nats / math.log(2) + 8 * 17) / split.bytes, rel=1e-5)
    assert result["word_perplexity"] == pytest.approx(
        math.exp((nats + 8 * math.log(2) * 17) / split.words), rel=1e-4
    )
    assert result["accuracy"] == pytest.approx(right.double().mean().item(), abs=2 / len(targets))
    unknown = -1 if tokenizer.unk_token_id is None else tokenizer.unk_token_id
    assert result["unk_share"] == pytest.approx((targets == unknown).double().mean().item())
    assert (result["unk_share"] > 0.1) == (name == "words")
    assert (result["vocab_size"], result["bytes"], result["lost_bytes"]) == (len(tokenizer), split.bytes, 17)


@pytest.mark.parametrize("kind", KINDS)
def test_batch_and_block_sizes_change_nothing_but_rounding(kind, bpe, make_model, tools):
    model = make_model(bpe, **KINDS[kind])
    split = tools.pack(bpe, tools.sentences(6, seed=6))
    figures = [
        metrics.evaluate(model, split, bpe, batch_size=batch, block_length=block, health=False)
        for batch, block in ((1, 1), (1, 4096), (3, 7), (64, 13), (None, None))
    ]
    for other in figures[1:]:
        assert other["loss"] == pytest.approx(figures[0]["loss"], rel=1e-5)
        assert other["tokens"] == figures[0]["tokens"]
        assert other["accuracy"] == pytest.approx(figures[0]["accuracy"], abs=2 / other["tokens"])


@pytest.mark.parametrize("kind", KINDS)
def test_logits_never_exceed_the_limit(kind, bpe, make_model, tools, monkeypatch):
    model = make_model(bpe, **KINDS[kind])
    split = tools.pack(bpe, tools.sentences(6, seed=7))
    expected = metrics.evaluate(model, split, bpe, health=False)
    logits_of, seen = metrics.logits_of, []
    monkeypatch.setattr(
        metrics, "logits_of", lambda *arguments: seen.append(logits_of(*arguments)) or seen[-1]
    )
    for positions in (3, 100):
        seen.clear()
        handles = [
            model.register_forward_hook(lambda m, i, o: seen.append(o.logits)),
            model.lm_head.register_forward_hook(lambda m, i, o: seen.append(o)),
        ]
        monkeypatch.setattr(metrics, "_SCORE_BYTES", {"cpu": 4 * len(bpe) * positions})
        result = metrics.evaluate(model, split, bpe, health=False)
        for handle in handles:
            handle.remove()
        seen[:] = [tensor for tensor in seen if tensor.shape[-1] == len(bpe)]
        assert seen and max(tensor.numel() for tensor in seen) <= positions * len(bpe)
        assert result["loss"] == pytest.approx(expected["loss"], rel=1e-5)


def test_another_models_logits_never_exceed_the_limit(bpe, tools, monkeypatch):
    """One whose head may be followed by anything: its logits are asked for, few positions at a time."""
    config = GPT2Config(
        vocab_size=len(bpe), n_positions=32, n_embd=16, n_layer=1, n_head=2, bos_token_id=bpe.bos_token_id
    )
    torch.manual_seed(0)
    model, split = GPT2LMHeadModel(config).eval(), tools.pack(bpe, tools.sentences(6, seed=7))
    expected = metrics.evaluate(model, split, bpe)
    for positions in (3, 100):
        seen = []
        handle = model.register_forward_hook(lambda m, i, o, seen=seen: seen.append(o.logits.numel()))
        monkeypatch.setattr(metrics, "LOGIT_BYTES", 4 * len(bpe) * positions)
        monkeypatch.setattr(metrics, "_SCORE_BYTES", {"cpu": 4 * len(bpe) * 3})
        result = metrics.evaluate(model, split, bpe)
        handle.remove()
        assert max(seen) <= positions * len(bpe)
        assert result["loss"] == pytest.approx(expected["loss"], rel=1e-5)


@pytest.mark.parametrize("count", [1, 2, 7, 100])
def test_rows_hold_every_input_once_and_are_balanced(count, bpe, tools):
    split = tools.pack(bpe, tools.sentences(57, seed=8))
    starts, lengths = document_pieces(split)
    rows = balanced_rows(starts, lengths, count)
    seen = np.concatenate([o[o >= 0] for o in blocks(rows, 9, shrink=True)])
    assert sorted(seen) == list(range(len(split.ids) - 1))
    sizes = [row.length for row in rows]
    assert sizes == sorted(sizes, reverse=True)
    assert max(sizes) - min(sizes) <= lengths.max()


def test_windows_start_at_each_document_and_do_not_overlap(bpe, tools):
    starts, lengths = document_pieces(tools.pack(bpe, tools.sentences(9, seed=9)))
    cut_starts, cut_lengths = cut_to_windows(starts, lengths, 10)
    seen = np.concatenate([np.arange(s, s + n) for s, n in zip(cut_starts, cut_lengths, strict=True)])
    assert list(seen) == list(range(lengths.sum()))
    assert set(starts) <= set(cut_starts) and cut_lengths.max() == 10


def test_a_last_document_start_at_the_closing_token_is_no_document(bpe, tools):
    split = tools.pack(bpe, tools.sentences(4, seed=1))
    split.document_starts = np.append(split.document_starts, len(split.ids) - 1)
    starts, lengths = document_pieces(split)
    assert len(starts) == 4 and lengths.sum() == len(split.ids) - 1


def test_evaluation_leaves_the_model_and_the_random_state_alone(bpe, make_model, tools):
    model = make_model(bpe, dropout=0.5).train()
    split = tools.pack(bpe, tools.sentences(5, seed=2))
    before = torch.random.get_rng_state()
    first = metrics.evaluate(model, split, bpe)
    assert first == metrics.evaluate(model, split, bpe)  # no dropout
    assert model.training and torch.equal(before, torch.random.get_rng_state())
    model(input_ids=torch.tensor([[0, 9, 9]]), labels=torch.tensor([[0, 9, 9]])).loss.backward()


def test_half_precision_comes_near(bpe, make_model, tools):
    split = tools.pack(bpe, tools.sentences(8, seed=3))
    for kind in ("parallel", "tiny_gpt2"):
        model = make_model(bpe, **KINDS[kind])
        exact, half = (
            metrics.evaluate(model, split, bpe, dtype=d, health=False)["loss"] for d in (None, "bf16")
        )
        assert half == pytest.approx(exact, rel=0.02) and half != exact


def test_an_empty_split_is_refused(bpe, make_model, tools):
    split = tools.pack(bpe, [])
    with pytest.raises(NewLLMError, match="no text to evaluate"):
        metrics.evaluate(make_model(bpe), split, bpe)


def test_the_line_for_people_never_shows_perplexity_alone(words, make_model, tools):
    split = tools.pack(words, tools.sentences(9, seed=4), lost_bytes=99)
    split.lower_cased = True
    result = metrics.evaluate(make_model(words), split, words)
    line = metrics.describe(result)
    for part in (
        f"{result['bits_per_byte']:.4f} bits per byte of the lower-cased text",
        "vocabulary 16",
        "<unk> ",
    ):
        assert part in line
    assert f"{result['unk_share']:.1%}" in line and "seed" not in line
    assert "the seed's metric" in metrics.describe(result | {"protocol": "seed"})


def test_gpt2s_end_of_text_is_not_counted_as_unknown(bpe):
    class GPT2Like:
        unk_token_id = bos_token_id = eos_token_id = 50256

    assert metrics.unknown_id(GPT2Like()) == -1 and metrics.unknown_id(bpe) == -1


def test_text_without_spaces_has_no_word_perplexity():
    split = SimpleNamespace(bytes=3000, words=20, lost_bytes=0, documents=20, lower_cased=False, unk_tokens=0)
    found = metrics.figures(split, [0] * 9, nll=4000.0, correct=1, tokens=1000, unknown=0)
    assert "word_perplexity" not in found and found["bits_per_byte"] > 0
    assert "word perplexity" not in metrics.describe(found)
    split.words = 500
    found = metrics.figures(split, [0] * 9, nll=4000.0, correct=1, tokens=1000, unknown=0)
    assert found["word_perplexity"] == pytest.approx(math.exp(8.0)) and "word perplexity" in metrics.describe(
        found
    )
