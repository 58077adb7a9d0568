"""GRPO by a Python function of one's own, or a reward model, on tiny bases."""

from __future__ import annotations

import json
import re

import pytest

from newllm_lib.cli import main
from newllm_lib.colab.history import History
from newllm_lib.data.records import Message
from newllm_lib.errors import NewLLMError, UsageError
from newllm_lib.recipe import load_recipe
from newllm_lib.training import train
from newllm_lib.training.grpo.reward import RewardFunction
from newllm_lib.training.preferences.curves import preference_figure
from tests.helpers.chat_bases import chat_base
from tests.helpers.killed_trl import check_a_kill
from tests.helpers.preference_bases import make_base, recipe, stopped_after
from tests.helpers.texts import write_jsonl

BASES = ("new_llm", pytest.param("tiny_gpt2", marks=pytest.mark.slow), "qwen2")
# the share of an answer that is hiragana; what it was given is written beside it
LETTERS = """
import json, pathlib

def share_of_kana(completions, prompts, **columns):
    seen = pathlib.Path(__file__).with_name("seen.json")
    seen.write_text(json.dumps([prompts[0], sorted(columns), columns["messages"][0]]))
    return [sum("ぁ" <= c <= "ん" for c in text) / max(1, len(text)) for text in completions]

def one_too_few(completions, prompts, **columns):
    return [0.0] * (len(completions) - 1)

def words(completions, prompts, **columns):
    return ["good"] * len(completions)

def nothing(completions, prompts, **columns):
    return None

def no_number(completions, prompts, **columns):
    return [float("nan")] * len(completions)

def raises(completions, prompts, **columns):
    raise ValueError("no such\\ncolumn")

async def later(completions, prompts, **columns):
    return [0.0] * len(completions)

not_one = 3
"""


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases")
    made = {model: make_base(folder / model, model) for model in ("new_llm", "tiny_gpt2")}
    return made | {"qwen2": chat_base(folder / "qwen2", "qwen2")}


@pytest.fixture
def reward(tmp_path):
    (tmp_path / "letters.py").write_text(LETTERS, encoding="utf-8")
    return lambda name: f"{tmp_path / 'letters.py'}:{name}"


def prompts_file(folder, count=40):
    rows = [{"prompt": f"say {n}", "wanted": str(n)} for n in range(count)]
    return str(write_jsonl(folder / "prompts.jsonl", rows))


def chosen(folder, base, name="run", **changes):
    small = {
        "data": prompts_file(folder),
        "max_samples": "none",
        "eval_pairs": 8,
        "max_seq_length": 96,
        "num_generations": 8,
        "batch_size": 32,
        "micro_batch_size": 16,
        "max_completion_length": 12,
        "beta": 0.01,
        "lora_dropout": 0.0,
        "learning_rate": 2e-2,
        "max_steps": 3,
        "logging_steps": 1,
    }
    return recipe(folder, base, name, method="grpo", **(small | changes))


def rows(run, what):
    return [row for row in run.metrics() if what in row]


@pytest.mark.parametrize("base", BASES)
def test_it_writes_answers_and_logs_what_they_are_worth(base, bases, reward, tmp_path):
    run = train(chosen(tmp_path, bases[base], reward=reward("share_of_kana")))
    row = rows(run, "loss")[-1]
    assert {
        "reward",
        "reward_std",
        "rewards/share_of_kana/mean",
        "kl",
        "completions/mean_length",
    } <= row.keys()
    assert 0 < row["completions/mean_length"] <= 12 and "answers_per_second" in row
    first, *_, last = rows(run, "eval_loss")
    assert first["eval_kl"] == 0 and first["eval_loss"] == -first["eval_reward"]
    assert {"eval_reward_low", "eval_reward_high", "eval_repeating", "eval_length"} <= last.keys()
    assert re.search(r"  about .*, .* of it writing 96 answers as fast", run.log.read_text(encoding="utf-8"))
    prompt, columns, messages = json.loads((tmp_path / "seen.json").read_text(encoding="utf-8"))
    assert prompt.startswith("say ") and columns == ["messages", "wanted"]
    assert messages == [{"role": "user", "content": prompt}]
    card = (run.path / "card.md").read_text(encoding="utf-8")
    assert "- reward: share" in card and "held-out prompts" in card and "| reward |" in card
    titles = [place.get_title(loc="left") for place in preference_figure(run).axes if place.get_visible()]
    assert {"reward", "length of the answers", "TRL's estimate of the KL"} <= set(titles)
    history = History(run.metrics_path)
    assert history.update() and history.prefers  # the live view draws them


