"""The pictures that explain a model hold the numbers that the model itself gives."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
import torch

from newllm_lib.colab import explain, preferences, results
from newllm_lib.colab.forms import Settings
from newllm_lib.data.templates import encode_text
from newllm_lib.errors import UsageError
from newllm_lib.evaluation.inside import Gates, gates, recall, surprise
from newllm_lib.models import NewLLMConfig, NewLLMForCausalLM, TinyGPT2Config, TinyGPT2ForCausalLM
from newllm_lib.runs import Run, write_status
from newllm_lib.training.preferences.card import _accuracy, _margin
from newllm_lib.training.preferences.curves import preference_figure
from tests.helpers.fake_run import append
from tests.helpers.preference_bases import make_base

TEXT = "People learn to write a good answer. The water is red, 日本語 and “seven” houses."


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(make_base(tmp_path_factory.mktemp("base") / "base", "new_llm"))


@pytest.fixture(scope="module")
def new_llm(tokenizer):
    torch.manual_seed(0)
    config = NewLLMConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        context_dim=16,
        mlp_size=32,
        num_hidden_layers=2,
        bos_token_id=tokenizer.bos_token_id,
    )
    return NewLLMForCausalLM(config).eval()


@pytest.fixture(scope="module")
def tiny_gpt2(tokenizer):
    torch.manual_seed(0)
    sizes = dict(n_embd=32, n_layer=1, n_head=2, n_positions=40, bos_token_id=tokenizer.bos_token_id)
    return TinyGPT2ForCausalLM(TinyGPT2Config(vocab_size=len(tokenizer), **sizes)).eval()


def test_the_bits_of_a_text_are_the_models_and_their_sum_is_bits_per_byte(new_llm, tokenizer):
    found = surprise(new_llm, tokenizer, TEXT)
    ids = [tokenizer.bos_token_id, *encode_text(tokenizer, TEXT)]
    with torch.no_grad():
        chances = new_llm(input_ids=torch.tensor([ids])).logits[0].double().softmax(-1)
    expected = [-math.log2(float(chances[i, token])) for i, token in enumerate(ids[1:])]
    assert found.bits == pytest.approx(expected, abs=1e-3)
    assert "".join(found.pieces) == TEXT and found.size == len(TEXT.encode())
    assert found.bits_per_byte == pytest.approx(sum(expected) / len(TEXT.encode()), abs=1e-3)
    with pytest.raises(UsageError, match="no text"):
        surprise(new_llm, tokenizer, "")


def test_the_picture_of_surprise_holds_both_models_and_their_sums(new_llm, tiny_gpt2, tokenizer):
    found = [surprise(model, tokenizer, TEXT[:30]) for model in (new_llm, tiny_gpt2)]
    shown = explain.surprise_html(["new_llm_demo", "tinygpt2_demo"], found)
    for one in found:
        assert f"{one.bits_per_byte:.3f} bits per byte" in shown
        assert f"title='{one.bits[0]:.1f} bits'" in shown
    assert "--nl-0072b2" in shown and "--nl-d55e00" in shown  # each in its model's colour


def test_a_stored_notebook_shows_surprise_as_a_picture(new_llm, tokenizer):
    """Where HTML loses its colours: each token once, the deeper the more bits, at most so many letters a
    line."""
    found = surprise(new_llm, tokenizer, TEXT)
    axes = explain.surprise_figure(["new_llm_demo"], [found], columns=30).axes[0]
    total, *texts = [text.get_text() for text in axes.texts]
    assert f"{found.bits_per_byte:.3f} bits per byte" in total
    assert "".join(texts).replace("·", "") == TEXT
    shades = [patch.get_alpha() for patch in axes.patches]
    assert shades == pytest.approx([min(1.0, bits / 10) * 0.75 for bits in found.bits])
    assert all(patch.get_x() + patch.get_width() <= 30 for patch in axes.patches)


def test_the_gates_shown_make_the_state_that_the_model_carries(new_llm, tokenizer):
    """c_t = a_t c_(t-1) + (1 - a_t) silu(i_t), from the gates alone, is the model's own context vector."""
    for layer in (0, 1):
        found = gates(new_llm, tokenizer, TEXT, layer)
        context = torch.zeros(found.kept.shape[1])
        for kept, written in zip(found.kept, found.written, strict=True):
            context = kept * context + (1 - kept) * written
        ids = [tokenizer.bos_token_id, *encode_text(tokenizer, TEXT)]
        with torch.no_grad():
            state = new_llm(input_ids=torch.tensor([ids]), use_cache=True).state
        assert torch.allclose(state[0, layer, : len(context)], context, atol=1e-4)
        assert len(found.pieces) == len(found.kept) == len(ids)


