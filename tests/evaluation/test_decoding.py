"""Decoding from the state: the tokens that `generate` gives, whatever is read at once and wherever one
leaves.
"""

import pytest
import torch
from transformers.generation import logits_process as warpers

from newllm_lib.generation import decoding
from newllm_lib.generation.sampling import Sampler, Settings, reserved_tokens, stop_tokens
from newllm_lib.generation.stateful import IncrementalDecoder

GREEDY = Settings(temperature=0, max_new_tokens=12)
RECURRENCES = ["parallel", "sequential"]


@pytest.fixture(params=[1, 4])
def at_once(request, monkeypatch):
    """Looking after each token, and every four, as on a GPU."""
    monkeypatch.setitem(decoding._AT_ONCE, "cpu", request.param)


def generated(model, prompts, settings):
    """transformers' own answer, row by row."""
    rows = []
    for ids in prompts:
        mine = torch.tensor([ids])
        options = {
            "do_sample": False,
            "repetition_penalty": settings.repetition_penalty,
            "pad_token_id": 0,
            "eos_token_id": 1,
        }
        out = model.generate(
            mine, attention_mask=torch.ones_like(mine), max_new_tokens=settings.max_new_tokens, **options
        )
        rows.append(out[0, len(ids) :].tolist())
    return rows


@pytest.mark.parametrize("recurrence", RECURRENCES)
@pytest.mark.parametrize("penalty", [1.0, 1.7])
def test_greedy_tokens_are_those_of_generate(recurrence, penalty, bpe, make_model, at_once, monkeypatch):
    monkeypatch.setattr(decoding, "_PREFILL", 5)  # prompts are read in several pieces
    model = make_model(bpe, recurrence=recurrence)
    prompts = [[0, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30], [0, 40], [0, 50, 51, 52, 53, 54]]
    settings = Settings(temperature=0, repetition_penalty=penalty, max_new_tokens=9)
    expected = generated(model, prompts, settings)
    expected = [row[: row.index(1)] if 1 in row else row for row in expected]
    assert decoding.continue_texts(model, prompts, settings, [1], []) == expected


@pytest.mark.parametrize(
    "settings",
    [
        Settings(temperature=0.7, top_k=5, top_p=0.8),
        Settings(temperature=1.5, top_k=0, top_p=0.6),
        Settings(temperature=1.0, top_k=0, top_p=1.0),
        Settings(temperature=0.9, top_k=7, top_p=1.0, repetition_penalty=1.4),
        Settings(temperature=2.0, top_k=1000, top_p=0.01),
    ],
    ids=str,
)
def test_chances_are_those_of_transformers_warpers(settings):
    torch.manual_seed(0)
    logits, reserved, said = torch.randn(1, 40) * 2, [3, 17], [5, 9]
    chosen = [warpers.SuppressTokensLogitsProcessor(reserved, device="cpu")]
    chosen.append(warpers.TemperatureLogitsWarper(settings.temperature))
    if settings.repetition_penalty != 1:
        chosen.insert(0, warpers.RepetitionPenaltyLogitsProcessor(settings.repetition_penalty))
    if settings.top_k:
        chosen.append(warpers.TopKLogitsWarper(settings.top_k))
    if settings.top_p < 1:
        chosen.append(warpers.TopPLogitsWarper(settings.top_p))
    scores = logits.clone()
    for warper in chosen:
        scores = warper(torch.tensor([said]), scores)
    seen = torch.zeros(1, 40, dtype=torch.bool)
    seen[0, said] = True
    draws = (torch.arange(20_000) + 0.5) / 20_000
    tokens = Sampler(settings, reserved, "cpu").choose(logits.expand(20_000, -1), seen, draws)
    found = torch.bincount(tokens, minlength=40) / 20_000
    torch.testing.assert_close(found, scores.softmax(-1)[0], atol=2e-4, rtol=0)


def test_the_largest_random_number_still_chooses_what_is_allowed():
    highest = torch.tensor([1 - 2**-24])
    for settings in (
        Settings(top_k=3, top_p=1.0),
        Settings(top_k=0, top_p=0.5),
        Settings(top_k=4, top_p=0.3),
    ):
        logits = torch.linspace(5, 0, 50).unsqueeze(0)
        assert int(Sampler(settings, [], "cpu").choose(logits, None, highest)) < 40