def test_the_share_of_a_kind_of_letters_rises(bases, reward, tmp_path):
    """From a third to more than a half: the whole of a tiny model learns which letters are wanted."""
    whole = {"lora_rank": 0, "beta": 0.0, "learning_rate": 1e-2, "epochs": 3, "max_steps": 24}
    run = train(chosen(tmp_path, bases["tiny_gpt2"], reward=reward("share_of_kana"), **whole))
    training = [row["reward"] for row in rows(run, "loss")]
    assert sum(training[-3:]) / 3 > sum(training[:3]) / 3 + 0.1
    first, *_, last = rows(run, "eval_loss")
    assert last["eval_reward"] > first["eval_reward"] + 0.1


def test_all_weights_learn_without_a_distance(bases, reward, tmp_path):
    whole = {"lora_rank": 0, "learning_rate": 1e-3, "beta": 0.0, "reward": reward("share_of_kana")}
    run = train(chosen(tmp_path, bases["new_llm"], max_steps=2, **whole))
    assert (run.best / "config.json").is_file() and "kl" not in rows(run, "loss")[-1]


def test_a_stopped_run_goes_on_to_the_same_curve(bases, reward, tmp_path):
    changes = {"max_steps": 4, "save_steps": 2, "lora_dropout": 0.1, "reward": reward("share_of_kana")}

    def curve(run):
        timed = ("time", "answers_per_second", "step_time")
        return [{k: v for k, v in row.items() if k not in timed} for row in run.metrics()]

    whole = train(chosen(tmp_path, bases["new_llm"], "whole", **changes))
    parts = chosen(tmp_path, bases["new_llm"], "parts", **changes)
    with stopped_after(1, "grpo"):
        train(parts)
    assert curve(train(parts)) == curve(whole)


@pytest.mark.slow
def test_a_kill_gives_the_same_curve_again(bases, reward, tmp_path):
    changes = {"max_steps": 4, "save_steps": 1, "lora_dropout": 0.1, "reward": reward("share_of_kana")}
    check_a_kill("grpo", lambda name: chosen(tmp_path, bases["new_llm"], name, **changes), 2)


def test_a_reward_model_is_a_reward(bases, tmp_path):
    judge = train(
        recipe(
            tmp_path, bases["new_llm"], "judge", method="reward", max_steps=2, eval_pairs=4, max_samples=16
        )
    )
    run = train(chosen(tmp_path, bases["tiny_gpt2"], reward=str(judge.path), max_steps=1))
    assert "rewards/judge/mean" in rows(run, "loss")[-1]
    assert "- reward: judge" in (run.path / "card.md").read_text(encoding="utf-8")


def test_pairs_are_prompts_whose_answers_are_columns(bases, reward, tmp_path):
    run = train(
        chosen(
            tmp_path,
            bases["tiny_gpt2"],
            data="preferences_ja",
            max_samples=16,
            reward=reward("share_of_kana"),
            max_steps=1,
        )
    )
    columns = json.loads((tmp_path / "seen.json").read_text(encoding="utf-8"))[1]
    assert columns == ["chosen", "messages", "rejected"] and "16 prompts" in run.log.read_text(
        encoding="utf-8"
    )


