"""What the end of a run says: figures beside what there is to compare with, advice that names an option, the
next command.
"""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from newllm_lib.errors import UsageError
from newllm_lib.recipe import Recipe, load_recipe
from newllm_lib.runs import Run
from newllm_lib.training import train
from newllm_lib.training.report import _advice, _next, lines, read_report
from tests.helpers.tuning import TINY, folder, tuned  # noqa: F401


def test_a_fine_tuned_run_is_set_beside_counting_its_start_and_earlier_runs(folder, capsys):  # noqa: F811
    from newllm_lib.data import load_split
    from newllm_lib.evaluation import bigram
    from tests.helpers.loading import load_run

    earlier = train(tuned(folder, seed="1"))
    run = train(tuned(folder))
    found = read_report(run)
    names = [other["name"] for other in found["beside"]]
    assert names[0].startswith("the bigram table") and names[1:] == [
        "before training (new_llm_wikitext)",
        f"{earlier.name} (an earlier run)",
    ]
    recipe, tokenizer = Recipe.from_yaml(run.recipe_path), load_run(run)[1]
    train_split, validation = (load_split(recipe, tokenizer, split) for split in ("train", "validation"))
    table = bigram(train_split, validation, tokenizer)["bits_per_byte"]
    assert found["beside"][0]["bits_per_byte"] == pytest.approx(table)
    scores = [json.loads(line) for line in run.metrics_path.read_text().splitlines() if "eval_loss" in line]
    assert found["beside"][1]["bits_per_byte"] == scores[0]["eval_bits_per_byte"]
    said = capsys.readouterr().out
    assert (
        "bits per byte of held-out answers" in said
        and "Then: newllm train dailydialog --model tiny_gpt2" in said
    )
    assert all(line in said for line in lines(found))
    other = run.path.with_name("tinygpt2_dailydialog_talks") / "best"
    other.mkdir(parents=True)
    assert _next(recipe, run) == f"newllm compare {run.name} tinygpt2_dailydialog_talks"
    with pytest.raises(UsageError, match="no report yet"):
        read_report(Run("checkpoints/none"))


def evaluations(*scores):
    return [{"step": 10 * i, "epoch": float(i), "eval_bits_per_byte": s} for i, s in enumerate(scores, 1)]


@pytest.mark.parametrize(
    ("scores", "table", "words"),
    [
        ((3.0, 2.5, 2.4), 2.0, ["bigram table", "--epochs"]),
        ((3.0, 2.5, 2.4999), 2.0, ["bigram table", "--learning_rate", "--num_layers"]),
        ((1.9, 1.8, 1.7), 2.0, ["Still improving", "--epochs"]),
        ((1.9, 1.7, 1.8, 1.9), 2.0, ["learns by heart", "--max_samples", "--dropout"]),
        ((1.7, 1.8, 1.9), 2.0, ["first evaluation stayed the best", "--learning_rate"]),
        ((1.8, 1.7, 1.6999), 2.0, []),
    ],
)
def test_advice_names_the_option(scores, table, words, tmp_path):
    rows = evaluations(*scores)
    best = min(rows, key=lambda row: row["eval_bits_per_byte"])
    recipe = load_recipe("ultrachat", {"max_samples": 100}, "h100")
    said = " ".join(_advice(recipe, Run(tmp_path), rows, best, table))
    assert all(word in said for word in words) and bool(said) == bool(words)


@pytest.mark.parametrize(
    ("changes", "last_step", "longer"),
    [
        ({"max_steps": 30}, 30, "--max_steps 60"),  # 50 epochs of 10 steps: max_steps ended it
        ({"max_steps": 30, "epochs": 5}, 30, "--max_steps none"),
        ({"max_steps": 30, "epochs": 4}, 30, "--max_steps none --epochs 8"),
        ({"max_steps": 300, "epochs": 3}, 30, "--epochs 6"),  # the epochs were shorter
        ({"epochs": 3}, 30, "--epochs 6"),
        ({"patience": 2}, 30, None),  # it stopped by itself: a longer limit changes nothing
    ],
)
def test_the_way_to_train_longer_is_what_ended_the_run(changes, last_step, longer, tmp_path):
    rows = evaluations(*((2.4, 2.5, 2.6) if "patience" in changes else (3.0, 2.5, 2.4)))
    best = min(rows, key=lambda row: row["eval_bits_per_byte"])
    recipe = load_recipe("ultrachat", {"max_samples": 100, **changes}, "h100")
    said = " ".join(_advice(recipe, Run(tmp_path), rows, best, 2.0))
    assert rows[-1]["step"] == last_step
    if longer:
        assert f"Train longer ({longer})" in said
    else:
        assert "longer" not in said and "--learning_rate" in said