@pytest.mark.parametrize("kind", ["new_llm", "tiny_gpt2"])
@pytest.mark.parametrize("leave_after", [1, 2, 4, 5, 7])
def test_a_text_left_anywhere_goes_on_as_if_read_anew(kind, leave_after, bpe, make_model, at_once):
    model = make_model(bpe, kind, max_seq_length=256)
    text = decoding.Text(model, [], reserved_tokens(bpe, len(bpe)))
    text.use(GREEDY)
    text.reset()
    text.unread += [0, 20, 21, 22]
    tokens, said = text.write(12), []
    for token in tokens:
        said.append(token)
        if len(said) == leave_after:
            break
    tokens.close()
    text.unread += [30, 31]
    again = list(text.write(3))
    fresh = decoding.Text(model, [], reserved_tokens(bpe, len(bpe)))
    fresh.use(GREEDY)
    fresh.reset()
    fresh.unread += [0, 20, 21, 22, *said, 30, 31]
    assert list(fresh.write(3)) == again


def test_a_stop_leaves_the_state_where_it_was(bpe, make_model, at_once):
    model = make_model(bpe)
    said = decoding.continue_texts(model, [[0, 20, 21]], GREEDY, [], [])[0]
    stop = next(t for i, t in enumerate(said) if i >= 2 and t not in said[:i])
    place = said.index(stop)
    text = decoding.Text(model, [stop], [])
    text.use(GREEDY)
    text.reset()
    text.unread += [0, 20, 21]
    assert list(text.write(12)) == said[:place] and text.stopped and text.unread == []
    reader = IncrementalDecoder(model)
    reader.read([0, 20, 21, *said[:place]])
    torch.testing.assert_close(text.reader.carried, reader.carried, rtol=1e-4, atol=1e-4)


def test_rows_of_a_batch_do_not_disturb_each_other(bpe, make_model, at_once):
    model = make_model(bpe)
    prompts, stop = [[0, 20, 21], [0, 40], [0, 60, 61, 62, 63]], stop_tokens(bpe)
    together = decoding.continue_texts(model, prompts, GREEDY, stop, [])
    assert together == [decoding.continue_texts(model, [p], GREEDY, stop, [])[0] for p in prompts]


def test_one_random_stream_however_many_steps_at_once(bpe, make_model, monkeypatch):
    model, settings, found = make_model(bpe, scale=0.3), Settings(seed=5, max_new_tokens=20), []
    for size in (1, 3, 20):
        monkeypatch.setitem(decoding._AT_ONCE, "cpu", size)
        found.append(decoding.continue_texts(model, [[0, 20], [0, 21]], settings, [], []))
    assert found[0] == found[1] == found[2] and found[0][0] != found[0][1]


@pytest.mark.gpu
def test_a_captured_step_gives_the_same_tokens(bpe, make_model):
    model, prompts = make_model(bpe, scale=0.3), [[0, 20, 21, 22], [0, 40]]
    for settings in (
        Settings(temperature=0, max_new_tokens=40),
        Settings(seed=3, max_new_tokens=40, repetition_penalty=1.2),
    ):
        here = decoding.continue_texts(model.cpu(), prompts, settings, [1], [])
        there = decoding.continue_texts(model.cuda(), prompts, settings, [1], [])
        same = sum(a == b for x, y in zip(here, there, strict=True) for a, b in zip(x, y, strict=False))
        assert same >= 0.9 * sum(map(len, here))  # rounding may turn a near tie, from where on texts differ
    text = decoding.Text(model, [], [])
    text.use(GREEDY)
    text.reset()
    text.unread += [0, 20, 21]
    tokens = text.write(40)
    said = [next(tokens) for _ in range(20)]
    tokens.close()
    reader = IncrementalDecoder(model)
    reader.read([0, 20, 21, *said[:-1]])
    torch.testing.assert_close(text.reader.carried, reader.carried, rtol=1e-3, atol=1e-3)