def test_channels_are_sorted_by_how_long_they_remember(new_llm, tokenizer):
    found = gates(new_llm, tokenizer, TEXT)
    memory = found.memory()[found.order()]
    assert bool((memory.diff() >= 0).all())
    channel = int(found.order()[-1])  # e-fold: what is left after so many tokens is 1/e
    assert float(found.kept[1:, channel].mean()) ** float(memory[-1]) == pytest.approx(1 / math.e, rel=1e-3)
    above, below = explain.gates_figure(found).axes
    heights = [bar.get_height() for bar in above.patches]
    read = found.kept[1:] if found.kept[0].amax() == 0 else found.kept  # without the document's start
    assert heights == pytest.approx((100 * (1 - read).mean(1)).tolist()[: len(heights)], abs=1e-3)
    shown = below.images[0].get_array()[..., 3]
    assert np.allclose(shown, (1 - read[:, found.order()]).T[:, : shown.shape[1]], atol=1e-5)


def test_the_tokens_at_which_most_is_replaced_are_named_once():
    kept = torch.tensor([[0.0, 0.0], [0.5, 0.9], [0.2, 0.2], [0.4, 0.4], [1.0, 0.8]])
    found = Gates(["start", " I", " am", " I", "."], kept, torch.zeros_like(kept))
    assert explain.widest(found) == "“ am” (80 %), “ I” (60 %), “.” (10 %)"


