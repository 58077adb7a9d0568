"""Both models as a user of transformers meets them: causal, exact when continued, loadable, and able to
generate.
"""

import warnings

import pytest
import torch
from transformers import AutoModelForCausalLM

import newllm_lib.models as models
from newllm_lib.models.tiny_gpt2 import TinyGPT2Config, TinyGPT2ForCausalLM
from newllm_lib.recipe import load_recipe
from newllm_lib.training.model_config import build_model, count_parameters, model_config
from tests.helpers.model_checks import BOS, PAD, VOCAB, first_preference_loss, text

SMALL = {
    "sized_for": "cpu",
    "hidden_size": 16,
    "context_dim": 24,
    "mlp_size": 32,
    "num_layers": 2,
    "num_heads": 2,
    "dropout": 0.0,
}
KINDS = [("new_llm", "parallel"), ("new_llm", "sequential"), ("tiny_gpt2", "parallel")]


def build(model="new_llm", recurrence="parallel", **changes):
    torch.manual_seed(0)
    recipe = load_recipe(
        "demo", {**SMALL, "model": model, "recurrence": recurrence, "max_seq_length": 64, **changes}
    )
    built = build_model(recipe, VOCAB).eval()
    built.config.bos_token_id, built.config.eos_token_id, built.config.pad_token_id = BOS, BOS, PAD
    built.generation_config.eos_token_id, built.generation_config.pad_token_id = BOS, PAD
    return built


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("time", [2, 7, 33])
def test_a_later_token_never_changes_earlier_logits(kind, time):
    model, ids = build(*kind), text(2, time, seed=time)
    changed = ids.clone()
    changed[:, -1] = (changed[:, -1] - 6 + 1) % (VOCAB - 6) + 6
    before, after = model(ids).logits, model(changed).logits
    torch.testing.assert_close(before[:, :-1], after[:, :-1], rtol=0, atol=1e-6)
    assert not torch.allclose(before[:, -1], after[:, -1])


