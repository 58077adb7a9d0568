"""Phase 7 as a user of transformers meets it: causal, exact when continued, padded or packed, loadable, able
to generate.
"""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM

import newllm_lib.models as models
from newllm_lib.errors import UsageError
from newllm_lib.evaluation.memory import peak_memory
from newllm_lib.layers.tensor_train import TensorTrainEmbedding
from newllm_lib.recipe import load_recipe
from newllm_lib.training.model_config import build_model, count_parameters, model_config
from tests.helpers.model_checks import BOS, PAD, VOCAB, first_preference_loss, text
from tests.helpers.small_phase7 import SMALL, build

KINDS = [
    {},
    {"attention": "dot", "embedding": "dense"},
    {"ar_ssm": False, "tie_word_embeddings": False},
    {"attention": "linear", "linear_features": 10},
    {"attention": "linear", "ar_ssm": False},
]


def near(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_causal_at_random_lengths(kind):
    model, random = build(**kind), torch.Generator().manual_seed(5)
    for trial in range(8):
        time = int(torch.randint(2, 40, (), generator=random))
        cut = int(torch.randint(1, time, (), generator=random))
        ids = text(2, time, seed=trial, documents=True)
        changed = ids.clone()
        changed[:, cut:] = (changed[:, cut:] + 1) % (VOCAB - 6) + 6
        before, after = model(ids).logits, model(changed).logits
        torch.testing.assert_close(before[:, :cut], after[:, :cut], rtol=0, atol=1e-6)
        assert not torch.allclose(before[:, cut], after[:, cut])


@pytest.mark.parametrize("kind", KINDS)
def test_carried_state_is_the_whole_text_however_it_is_cut(kind):
    model, random = build(**kind), torch.Generator().manual_seed(6)
    for trial in range(8):
        ids = text(2, int(torch.randint(2, 40, (), generator=random)), seed=trial, documents=trial % 2 == 0)
        whole, state, found = model(ids), None, []
        rest = ids
        while rest.shape[1]:
            size = int(torch.randint(1, rest.shape[1] + 1, (), generator=random))
            part = model(rest[:, :size], state=state, use_cache=True)
            state, rest = part.state, rest[:, size:]
            found.append(part.logits)
        near(torch.cat(found, 1), whole.logits)
        near(state, whole.state)


def test_the_state_has_one_size_and_keeps_the_window_only():
    model = build()
    states = [model(text(1, time), use_cache=True).state for time in (1, 5, 60)]
    assert len({s.shape for s in states}) == 1
    near(model(text(1, 60)[:, 30:]).state.isnan().any(), torch.tensor(False))


@pytest.mark.parametrize("kind", KINDS)
def test_packed_documents_are_read_as_if_alone(kind):
    model, random = build(**kind), torch.Generator().manual_seed(7)
    lengths = torch.randint(1, 20, (5,), generator=random).tolist()
    documents = [torch.cat([torch.full((1, 1), BOS), text(1, n, seed=n)], 1) for n in lengths]
    packed = model(torch.cat(documents, 1), use_cache=True)
    alone = [model(d, use_cache=True) for d in documents]
    near(packed.logits, torch.cat([a.logits for a in alone], 1))
    next_document = text(1, 4, seed=99)
    after = [model(next_document, state=s, use_cache=True).logits for s in (packed.state, alone[-1].state)]
    near(*after)


def test_documents_do_see_each_other_where_the_configuration_says_so():
    model = build(reset_at_bos=False)
    bos = torch.full((1, 1), BOS)
    packed = torch.cat([bos, text(1, 9, seed=1), bos, text(1, 5, seed=2)], 1)
    assert not torch.allclose(model(packed).logits[:, 10:], model(packed[:, 10:]).logits, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", ["left", "right", "anywhere"])
def test_padding_is_as_if_it_were_not_there(kind, where):
    model, random = build(**kind), torch.Generator().manual_seed(8)
    ids, mask = torch.full((4, 24), PAD), torch.zeros(4, 24, dtype=torch.long)
    texts = [text(1, n, seed=n, documents=True) for n in (3, 9, 24, 1)]
    for row, one in enumerate(texts):
        n = one.shape[1]
        places = {"left": torch.arange(24 - n, 24), "right": torch.arange(n)}.get(
            where, torch.randperm(24, generator=random)[:n]
        )
        ids[row, places.sort().values], mask[row, places] = one[0], 1
    prefix = text(4, 7, seed=50)
    before = model(prefix, use_cache=True).state
    for state in (None, before):
        together = model(ids, attention_mask=mask, state=state, use_cache=True)
        for row, one in enumerate(texts):
            alone = model(one, state=None if state is None else state[row : row + 1], use_cache=True)
            near(together.logits[row, mask[row].bool()], alone.logits[0])
            more = text(1, 5, seed=51)
            near(
                model(more, state=together.state[row : row + 1]).logits, model(more, state=alone.state).logits
            )
    nothing = model(ids[:, :3], attention_mask=torch.zeros(4, 3, dtype=torch.long), use_cache=True).state
    near(model(prefix, state=nothing).logits, model(prefix).logits)


@pytest.mark.parametrize("kind", [KINDS[0], KINDS[3]])
@pytest.mark.parametrize("settings", [{"do_sample": False}, {"do_sample": True}, {"num_beams": 3}])
def test_generate_a_left_padded_batch_equals_each_text_alone(settings, kind):
    model = build(**kind)
    short, long = text(1, 4, seed=3), text(1, 9, seed=4)
    batch, mask = (
        torch.cat([torch.cat([torch.full((1, 5), PAD), short], 1), long]),
        torch.ones(2, 9, dtype=torch.long),
    )
    mask[0, :5] = 0
    options = {"max_new_tokens": 10, "min_new_tokens": 10, **settings}
    together = model.generate(batch, attention_mask=mask, **options)
    assert together.shape == (2, 19)
    if not settings.get("do_sample"):
        alone = model.generate(short, attention_mask=torch.ones_like(short), **options)
        assert torch.equal(together[0, 9:], alone[0, 4:])


@pytest.mark.parametrize("kind", [KINDS[0], KINDS[3]])
def test_generation_streams_and_equals_rereading_the_whole_text_for_each_token(kind):
    model, ids, said = build(**kind), text(1, 5), []

    class Streamer:
        def put(self, value):
            said.extend(value.flatten().tolist())

        def end(self):
            pass

    options = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False}
    generated = model.generate(ids, attention_mask=torch.ones_like(ids), streamer=Streamer(), **options)
    again = ids
    for _ in range(12):
        logits = model(again).logits[:, -1]
        logits[:, BOS] = -torch.inf
        again = torch.cat([again, logits.argmax(-1, keepdim=True)], 1)
    assert torch.equal(generated, again) and said == generated[0].tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_auto_class_loads_what_was_saved_the_curvature_factor_too(kind, tmp_path):
    model, ids = build(**kind), text(2, 8)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(again) is type(model) and models.parameters(again) == models.parameters(model)
    assert again.model.curvature_factor == model.model.curvature_factor
    assert torch.equal(again(ids).logits, model(ids).logits)
    assert torch.equal(copy.deepcopy(model)(ids).logits, model(ids).logits)


@pytest.mark.parametrize("kind", KINDS)
def test_loss_is_the_mean_cross_entropy_and_so_are_its_gradients(kind):
    model, ids = build(**kind), text(2, 12)
    target = torch.cat([ids[:, 1:], torch.full((2, 1), -100)], 1)
    target[0, 3] = -100
    model.train()
    found = model(ids, shift_labels=target)
    assert found.logits is None  # training forms no logits
    expected = torch.nn.functional.cross_entropy(model(ids).logits.flatten(0, 1), target.flatten())
    near(found.loss, expected)
    weights = [p for p in model.parameters() if p.requires_grad]
    for a, b in zip(
        torch.autograd.grad(found.loss, weights), torch.autograd.grad(expected, weights), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    near(model(ids, labels=torch.cat([ids[:, :1], target[:, :-1]], 1)).loss, found.loss)


def test_curvature_is_learned_and_the_factor_stands_on_top():
    model, ids = build(), text(2, 12)
    attention = model.model.layers[0].attention
    model.train()
    model(ids, labels=ids).loss.backward()
    assert attention.log_curvature.grad.abs().min() > 0 and attention.log_beta.grad.abs().min() > 0
    before = model.model(ids).last_hidden_state
    model.model.curvature_factor.fill_(0.3)
    assert not torch.allclose(model.model(ids).last_hidden_state, before, rtol=1e-3)
    with torch.no_grad():  # half the factor is as half the curvature
        for layer in model.model.layers:
            layer.attention.log_curvature += torch.log(torch.tensor(2.0))
    near(model.model(ids).last_hidden_state, before)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_checkpointing_changes_no_gradient(kind):
    model, ids = build(**kind), text(2, 10)
    model.train()
    plain = torch.autograd.grad(model(ids, labels=ids).loss, list(model.parameters()))
    model.gradient_checkpointing_enable({"use_reentrant": False})
    again = torch.autograd.grad(model(ids, labels=ids).loss, list(model.parameters()))
    for a, b in zip(plain, again, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("attention", ["hyperbolic", "dot", "linear"])
def test_plain_attention_gives_what_flash_attention_gives(attention):
    flash, plain = (build(attention=attention, flash_attention=f) for f in (True, False))
    ids = text(2, 30, documents=True)
    near(plain(ids).logits, flash(ids).logits)


@pytest.mark.parametrize("kind", KINDS[:2])
def test_checkpointing_and_flash_attention_hold_less(kind):
    """The most that one training step holds, beside the gradients, with and without the two."""

    def held(checkpointing, **changes):
        model, ids = build(num_layers=6, num_heads=4, **kind, **changes).train(), text(2, 160)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        return peak_memory(
            lambda: torch.autograd.grad(model(ids, labels=ids).loss, list(model.parameters())), ids.device
        )

    plain = held(False)
    assert held(True) < 0.5 * plain
    if not kind:  # hyperbolic: torch's own attention hides what it holds
        assert held(False, flash_attention=False) > 1.5 * plain


@pytest.mark.parametrize("kind", [KINDS[0], KINDS[3]])
def test_peft_adapts_it_and_the_adapter_alone_learns(kind):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        build(**kind), LoraConfig(target_modules=["project", "out", "down"], r=2, task_type="CAUSAL_LM")
    )
    ids = text(2, 8)
    model(input_ids=ids, labels=ids).loss.backward()
    learning = {name for name, p in model.named_parameters() if p.grad is not None}
    assert learning and all("lora" in name for name in learning)


@pytest.mark.parametrize("embedding", ["htt", "dense"])
def test_trl_trains_on_preferences(embedding, tmp_path):
    """TRL calls the backbone and the head's weight by themselves: the tensor train builds that for it."""
    assert first_preference_loss(build(embedding=embedding), tmp_path) == pytest.approx(0.6931, abs=1e-3)


@pytest.mark.parametrize(("kind", "state"), [({}, True), (KINDS[1], False), (KINDS[3], True)])
def test_a_training_step_compiles_without_a_graph_break(kind, state):
    model, ids = build(num_layers=1, **kind), text(2, 12, documents=True)
    model.train()
    carried = {"state": model.model.initial_state(2), "use_cache": True} if state else {}
    expected = model(ids, shift_labels=ids, **carried).loss
    found = torch.compile(model, backend="aot_eager", fullgraph=True)(ids, shift_labels=ids, **carried).loss
    near(found, expected)
    weights = [p for p in model.parameters() if p.requires_grad]
    for a, b in zip(torch.autograd.grad(found, weights), torch.autograd.grad(expected, weights), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_a_tensor_train_starts_with_rows_as_large_as_a_dense_embeddings():
    torch.manual_seed(0)
    built = build_model(load_recipe("demo", {**SMALL, "hidden_size": 128, "htt_rank": 32}), 1000)
    table = built.model.embed_tokens
    assert isinstance(table, TensorTrainEmbedding)
    assert float(table.weight.detach().std()) == pytest.approx(0.02, rel=0.1)
    assert torch.equal(built.get_output_embeddings().weight, table.weight)


def test_it_keeps_its_vocabulary():
    model = build()
    with pytest.raises(ValueError, match="embedding dense"):
        model.resize_token_embeddings(VOCAB + 1)
    assert model.resize_token_embeddings(VOCAB) is model.model.embed_tokens


@pytest.mark.parametrize(
    ("wrong", "words"),
    [({"num_heads": 5}, "num_heads"), ({"ssm_ranks": 5}, "ssm_ranks"), ({"hidden_size": 2}, "num_heads")],
)
def test_sizes_that_do_not_fit_are_one_line(wrong, words):
    with pytest.raises(UsageError, match=words):
        build(**wrong)


# --- sizes
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [
        ("phase7_small", 24e6, 26e6),
        ("phase7_100m", 95e6, 105e6),
        ("phase7_1.5b", 1.45e9, 1.55e9),
        ("phase7_0.7b", 0.7e9, 0.72e9),
    ],
)
def test_the_recipes_have_the_sizes_they_say(name, least, most):
    recipe = load_recipe(name, device_kind="h100")
    config = model_config(recipe, recipe.vocab_size)
    assert least <= count_parameters(config) <= most
    if name == "phase7_1.5b":
        assert (config.hidden_size, config.num_hidden_layers, recipe.max_seq_length) == (2048, 24, 1024)


def test_a_model_is_made_on_the_device_it_is_asked_for():
    recipe = load_recipe("phase7_1.5b", device_kind="h100")
    model = build_model(recipe, 50257, device="meta")
    assert all(p.device.type == "meta" for p in model.parameters())
    assert model.model.curvature_factor.device.type == "meta"


@pytest.mark.parametrize("embedding", ["htt", "dense"])
def test_tiny_gpt2_of_equal_size(embedding):
    sizes = []
    for model in ("phase7", "tiny_gpt2"):
        recipe = load_recipe("phase7_small", {"model": model, "embedding": embedding}, device_kind="h100")
        sizes.append(count_parameters(model_config(recipe, 4096)))
    assert abs(sizes[0] - sizes[1]) < 0.02 * sizes[0]