def test_the_data_shown_are_what_training_reads(tmp_path, monkeypatch, capsys):
    """Turns marked where the loss counts them; all lengths; the window."""
    rows = [{"instruction": f"Ask {i}?", "response": f"Answer {i}."} for i in range(40)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setenv("NEWLLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NEWLLM_DEVICE", "cpu")
    settings = Settings("dolly", {"data_dir": str(tmp_path), "vocab_size": 400, "max_samples": None})
    found = explain.show_data(settings)
    shown = explain.data_html(found)
    counted = re.findall(r"<span[^>]*>([^<]*)</span>", shown)
    assert counted and all("Answer" in text and "Ask" not in text for text in counted) and "Ask" in shown
    assert "The loss counts the answers (marked)" in capsys.readouterr().out
    axes = explain.lengths_figure(found).axes[0]
    assert sum(bar.get_height() for bar in axes.patches) == len(found.lengths)
    assert axes.lines[0].get_xdata()[0] == found.window


def test_only_a_new_llm_has_gates(tiny_gpt2, tokenizer):
    with pytest.raises(UsageError, match="context vector to look at"):
        gates(tiny_gpt2, tokenizer, TEXT)


@pytest.mark.parametrize("name", ["new_llm", "tiny_gpt2"])
def test_what_is_remembered_is_the_models_probability(name, tokenizer, request):
    from newllm_lib.evaluation import inside

    model = request.getfixturevalue(name)
    found = recall(model, tokenizer, (2, 5), names=("Tom", "Anna"))
    filler = encode_text(tokenizer, inside._FILLER)
    expected = []
    for given in ("Tom", "Anna"):
        before = [tokenizer.bos_token_id, *encode_text(tokenizer, f"My name is {given}."), *filler[:2]]
        asked, answer = encode_text(tokenizer, " My name is"), encode_text(tokenizer, f" {given}")
        ids = [*before, *asked, *answer]
        assert len(ids) <= 40  # the tiny window: else the model would see less
        with torch.no_grad():
            chances = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
        start = len(before) + len(asked) - 1
        expected.append(math.exp(sum(float(chances[start + i, token]) for i, token in enumerate(answer))))
    assert found.known[0] == pytest.approx(sum(expected) / 2, rel=1e-3)
    assert found.window == (40 if name == "tiny_gpt2" else None)


def test_the_picture_of_memory_marks_where_a_window_ends(new_llm, tiny_gpt2, tokenizer):
    found = [recall(model, tokenizer, (2, 8, 64), names=("Tom", "Anna")) for model in (new_llm, tiny_gpt2)]
    axes = explain.recall_figure(["new_llm_demo", "tinygpt2_demo"], found).axes[0]
    assert [text.get_text() for text in axes.texts if "window" in text.get_text()] == [
        "tinygpt2_demo's window ends (40)"
    ]
    assert axes.get_ylim()[0] < 1 < axes.get_ylim()[1] and axes.get_ylim()[1] - axes.get_ylim()[0] >= 1


def test_the_parts_of_a_model_hold_all_its_parameters(new_llm):
    shown = explain.model_html(new_llm)
    assert f"{sum(p.numel() for p in new_llm.parameters()):,} parameters" in shown
    assert "layers 1" in shown and "layers 2" in shown and "embed_tokens" in shown


def test_arrows_go_from_before_to_after_and_the_axis_holds_zero_and_two_nats():
    shifts = np.array([[-1.0, -0.9], [-0.5, -0.6], [-0.8, -0.7]])
    axes = preferences.shifts_figure(shifts).axes[0]
    arrows = sorted((arrow.xyann[0], arrow.xy[0]) for arrow in axes.texts)
    assert arrows == sorted(map(tuple, shifts.tolist()))
    low, high = axes.get_xlim()
    assert low < 0 < high and high - low >= 2
    assert "67 % rose" in axes.get_title(loc="left") and "0 → 0 %" in axes.get_title(loc="left")
    assert "farther out" not in axes.get_xlabel()


def test_a_pair_far_out_does_not_press_the_others_into_a_line():
    shifts = np.stack([np.linspace(-8, 8, 60), np.linspace(-7, 9, 60)], 1)
    far = np.concatenate([shifts, [[-260.0, -220.0]]])
    axes = preferences.shifts_figure(far).axes[0]
    assert axes.get_xlim() == preferences.shifts_figure(shifts).axes[0].get_xlim()
    assert "(1 of 61 pairs lie farther out)" in axes.get_xlabel()
    assert f"{100 * 30 / 61:.0f} →" in axes.get_title(loc="left")  # and it counts like any other


def test_a_run_that_learned_nothing_does_not_look_dramatic(tmp_path):
    run = Run(tmp_path / "dpo_base")
    flat = {"eval_accuracy": 0.5, "eval_reward_margin": 1e-5, "eval_kl": 0.0, "eval_chosen": -20.0}
    bands = {f"{k}_{side}": v for k, v in flat.items() for side in ("low", "high")}
    append(run, [{"step": n, "loss": 0.6931 + n * 1e-5, "rewards/margins": 1e-5} for n in range(5)])
    append(
        run,
        [
            {"step": n, "eval_loss": 0.6931, "eval_loss_low": 0.69, "eval_loss_high": 0.7, **flat, **bands}
            for n in (0, 4)
        ],
    )
    panels = {axes.get_title("left"): axes for axes in preference_figure(run).axes if axes.get_visible()}
    for title, least in (
        ("loss", 0.2),
        ("reward margin", 0.4),
        ("accuracy", 1.0),
        ("distance from the base (KL)", 1.0),
    ):
        low, high = panels[title].get_ylim()
        assert high - low >= least - 1e-9, title
        assert panels[title].collections, f"no interval on {title}"
    assert panels["distance from the base (KL)"].get_ylim()[0] == 0.0
    low, high = panels["reward margin"].get_ylim()
    assert low < 0 < high


def test_a_preference_run_is_drawn_over_its_whole_length_with_its_legends_off_the_lines(tmp_path):
    run = Run(tmp_path / "dpo_base")
    lines = ("logps/chosen", "logps/rejected", "eval_chosen", "eval_rejected")
    append(run, [{"step": n, "loss": 0.69, **dict.fromkeys(lines[:2], -20.0 - n)} for n in range(1, 5)])
    append(run, [{"step": 4, "eval_loss": 0.69, **dict.fromkeys(lines[2:], -20.0)}])
    write_status(run, state="running", total_steps=200)
    panels = [axes for axes in preference_figure(run).axes if axes.get_visible()]
    assert all(axes.get_xlim()[1] >= 200 for axes in panels)
    answers = next(axes for axes in panels if "log-prob" in axes.get_title("left"))
    low, high = answers.get_ylim()
    assert max(line.get_ydata().max() for line in answers.get_lines()) < low + 0.78 * (high - low)
    assert [len(axes.get_legend().get_texts()) for axes in panels if axes is answers] == [4]


def test_few_pairs_have_no_interval():
    one = {"pairs": 1, "accuracy": 0.0, "accuracy_low": 0.0, "accuracy_high": 0.0, "margin": -1.0}
    assert _accuracy(one) == "0 of 1" and _margin(one) == "-1.00"


def test_a_base_that_writes_no_japanese_is_named():
    result = {"before": {"answers": ["hello", "yes"]}, "preferred": ["はい、そうです。", "いいえ"]}
    assert "hardly writes Japanese (0 of 2" in preferences.language(result)
    assert preferences.language(result | {"before": {"answers": ["はい", "いいえ"]}}) == ""
    assert preferences.language({"before": {"answers": ["yes"]}, "preferred": ["no"]}) == ""


def rows(steps) -> list[dict]:
    return [
        {
            "step": s,
            "epoch": s / 100,
            "bits_per_byte": 2.0,
            "warning": None,
            "prompts": ["<Q>?"],
            "answers": [f"word {s} " * 40],
        }
        for s in steps
    ]


def test_answers_are_one_table_of_questions_and_evaluations():
    shown = results.answers_table(rows((10, 50, 90, 119, 120)))
    assert "step 119" not in shown and "step 120" in shown  # at an epoch's end and the run's: once
    assert shown.count("<tr>") == 2 and "<h" not in shown and "&lt;Q&gt;?" in shown
    cells = shown.split("<td")[2:]
    assert all(cell.rstrip().split(" …")[0].endswith(("word", "0")) for cell in cells)  # cut between words


def test_a_verdict_comes_before_the_figures():
    figures = {"bits_per_byte": 1.8, "perplexity": 40.0, "vocab_size": 2048, "accuracy": 0.25}
    assert "below" not in results.verdict(figures)
    found = figures | {"baselines": {"bigram": {"bits_per_byte": 2.0}, "unigram": {"bits_per_byte": 2.9}}}
    assert "10.0 % below the bigram table" in results.verdict(found)
    assert "not below the bigram table" in results.verdict(found | {"bits_per_byte": 2.1})
    axes = results.scale("new_llm_demo", found).axes[0]
    assert sorted(bar.get_width() for bar in axes.patches) == [1.8, 2.0, 2.9] and axes.get_xlim()[0] == 0