# --- what goes wrong


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("absent", "letters.py has no function absent"),
        ("not_one", "letters.py has no function not_one"),
        ("later", "later is async; make it a plain function"),
        ("one_too_few", "gave 3 values for 4 answers: one number for each"),
        ("words", "gave 'good', which is no finite number"),
        ("no_number", "gave nan, which is no finite number"),
        ("nothing", "gave NoneType, not a list of 4 numbers"),
        ("raises", "raised ValueError (line 22): no such."),
    ],
)
def test_a_reward_that_is_none_is_one_line(name, words, bases, reward, tmp_path):
    with pytest.raises(NewLLMError) as error:
        train(chosen(tmp_path, bases["tiny_gpt2"], reward=reward(name)))
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "GRPO needs a reward: --reward FILE.py:NAME"),
        ({"reward": "nowhere.py:f"}, "there is no file"),
        ({"reward": "no_such_run"}, "no_such_run"),
        ({"reward": "BROKEN"}, "cannot be run: ZeroDivisionError (line 1)"),
        ({"batch_size": 20, "micro_batch_size": 20}, "--batch_size 20 counts answers, 8 to each prompt"),
        ({"lora_rank": 0}, "is at hand only beside adapters"),
        ({"max_completion_length": 96}, "leaves no room for a prompt"),
        ({"max_completion_length": 95}, "No prompt fits into 1 tokens"),
        ({"data": "EMPTY"}, "row"),
    ],
)
def test_bad_input_is_one_line(changes, words, bases, reward, tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text("1 / 0\n", encoding="utf-8")
    changes = {"reward": reward("share_of_kana"), **changes} if changes else changes
    if changes.get("reward") == "BROKEN":
        changes["reward"] = f"{broken}:f"
    if changes.get("data") == "EMPTY":
        changes["data"] = str(write_jsonl(tmp_path / "empty.jsonl", [{"other": 1}] * 4))
    with pytest.raises(NewLLMError) as error:
        train(chosen(tmp_path, bases["tiny_gpt2"], **changes))
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_reward_may_have_classes_and_its_mistakes_have_its_own_lines(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(
        "from __future__ import annotations\nimport json, sys\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass Weight:\n    of: float = 2.0\n"
        "def good(completions, prompts, **columns):\n    return [Weight().of for _ in completions]\n"
        "def bad(completions, prompts, **columns):\n    return json.loads('{')\n"
        "def ending(completions, prompts, **columns):\n    sys.exit(3)\n"
    )
    asked = ([[Message("user", "hi")]], ["yes"], {})
    assert RewardFunction(f"{file}:good")(*asked) == [2.0]
    with pytest.raises(NewLLMError, match=r"JSONDecodeError \(line 10\)"):  # not a line of json's
        RewardFunction(f"{file}:bad")(*asked)
    with pytest.raises(NewLLMError, match=r"raised SystemExit \(line 12\): 3"):
        RewardFunction(f"{file}:ending")(*asked)


def test_a_file_that_names_a_reward_runs_nothing(bases, reward, tmp_path, capsys):
    run = train(chosen(tmp_path, bases["tiny_gpt2"], reward=reward("share_of_kana"), max_steps=1))
    (tmp_path / "seen.json").unlink()
    with pytest.raises(UsageError, match="which would be run: say --reward"):
        load_recipe(str(run.path / "recipe.yaml"))
    own = tmp_path / "mine.yaml"
    own.write_text(f"task: grpo\nwhen:\n  cpu:\n    reward: {reward('share_of_kana')}\n", encoding="utf-8")
    with pytest.raises(UsageError, match="names reward .* which would be run"):
        load_recipe(str(own))
    assert not (tmp_path / "seen.json").exists()
    again = load_recipe(str(run.path / "recipe.yaml"), {"reward": reward("share_of_kana")})
    assert again.reward == reward("share_of_kana")


def test_another_reward_is_another_run(bases, reward, tmp_path):
    train(chosen(tmp_path, bases["tiny_gpt2"], reward=reward("share_of_kana"), max_steps=1))
    (tmp_path / "letters.py").write_text(LETTERS.replace("ぁ", "ァ"), encoding="utf-8")
    with pytest.raises(NewLLMError, match="prompts, or the reward, are not what"):
        train(chosen(tmp_path, bases["tiny_gpt2"], reward=reward("share_of_kana"), max_steps=1))


def test_a_reward_is_for_grpo_alone_and_names_the_run(capsys):
    assert main(["train", "dpo", "--reward", "mine.py:f"]) == 2
    assert "--reward is for task grpo" in capsys.readouterr().err
    assert load_recipe("grpo", {"sized_for": "cpu", "reward": "mine.py:short"}).run_name == (
        "grpo_dialogpt-small_short"
    )


def test_keys_reach_trl(bases, tmp_path, reward):
    run = train(
        chosen(tmp_path, bases["tiny_gpt2"], reward=reward("share_of_kana"), max_steps=1, lora_rank=2)
    )
    assert json.loads((run.best / "adapter_config.json").read_text(encoding="utf-8"))["r"] == 2
    other = {"num_generations": 4, "batch_size": 8, "micro_batch_size": 8, "max_completion_length": 5}
    run = train(
        chosen(tmp_path, bases["tiny_gpt2"], "other", reward=reward("share_of_kana"), max_steps=1, **other)
    )
    row = rows(run, "loss")[-1]
    assert row["completions/max_length"] <= 5 and "4 to a prompt, at most 5 tokens" in run.log.read_text(
        "utf-8"
    )
