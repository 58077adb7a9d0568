"""Completions: the same as one computes token by token, within the window, and free of control tokens."""

import pytest
import torch

from newllm_lib.errors import UsageError
from newllm_lib.generation.generate import complete
from newllm_lib.generation.sampling import Sampler, Settings, reserved_tokens, stop_tokens
from newllm_lib.generation.stateful import IncrementalDecoder

KINDS = ["new_llm", "tiny_gpt2"]


def greedy_by_hand(model, tokenizer, ids, count):
    """The whole text through the model again for each token."""
    reserved, new = reserved_tokens(tokenizer, model.config.vocab_size), []
    for _ in range(count):
        with torch.no_grad():
            scores = model(input_ids=torch.tensor([ids + new])).logits[0, -1]
        scores[reserved] = -torch.inf
        new.append(int(scores.argmax()))
        if new[-1] in stop_tokens(tokenizer):
            break
    return tokenizer.decode(new, skip_special_tokens=True)


@pytest.mark.parametrize("kind", KINDS)
def test_a_greedy_batch_equals_single_texts_by_hand(kind, bpe, make_model):
    model = make_model(bpe, kind)
    prompts = ["Ada likes", "Bob", "Eve likes red apples"]
    answers = complete(model, bpe, prompts, temperature=0, max_new_tokens=8)
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = [bpe.bos_token_id, *bpe(prompt)["input_ids"]]
        assert answer == greedy_by_hand(model, bpe, ids, 8)
        assert complete(model, bpe, prompt, temperature=0, max_new_tokens=8) == answer


@pytest.mark.parametrize("kind", KINDS)
def test_sampling_follows_the_seed_and_leaves_the_random_state(kind, bpe, make_model):
    model = make_model(bpe, kind, scale=0.3)
    state = torch.random.get_rng_state()
    first, again, other = (complete(model, bpe, "Ada", max_new_tokens=12, seed=s) for s in (1, 1, 2))
    assert first == again != other
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("kind", KINDS)
def test_control_tokens_are_never_chosen(kind, bpe, make_model):
    model = make_model(bpe, kind)
    wanted = bpe.convert_tokens_to_ids("<|user|>")
    model.lm_head.register_forward_hook(lambda m, i, out: out.index_fill(-1, torch.tensor([wanted, 1]), 50.0))
    for temperature in (0, 1.5):
        assert "<|user|>" not in complete(
            model, bpe, "Ada", temperature=temperature, max_new_tokens=6, seed=0
        )
        sampler = Sampler(Settings(temperature=temperature, seed=0), reserved_tokens(bpe, len(bpe)), "cpu")
        assert sampler(IncrementalDecoder(model).read([0, 20]), []) not in reserved_tokens(bpe, len(bpe))


def test_an_answer_ends_at_the_end_of_turn(bpe, make_model):
    model, end = make_model(bpe), bpe.convert_tokens_to_ids("<|end|>")
    model.lm_head.register_forward_hook(lambda m, i, out: out.index_fill(-1, torch.tensor([end]), 99.0))
    assert complete(model, bpe, ["Ada", "Bob likes"], max_new_tokens=9) == ["", ""]


@pytest.mark.parametrize("new", [4, 24, 500])
def test_a_window_cuts_the_prompt_and_the_answer(new, bpe, make_model):
    model = make_model(bpe, "tiny_gpt2", max_seq_length=24)
    long = "Ada likes red apples and old films. " * 9
    seen = []
    model.register_forward_pre_hook(
        lambda m, a, k: seen.append(k["attention_mask"].shape[1]), with_kwargs=True
    )
    assert complete(model, bpe, [long, "Bob"], max_new_tokens=new, temperature=0)[0]
    assert 12 <= max(seen) <= 24


def test_ids_beyond_the_tokenizer_are_reserved(bpe):
    reserved = reserved_tokens(bpe, len(bpe) + 3)
    assert set(range(len(bpe), len(bpe) + 3)) <= set(reserved)
    assert set(stop_tokens(bpe)) == {bpe.bos_token_id, bpe.convert_tokens_to_ids("<|end|>")}
    assert not set(stop_tokens(bpe)) & set(reserved) and bpe.pad_token_id in reserved


