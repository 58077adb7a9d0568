"""Sample answers over time: in the run's folder, the same prompts, degenerate ones seen."""

import json

import pytest

from newllm_lib.evaluation.samples import BEGINNINGS, QUESTIONS, QUESTIONS_JA, Prompts, as_markdown, variety
from newllm_lib.training import train
from tests.helpers.small_runs import recipe
from tests.helpers.tuning import TINY, write_talks


def samples(run):
    return [json.loads(line) for line in run.samples_path.read_text(encoding="utf-8").splitlines()]


def test_each_evaluation_answers_the_same_prompts_and_the_page_shows_them_side_by_side(folder, capsys):
    write_talks(folder)
    run = train(recipe(folder, data_dir=str(folder / "talks"), evals_per_epoch=2, sample_tokens=5, epochs=2))
    found = samples(run)
    evaluations = [
        json.loads(line) for line in run.metrics_path.read_text().splitlines() if "eval_loss" in line
    ]
    assert [(s["step"], s["bits_per_byte"]) for s in found] == [
        (e["step"], e["eval_bits_per_byte"]) for e in evaluations
    ]
    assert all(s["prompts"] == list(QUESTIONS) and len(s["answers"]) == len(QUESTIONS) for s in found)
    assert all(s["mean_tokens"] <= 6 for s in found)
    page = (run.path / "samples.md").read_text(encoding="utf-8")
    assert page.count("## ") == len(QUESTIONS) and page.count(f"| {found[0]['step']} |") == len(QUESTIONS) + 1
    assert f'"{QUESTIONS[0]}" →' in capsys.readouterr().out


def test_texts_are_continued_and_none_is_asked_for_with_zero_tokens(folder):
    assert samples(train(recipe(folder, max_steps=2)))[0]["prompts"] == list(BEGINNINGS)
    assert not train(
        recipe(folder, max_steps=2, sample_tokens=0, output_dir=str(folder / "none"))
    ).samples_path.exists()


def test_samples_change_nothing_of_the_training(folder):
    curves = []
    for tokens in (0, 7):
        run = train(
            recipe(folder, sample_tokens=tokens, logging_steps=1, output_dir=str(folder / str(tokens)))
        )
        curves.append(
            [
                json.loads(line)["loss"]
                for line in run.metrics_path.read_text().splitlines()
                if '"loss"' in line
            ]
        )
    assert curves[0] == curves[1]


def test_samples_past_the_checkpoint_are_taken_again(folder):
    choices = {"save_minutes": 0, "max_steps": 9, "evals_per_epoch": 5, "keep_checkpoints": 3}
    run = train(recipe(folder, **choices))
    before = samples(run)
    train(recipe(folder, **choices, resume="checkpoint-7"))
    assert samples(run) == before and len({s["step"] for s in before}) == len(before) > 2


def test_japanese_dialogues_are_asked_in_japanese(folder):
    from newllm_lib.data import prepare

    (folder / "ja").mkdir()
    turns = [{"instruction": f"{i} はいくつですか？", "output": f"それは {i} です。"} for i in range(200)]
    (folder / "ja" / "train.jsonl").write_text(
        "\n".join(json.dumps(t, ensure_ascii=False) for t in turns), encoding="utf-8"
    )
    data = prepare(recipe(folder, data_dir=str(folder / "ja"), vocab_size=TINY["vocab_size"]))
    assert list(Prompts(data.validation, data.tokenizer).texts) == list(QUESTIONS_JA)


@pytest.mark.parametrize(
    ("answers", "warning"),
    [
        (["", " ", "I am fine .", ""], "3 of 4 sample answers are empty"),
        (
            ["no no no no no no no no no no no"] * 2 + ["yes", "the cat is red"],
            "2 of 4 sample answers repeat themselves",
        ),
        (["I see ."] * 4, "3 of 4 sample answers are the same"),
        (["I see .", "how are you", "the cat is red", "fine"], None),
    ],
)
def test_degenerate_answers_are_seen(answers, warning, folder):  # noqa: F811
    from newllm_lib.data import prepare

    tokenizer = prepare(recipe(folder)).tokenizer
    found = variety(tokenizer, answers)
    assert found["warning"] is None if warning is None else warning in found["warning"]
    assert 0 <= found["distinct_1"] <= 1 and found["distinct_2"] >= found["distinct_1"] / 2


def test_a_long_run_shows_its_first_its_last_and_some_between():
    rows = [
        {
            "step": i,
            "epoch": i,
            "bits_per_byte": 1.0,
            "prompts": ["a | b <i>"],
            "answers": ["c | d"],
            "distinct_1": 1.0,
            "distinct_2": 1.0,
            "mean_tokens": 1.0,
            "empty": 0,
            "repeating": 0,
            "warning": None,
        }
        for i in range(100)
    ]
    page = as_markdown(rows, "x", most=5)
    assert page.count("| c &#124; d |") == 5 and "| 0 |" in page and "| 99 |" in page and "<i>" not in page
