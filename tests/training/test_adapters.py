"""LoRA in fine-tuning: adapters alone learn, best/ loads like any model, and a stopped run goes on
exactly.
"""

import shutil

import pytest
import torch

from newllm_lib.errors import UsageError
from newllm_lib.recipe import load_recipe
from newllm_lib.training import train
from tests.helpers.loading import load_run
from tests.helpers.small_runs import curve, rows, stopped_after
from tests.helpers.tuning import TINY, folder, tuned  # noqa: F401

LORA = {"lora_rank": "2", "learning_rate": "0.05", "dropout": "0.1"}


def adapted(folder, **changes):  # noqa: F811
    return tuned(folder, **{**LORA, **changes})


def sequential(folder):  # noqa: F811
    """A start whose recurrence walks token by token."""
    choices = {
        "recurrence": "sequential",
        "data_dir": str(folder / "text"),
        "run_name": "walker",
        "max_steps": 2,
    }
    train(load_recipe("wikitext", {**TINY, **choices}))
    return {"from_run": "walker"}


@pytest.mark.parametrize("kind", ["new_llm", "tiny_gpt2", "sequential"])
def test_adapters_learn_and_the_merged_model_is_what_was_measured(folder, kind, capsys):  # noqa: F811
    from peft import PeftModel

    from newllm_lib.data import load_split
    from newllm_lib.evaluation import evaluate

    chosen = sequential(folder) if kind == "sequential" else {"model": kind}
    run = train(adapted(folder, **chosen))
    assert "_lora2" in run.name
    evaluations = [row for row in rows(run) if "eval_loss" in row]
    assert (
        evaluations[-1]["eval_bits_per_byte"] < evaluations[0]["eval_bits_per_byte"]
    )  # the sequential one learns too
    model, tokenizer, recipe = load_run(run)  # best/, an ordinary folder
    assert not [name for name, _ in model.named_parameters() if "lora" in name]
    found = evaluate(model, load_split(recipe, tokenizer, "validation"), tokenizer)
    assert found["bits_per_byte"] == pytest.approx(
        min(e["eval_bits_per_byte"] for e in evaluations), rel=1e-4
    )

    base = load_run(run.path / "base")[0]
    start = load_run(recipe.from_run)[0]
    assert all(torch.equal(a, b) for a, b in zip(base.parameters(), start.parameters(), strict=True))
    ids = torch.arange(6, 22)[None]
    plain = base(ids).logits
    again = PeftModel.from_pretrained(base, run.best / "adapter").eval()  # the adapters as PEFT knows them
    torch.testing.assert_close(again(ids).logits, model(ids).logits, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(plain, model(ids).logits, atol=1e-4)
    with again.disable_adapter():
        torch.testing.assert_close(again(ids).logits, plain)


def test_only_what_is_trained_is_in_the_optimizer(folder):  # noqa: F811
    from newllm_lib.models import parameters
    from newllm_lib.training.adapters import add_adapters
    from newllm_lib.training.model_config import load_model
    from newllm_lib.training.optim.build import build_optimizer

    recipe = adapted(folder, optimizer="muon")
    place = folder / "checkpoints/new_llm_wikitext/best"
    model = add_adapters(load_model(place, recipe), recipe, place)
    optimizer = build_optimizer(model, recipe)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert sum(p.numel() for g in optimizer.param_groups for p in g["params"]) == parameters(model)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        n for n, _ in model.named_parameters() if "lora_" in n
    }


def test_rank_scale_and_dropout_reach_the_adapters(folder):  # noqa: F811
    from newllm_lib.training.adapters import add_adapters
    from newllm_lib.training.model_config import load_model

    recipe = adapted(folder, lora_rank="3", lora_alpha="6", lora_dropout="0.25")
    place = folder / "checkpoints/new_llm_wikitext/best"
    layer = add_adapters(load_model(place, recipe), recipe, place).model.layers[0].context.project
    assert layer.lora_A["default"].weight.shape[0] == 3 and layer.scaling["default"] == 2.0
    assert layer.lora_dropout["default"].p == 0.25


def test_a_stopped_run_with_adapters_goes_on_exactly_also_without_its_start(folder, monkeypatch):  # noqa: F811
    whole = train(adapted(folder, output_dir="whole"))
    with stopped_after(3):
        train(adapted(folder))
    shutil.rmtree("checkpoints/new_llm_wikitext")
    run = train(adapted(folder))
    assert curve(run) == curve(whole)
    a, b = (load_run(x, which="last")[0] for x in (run, whole))
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_adapters_need_something_to_stand_beside(folder):  # noqa: F811
    with pytest.raises(UsageError, match="--lora_rank trains adapters beside .* --from"):
        train(tuned(folder, from_run="none", lora_rank="2"))