def test_more_text_is_proposed_where_there_is_more(tmp_path):
    rows = evaluations(1.9, 1.7, 1.8, 1.9)
    recipe = load_recipe("ultrachat", {"max_samples": 100, "dropout": 0.5}, "h100")
    said = [" ".join(_advice(recipe, Run(tmp_path), rows, rows[1], 2.0, count)) for count in (100, 60)]
    assert "--max_samples 500" in said[0] and "--max_samples" not in said[1]
    assert not any("--dropout" in words for words in said)  # it is as high as it goes


def test_following_the_advice_changes_what_a_run_says(folder):  # noqa: F811
    def advised(**changes):
        run = train(tuned(folder, **{"max_samples": "30", "evals_per_epoch": "1", **changes}))
        last = [row for row in run.metrics() if "eval_loss" in row][-1]["step"]
        *ways, where = read_report(run)["advice"]
        options = re.findall(r"\((--[^)]*)\)", " ".join(ways))
        return last, options, re.findall(r"--output_dir (\S+)\.$", where)[0]

    steps, ways, another = advised(max_steps="2")
    assert steps == 2 and set(ways) == {"--max_steps 4"}
    more, others, _ = advised(max_steps="4", output_dir=another)
    assert more == 4 and set(others) == {"--max_steps 8"}


@pytest.mark.parametrize(
    ("scores", "table"),
    [
        ((3.0, 2.5, 2.4), 2.0),  # longer
        ((1.9, 1.8, 1.7), 2.0),  # still improving
        ((1.9, 1.7, 1.8, 1.9), 2.0),  # by heart: more text, dropout
        ((1.7, 1.8, 1.9), 2.0),  # a lower rate
    ],
)
def test_whatever_is_proposed_changes_what_the_next_run_says(scores, table, tmp_path):
    """Each option, followed by itself, with the same figures after it: it is not proposed again as it was."""
    rows = evaluations(*scores)
    best = min(rows, key=lambda row: row["eval_bits_per_byte"])

    def said(**changes: str) -> str:
        recipe = load_recipe("ultrachat", {"max_samples": "100", **changes}, "h100")
        return " ".join(
            _advice(recipe, Run(tmp_path), rows, best, table, int(changes.get("max_samples", 100)))
        )

    before = said()
    options = dict(re.findall(r"--(\w+) ([\d.]+)", before))
    if "--learning_rate (now" in before:
        options["learning_rate"] = str(float(re.findall(r"now ([\d.e-]+)", before)[0]) / 2)
    assert options
    for name, value in options.items():
        after = said(**{name: value.rstrip(".")})
        assert after != before and f"--{name} {value}" not in after, name


def test_a_slow_run_is_told_how_to_be_quicker(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(
        json.dumps({"step": 10_000, "loss": 1.0, "tokens_per_second": 100_000.0}) + "\n"
    )
    recipe, rows = load_recipe("ultrachat", {}, "h100"), evaluations(1.8, 1.7, 1.6999)
    said = " ".join(_advice(recipe, Run(tmp_path), rows, rows[-1], 2.0))
    assert "Slow: 7.3 h" in said and "--max_samples" in said and "--max_seq_length" in said
    assert not list(_advice(replace(recipe, batch_size=16), Run(tmp_path), rows, rows[-1], 2.0))


def test_ultrachat_is_one_pass_and_the_guides_fifty_for_a_part_of_it():
    assert load_recipe("ultrachat", {}, "l4").epochs == 1
    part = load_recipe("ultrachat", {"num_layers": "4", "max_samples": "100,000"}, "l4")
    assert (part.epochs, part.run_name, part.batch_size, part.patience) == (
        50,
        "new_llm_ultrachat_layers4_100k",
        2048,
        20,
    )
    assert load_recipe("ultrachat", {"max_samples": "100000", "epochs": "100"}, "l4").epochs == 100
    assert load_recipe("ultrachat", {"max_samples": "none"}, "l4").epochs == 1
    assert load_recipe("dolly", {}, "l4").run_name == "new_llm_dolly"


def test_the_guides_flags_reach_the_recipe_through_the_command():
    import shlex

    from newllm_lib.cli.parser import parse
    from newllm_lib.recipe import overrides

    line = (
        "train ultrachat --num_layers 4 --max_samples 10000 --max_seq_length 256 --epochs 100 --context_dim "
        "512 --batch_size 1024 --learning_rate 0.0004 --patience 5"
    )
    recipe = load_recipe("ultrachat", overrides(parse(shlex.split(line))), "t4")
    assert (recipe.num_layers, recipe.max_samples, recipe.max_seq_length, recipe.epochs) == (
        4,
        10_000,
        256,
        100,
    )
    assert (recipe.context_dim, recipe.batch_size, recipe.scaled_learning_rate(), recipe.patience) == (
        512,
        1024,
        0.0004,
        5,
    )
    assert load_recipe("ultrachat", {"batch_size": "1024"}, "t4").scaled_learning_rate() == pytest.approx(
        8e-4 / 2**0.5
    )
    assert TINY and Path(load_recipe("ultrachat", {}, "t4").run_path()).name == "new_llm_ultrachat"