@pytest.mark.parametrize("recurrence", ["parallel", "sequential"])
@pytest.mark.parametrize("cut", [1, 2, 3, 10, 29])
def test_carried_state_gives_the_logits_of_the_whole_text(recurrence, cut):
    model, ids = build("new_llm", recurrence), text(3, 30, seed=cut, documents=True)
    whole = model(ids)
    first = model(ids[:, :cut], use_cache=True)
    second = model(ids[:, cut:], state=first.state, use_cache=True)
    torch.testing.assert_close(
        torch.cat([first.logits, second.logits], 1), whole.logits, rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(second.state, whole.state, rtol=1e-5, atol=1e-5)
    assert first.state.shape == second.state.shape  # one size however long the text


@pytest.mark.parametrize("recurrence", ["parallel", "sequential"])
def test_in_training_with_labels_gradients_stop_at_the_state(recurrence):
    model, ids = build("new_llm", recurrence).train(), text(2, 12)
    assert model(ids, use_cache=True).state.requires_grad
    outputs = model(ids, shift_labels=ids, use_cache=True)
    assert outputs.loss.requires_grad and not outputs.state.requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_packed_documents_do_not_see_each_other(kind):
    model = build(*kind)
    one, two = text(1, 9, seed=1), text(1, 12, seed=2)
    bos = torch.full((1, 1), BOS)
    packed = torch.cat([bos, one, bos, two], 1)
    alone = torch.cat([bos, two], 1)
    torch.testing.assert_close(model(packed).logits[:, 10:], model(alone).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_documents_do_see_each_other_where_the_configuration_says_so(kind):
    model = build(*kind)
    model.config.reset_at_bos = model.config.separate_documents = False
    bos = torch.full((1, 1), BOS)
    packed = torch.cat([bos, text(1, 9, seed=1), bos, text(1, 5, seed=2)], 1)
    alone = packed[:, 10:]
    assert not torch.allclose(model(packed).logits[:, 10:], model(alone).logits, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("settings", [{"do_sample": False}, {"do_sample": True}, {"num_beams": 3}])
def test_generate_a_left_padded_batch_equals_each_text_alone(kind, settings):
    model = build(*kind)
    short, long = text(1, 4, seed=3), text(1, 9, seed=4)
    padded = torch.cat([torch.full((1, 5), PAD), short], 1)
    batch, mask = torch.cat([padded, long]), torch.ones(2, 9, dtype=torch.long)
    mask[0, :5] = 0
    options = {"max_new_tokens": 6, "min_new_tokens": 6, **settings}
    together = model.generate(batch, attention_mask=mask, **options)
    assert together.shape == (2, 15)
    if not settings.get("do_sample"):
        alone = model.generate(short, attention_mask=torch.ones_like(short), **options)
        assert torch.equal(together[0, 9:], alone[0, 4:])


def test_greedy_generation_equals_rereading_the_whole_text_for_each_token():
    model, ids = build(), text(1, 5)
    generated = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, min_new_tokens=8, do_sample=False
    )
    again = ids
    for _ in range(8):
        logits = model(again).logits[:, -1]
        logits[:, BOS] = -torch.inf
        again = torch.cat([again, logits.argmax(-1, keepdim=True)], 1)
    assert torch.equal(generated, again)


@pytest.mark.parametrize("kind", KINDS)
def test_auto_class_loads_what_was_saved(kind, tmp_path):
    model, ids = build(*kind), text(2, 8)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(again) is type(model)
    assert torch.equal(again(ids).logits, model(ids).logits)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("labels", ["labels", "shift_labels"])
def test_loss_is_the_mean_cross_entropy_and_so_are_its_gradients(kind, labels):
    model, ids = build(*kind), text(2, 12)
    target = torch.cat([ids[:, 1:], torch.full((2, 1), -100)], 1)
    target[0, 3] = -100
    shifted = (
        {"shift_labels": target}
        if labels == "shift_labels"
        else {"labels": torch.cat([ids[:, :1], target[:, :-1]], 1)}
    )
    model.train()
    found = model(ids, **shifted)
    assert found.logits is None  # training forms no logits
    expected = torch.nn.functional.cross_entropy(model(ids).logits.flatten(0, 1), target.flatten())
    torch.testing.assert_close(found.loss, expected)
    weights = [p for p in model.parameters() if p.requires_grad]
    for a, b in zip(
        torch.autograd.grad(found.loss, weights), torch.autograd.grad(expected, weights), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("recurrence", ["parallel", "sequential"])
@pytest.mark.parametrize("size", [{}, {"hidden_size": 48, "mlp_size": 200, "num_layers": 3, "num_heads": 4}])
def test_tiny_gpt2_has_new_llms_parameters_within_two_percent(recurrence, size):
    changes = {**SMALL, "recurrence": recurrence, **size}
    sizes = [
        count_parameters(model_config(load_recipe("demo", {**changes, "model": name}), 2048))
        for name in ("new_llm", "tiny_gpt2")
    ]
    assert abs(sizes[1] - sizes[0]) <= 0.02 * sizes[0]
    assert sizes[0] == models.parameters(build_model(load_recipe("demo", changes), 2048))


def test_sequential_recurrence_is_the_seeds_equations():
    model, ids = build("new_llm", "sequential"), text(1, 6)
    layer = model.model.layers[0]
    context, logits = torch.zeros(24), []
    for token in ids[0]:
        h = torch.cat([model.model.embed_tokens.weight[token], context])
        for linear in layer.mlp:
            h = torch.relu(linear.weight @ h + linear.bias)
        delta, forget, write = (layer.gates.weight @ h + layer.gates.bias).chunk(3)
        mixed = torch.sigmoid(forget) * context + torch.sigmoid(write) * delta
        centred = mixed - mixed.mean()
        context = (
            centred / torch.sqrt(centred.pow(2).mean() + layer.norm.eps) * layer.norm.weight + layer.norm.bias
        )
        logits.append(model.lm_head.weight @ h)
    torch.testing.assert_close(model(ids).logits[0], torch.stack(logits), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("recurrence", ["parallel", "sequential"])
def test_gradient_checkpointing_changes_no_gradient(recurrence):
    model, ids = build("new_llm", recurrence), text(2, 10)
    model.train()
    plain = torch.autograd.grad(model(ids, labels=ids).loss, list(model.parameters()))
    model.gradient_checkpointing_enable()
    again = torch.autograd.grad(model(ids, labels=ids).loss, list(model.parameters()))
    for a, b in zip(plain, again, strict=True):
        torch.testing.assert_close(a, b)


def test_peft_adapts_new_llm_and_the_adapter_alone_learns():
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(build(), LoraConfig(target_modules=["project", "out"], r=2, task_type="CAUSAL_LM"))
    ids = text(2, 8)
    model(input_ids=ids, labels=ids).loss.backward()
    learning = {name for name, p in model.named_parameters() if p.grad is not None}
    assert learning and all("lora" in name for name in learning)


@pytest.mark.parametrize("kind", KINDS)
def test_trl_trains_on_preferences(kind, tmp_path):
    """TRL calls the backbone and the head by themselves; a recurrent model must survive that."""
    first = first_preference_loss(build(*kind), tmp_path)
    assert first == pytest.approx(0.6931, abs=1e-3)  # both sides equally likely before any learning


@pytest.mark.parametrize(
    ("kind", "state"),
    [(kind, state) for kind in KINDS for state in (False, True) if not (state and kind[0] == "tiny_gpt2")],
)
def test_a_training_step_compiles_without_a_graph_break(kind, state):
    model, ids = build(*kind), text(2, 12, documents=True)
    model.train()
    carried = {"state": model.model.initial_state(2), "use_cache": True} if state else {}
    expected = model(ids, shift_labels=ids, **carried).loss
    found = torch.compile(model, backend="aot_eager", fullgraph=True)(ids, shift_labels=ids, **carried).loss
    torch.testing.assert_close(found, expected)
    weights = [p for p in model.parameters() if p.requires_grad]
    for a, b in zip(torch.autograd.grad(found, weights), torch.autograd.grad(expected, weights), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_causality_and_carried_state_hold_for_random_lengths(kind):
    model, random = build(*kind), torch.Generator().manual_seed(5)
    for trial in range(12):
        time = int(torch.randint(2, 60, (), generator=random))
        cut = int(torch.randint(1, time, (), generator=random))
        ids = text(2, time, seed=trial, documents=kind[0] == "new_llm")
        whole = model(ids).logits
        # What follows changes nothing:
        torch.testing.assert_close(model(ids[:, :cut]).logits, whole[:, :cut], rtol=1e-5, atol=1e-5)
        if kind[0] == "new_llm":
            rest = model(ids[:, cut:], state=model(ids[:, :cut], use_cache=True).state).logits
            torch.testing.assert_close(rest, whole[:, cut:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("config", [models.NewLLMConfig, models.Phase7Config])
def test_a_configuration_without_a_first_token_reads_one_document(config):
    torch.manual_seed(0)
    sizes = {
        "vocab_size": VOCAB,
        "hidden_size": 16,
        "context_dim": 24,
        "mlp_size": 32,
        "num_hidden_layers": 1,
    }
    heads = {"num_attention_heads": 2, "ssm_ranks": 4, "htt_rank": 2} if config is models.Phase7Config else {}
    model, ids = AutoModelForCausalLM.from_config(config(**sizes, **heads)).eval(), text(1, 9)
    changed = ids.clone()
    changed[0, 0] = (ids[0, 0] - 6 + 1) % (VOCAB - 6) + 6
    assert not torch.allclose(model(ids).logits[:, -1], model(changed).logits[:, -1])


def test_tiny_gpt2_generates_to_the_end_of_its_window_and_says_so():
    config = TinyGPT2Config(vocab_size=20, n_positions=8, n_embd=8, n_layer=1, n_head=1, bos_token_id=0)
    model = TinyGPT2ForCausalLM(config).eval()
    prompt = torch.tensor([[3, 4]])
    more = {"do_sample": False, "eos_token_id": None}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert model.generate(prompt, max_new_tokens=6, **more).shape == (1, 8)
    with pytest.warns(UserWarning, match="window of 8 tokens"):
        assert model.generate(prompt, max_new_tokens=60, **more).shape == (1, 9)
    with pytest.raises(ValueError, match="10 tokens are more than the window"):
        model.generate(torch.full((1, 10), 3), max_new_tokens=2, **more)
