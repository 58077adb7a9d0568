"""`newllm expand`: a run that another one starts from, with the same predictions and a larger context."""

import pytest

from newllm_lib.cli import main
from newllm_lib.recipe import Recipe, load_recipe
from newllm_lib.runs import Run
from newllm_lib.training import train
from tests.helpers.loading import load_run
from tests.helpers.small_runs import write_text

TINY = {
    "hidden_size": 16,
    "context_dim": 16,
    "mlp_size": 16,
    "num_layers": 1,
    "vocab_size": 300,
    "max_seq_length": 16,
    "sized_for": "cpu",
    "batch_size": 8,
    "data_dir": "text",
    "num_heads": 2,
    "max_steps": 2,
    "sample_tokens": 0,
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path)


def test_training_goes_on_from_an_expanded_run(here, capsys):
    first = train(load_recipe("demo", {**TINY, "output_dir": "checkpoints/small"}))
    assert main(["expand", "small", "--context_dim", "24"]) == 0
    assert "train demo --from small_context24" in capsys.readouterr().out
    larger = Run(first.path.with_name("small_context24"))
    assert Recipe.from_yaml(larger.recipe_path).context_dim == 24
    asked = {k: v for k, v in TINY.items() if k not in ("context_dim", "vocab_size")}
    second = train(
        load_recipe("demo", {**asked, "from_run": "small_context24", "output_dir": "checkpoints/second"})
    )
    before = next(row["eval_bits_per_byte"] for row in second.metrics() if row["step"] == 0)
    trained = min(row["eval_bits_per_byte"] for row in first.metrics() if "eval_bits_per_byte" in row)
    assert before == pytest.approx(trained, rel=1e-5)  # the same predictions at the start
    model, _, recipe = load_run(second)
    assert model.config.context_dim == recipe.context_dim == 24 and model.config.context_eps < 1e-6
    wrong = {"24": "is there already", "16": "16 channels", "no": "whole number"}
    for size, message in wrong.items():
        assert main(["expand", "small", "--context_dim", size]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert main(["expand", "nobody", "--context_dim", "24"]) == 2