def test_control_tokens_spelled_in_a_prompt_are_text(bpe, make_model):
    model, seen = make_model(bpe), []
    model.register_forward_pre_hook(lambda m, a, k: seen.append(k["input_ids"]), with_kwargs=True)
    complete(model, bpe, "<|end|>", max_new_tokens=1)
    assert bpe.convert_tokens_to_ids("<|end|>") not in seen[0][0].tolist() and seen[0].shape[1] > 4


@pytest.mark.parametrize(
    "name,value",
    [
        ("temperature", "-1"),
        ("temperature", "hot"),
        ("top_p", "0"),
        ("top_p", "1.5"),
        ("top_k", "2.5"),
        ("max_new_tokens", "0"),
        ("warmth", "1"),
        ("temperature", "nan"),
    ],
)
def test_bad_settings_are_refused(name, value):
    with pytest.raises(UsageError):
        Settings().changed(name, value)


def test_settings_are_read_from_text():
    settings = Settings().changed("temperature", "0.3").changed("top_k", "7")
    settings = settings.changed("seed", "5").changed("seed", "none")
    assert (settings.temperature, settings.top_k, settings.seed) == (0.3, 7, None)
    assert "temperature 0.3" in str(settings)


def test_sampling_keeps_within_top_k_and_penalises_repetition():
    logits = torch.tensor([5.0, 4.0, 3.0, 2.0])
    two = Sampler(Settings(temperature=2.0, top_k=2, top_p=1.0, seed=0), [], "cpu")
    assert {two(logits, []) for _ in range(50)} == {0, 1}
    nucleus = Sampler(Settings(temperature=1.0, top_k=0, top_p=0.5, seed=0), [], "cpu")
    assert {nucleus(logits, []) for _ in range(20)} == {0}
    assert Sampler(Settings(temperature=0, repetition_penalty=5.0), [], "cpu")(logits, [0]) == 1
    assert Sampler(Settings(temperature=0), [0], "cpu")(logits, []) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_reading_in_pieces_equals_reading_at_once(kind, bpe, make_model, tools):
    model = make_model(bpe, kind)
    ids = tools.pack(bpe, tools.sentences(1, seed=3)).ids[:20].tolist()
    reader, whole = IncrementalDecoder(model), IncrementalDecoder(model).read(ids)
    for part in (ids[:1], ids[1:8], ids[8:9], ids[9:]):
        logits = reader.read(part)
    torch.testing.assert_close(logits, whole, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        whole, model(input_ids=torch.tensor([ids])).logits[0, -1], rtol=1e-4, atol=1e-4
    )


def test_a_state_keeps_its_size_and_a_window_its_limit(bpe, make_model):
    ids = [0, *range(10, 30)]
    for kind in KINDS:
        model, sizes = make_model(bpe, kind), []
        reader = IncrementalDecoder(model)
        for _ in range(6):
            assert reader.read(ids).isfinite().all()
            sizes.append(reader.carried_bytes())
        if kind == "new_llm":
            assert len(set(sizes)) == 1
        else:  # keys and values of at most 24 positions
            per_token = 2 * model.config.n_layer * model.config.n_embd * 4
            assert max(sizes) <= 24 * per_token


def test_a_full_window_reads_its_newest_half_again(bpe, make_model):
    model = make_model(bpe, "tiny_gpt2", max_seq_length=24)
    ids = list(range(10, 60))
    reader = IncrementalDecoder(model)
    for token in ids[:24]:
        reader.read([token])
    expected = model(input_ids=torch.tensor([ids[13:25]])).logits[0, -1]  # the 25th token does not fit
    torch.testing.assert_close(reader.read([ids[24]]), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_broken_off_read_is_as_if_it_had_not_been(kind, bpe, make_model):
    model = make_model(bpe, kind)
    reader = IncrementalDecoder(model)
    reader.read([0, 10, 11])
    blocks = model.model.layers if kind == "new_llm" else model.transformer.h
    handle = blocks[1].register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        reader.read([12])
    handle.remove()
    expected = model(input_ids=torch.tensor([[0, 10, 11, 13]])).logits[0, -1]
    torch.testing.assert_close(reader.read([13]), expected, rtol=1e-4, atol=1e-4)
