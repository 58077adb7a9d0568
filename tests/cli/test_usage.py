"""Flags, mistakes and exit codes: what the user types and gets to read."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from newllm_lib.cli import main
from newllm_lib.cli.parser import build, parse
from newllm_lib.errors import UsageError
from newllm_lib.recipe import Recipe, load_recipe, overrides, shipped_recipes
from newllm_lib.recipe.aliases import GUIDES_KEYS, older_names


def run(capsys, *words: str) -> tuple[int, str, str]:
    code = main(list(words))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["trian", "demo"], "did you mean train?"),
        (["train"], "Name a RECIPE"),
        (["train", "demo", "--num_layer", "4"], "did you mean --num_layers?"),
        (["train", "demo", "--num-layer", "4"], "did you mean --num_layers?"),
        (["train", "--batchsize=4", "demo"], "did you mean --batch_size?"),
        (["train", "demo", "--num_layers"], "num_layers"),
        (["train", "demo", "--word_memory", "2"], "--word_memory (a memory of words) is gone since 0.2.0"),
        (["train", "demo", "wikitext"], "no use for 'wikitext'"),
        (["train", "wikitxt"], "did you mean wikitext?"),
        (
            ["train", "demo", "--sized_for", "cpu", "--num_layers", "four"],
            "num_layers must be a whole number",
        ),
        (
            ["train", "demo", "--sized_for", "cpu", "--model", "gpt5"],
            "model must be one of new_llm, tiny_gpt2",
        ),
        (["demo", "--model", "tiny_gpt2"], "Unknown flag --model"),
        (["doctor", "--num_layers", "3"], "doctor --recipe demo"),
        (["evaluate", "no_such_run", "--split", "tests"], "invalid choice: 'tests'"),
        (["runs", "status", "no_such_run"], "No run 'no_such_run'"),
        (["train", "demo", "--json", "--background", "--sized_for", "cpu"], "--json and --background"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(capsys, tmp_path, monkeypatch, words, expected):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys, *words)
    assert code == 2
    assert expected in err and err.startswith("newllm: ") and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_yaml_file_with_an_unknown_key_names_the_nearest(capsys, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("data: demo\nlearning_rat: 0.1\n")
    code, _, err = run(capsys, "train", str(path))
    assert code == 2 and "did you mean learning_rate?" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "words", [[], ["--help"], ["train", "--help"], ["runs", "stop", "--help"], ["--version"]]
)
def test_help_is_no_error(capsys, words):
    code, out, err = run(capsys, *words)
    assert code == 0 and out.startswith(("usage: newllm", "newllm ")) and not err


def test_every_recipe_key_is_a_flag_in_both_spellings():
    """And no flag of training is something the recipe does not know."""
    given = {f.name: "7" for f in fields(Recipe) if f.name != "recipe"}
    for spelling in (str, lambda name: name.replace("_", "-")):
        words = [part for name, value in given.items() for part in (f"--{spelling(name)}", value)]
        assert overrides(parse(["train", "demo", *words])) == given
    known = {action.dest for action in build()[1]["train"]._actions if action.dest.startswith("set_")}
    assert known == {f"set_{name}" for name in [*given, *GUIDES_KEYS, *older_names()]}


def test_values_reach_the_recipe_with_their_types():
    words = [
        "train",
        "demo",
        "--carry_state",
        "false",
        "--learning-rate",
        "8e-4",
        "--max_steps=none",
        "--epochs",
        "2",
    ]
    recipe = load_recipe("demo", overrides(parse(words)), device_kind="cpu")
    assert recipe.carry_state is False and recipe.learning_rate == 8e-4
    assert recipe.max_steps is None and recipe.epochs == 2.0


def test_the_last_of_background_and_foreground_counts():
    assert parse(["train", "--background", "demo"]).background
    assert not parse(["train", "--background", "demo", "--foreground"]).background
    assert not parse(["demo"]).background


def test_recipes_are_listed_and_shown_as_yaml_that_loads(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("NEWLLM_DEVICE", "cpu")
    code, out, _ = run(capsys, "recipes")
    assert code == 0 and "\ndemo " in "\n" + out and "\nwikitext " in out
    code, out, _ = run(capsys, "recipes", "show", "demo")
    assert code == 0
    saved = tmp_path / "mine.yaml"
    saved.write_text(out)
    assert load_recipe(str(saved)).differences(load_recipe("demo")) == []
    assert yaml.safe_load(out).keys() == {f.name for f in fields(Recipe)}


def test_help_takes_less_than_a_second_and_loads_no_torch():
    code = (
        "import time; start = time.monotonic()\n"
        "from newllm_lib.cli import main; import sys\n"
        "assert main(['--help']) == 0\n"
        "assert not {'torch', 'transformers', 'datasets', 'matplotlib'} & set(sys.modules)\n"
        "assert time.monotonic() - start < 1, time.monotonic() - start"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_paths_are_meant_from_where_the_bootstrap_was_started(monkeypatch, tmp_path):
    from newllm_lib.cli import _from_the_users_folder

    words = [
        "train",
        "mine.yaml",
        "--data_dir",
        "texts",
        "--output-dir=out",
        "--num_layers",
        "2",
        "--data-dir",
        "/absolute",
    ]
    assert _from_the_users_folder(words) == words
    monkeypatch.setenv("NEWLLM_STARTED_IN", str(tmp_path))
    assert _from_the_users_folder(words) == [
        "train",
        str(tmp_path / "mine.yaml"),
        "--data_dir",
        str(tmp_path / "texts"),
        f"--output-dir={tmp_path / 'out'}",
        "--num_layers",
        "2",
        "--data-dir",
        "/absolute",
    ]


PLACES = ("--data", "--tokenizer", "--base", "--from", "--teacher", "--resume")


@pytest.mark.parametrize("flag", [*PLACES, "--reward"])
def test_a_name_or_a_place_is_a_place_where_it_lies(monkeypatch, tmp_path, flag):
    from newllm_lib.cli import _from_the_users_folder

    monkeypatch.setenv("NEWLLM_STARTED_IN", str(tmp_path))
    for name in ("mine", "rewards.py", "demo", "bpe"):
        (tmp_path / name).touch()
    own = "rewards.py:short" if flag == "--reward" else "mine"
    words = ["train", "--background", "demo", flag, own, f"{flag}={own}", flag, "owner/name", flag, "demo"]
    assert _from_the_users_folder(words) == [
        *["train", "--background", "demo", flag, str(tmp_path / own), f"{flag}={tmp_path / own}"],
        *[flag, "owner/name", flag, "demo"],
    ]


def test_a_runs_folder_and_a_home_are_places_too(monkeypatch, tmp_path):
    from newllm_lib.cli import _from_the_users_folder

    monkeypatch.setenv("NEWLLM_STARTED_IN", str(tmp_path))
    monkeypatch.setenv("HOME", "/home/me")
    (tmp_path / "old_run").mkdir()
    words = ["train", "--background", "old_run", "--data_dir=~/text", "--mirror_dir", "none"]
    assert _from_the_users_folder(words) == [
        *["train", "--background", str(tmp_path / "old_run"), "--data_dir=/home/me/text"],
        *["--mirror_dir", "none"],
    ]


def test_places_in_a_recipes_file_are_meant_from_there_too(monkeypatch, tmp_path):
    (tmp_path / "users" / "texts").mkdir(parents=True)
    (tmp_path / "clone").mkdir()
    (tmp_path / "users" / "mine.yaml").write_text(
        "data: texts\noutput_dir: out\nwhen:\n  cpu:\n    tokenizer: bpe\n    mirror_dir: copies\n"
    )
    monkeypatch.chdir(tmp_path / "clone")
    monkeypatch.setenv("NEWLLM_STARTED_IN", str(tmp_path / "users"))
    recipe = load_recipe(str(tmp_path / "users" / "mine.yaml"), {"sized_for": "cpu"})
    assert [recipe.data, recipe.output_dir, recipe.mirror_dir, recipe.tokenizer] == [
        *(str(tmp_path / "users" / name) for name in ("texts", "out", "copies")),
        "bpe",
    ]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["evaluate", "a", "--block_length", "-5"], "from 1 on"),
        (["runs", "logs", "a", "--lines", "0"], "from 1 on"),
        (["train", "demo", "--dropout", "1.5"], "dropout must be at most 0.9"),
        (["train", "demo", "--report_to", "foo"], "report_to must be one of none, tensorboard"),
        (["train", "demo", "--epochs", "0"], "epochs must be at least"),
        (["train", "demo", "--protocol", "seed", "--tokenizer", "gpt2"], "1,000 words"),
        (["train", "demo", "--dtype", "fp16"], "needs a GPU"),
    ],
)
def test_values_out_of_range_are_refused_before_anything_is_made(
    capsys, tmp_path, monkeypatch, words, expected
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NEWLLM_DEVICE", "cpu")
    code, _, err = run(capsys, *words)
    assert code == 2 and expected in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("train dolly --base gpt2 --from new_llm_dolly", "leave out one of the two"),
        ("train dolly --base gpt2 --hidden_size 64", "--hidden_size is for task train"),
        (
            "train dolly --load_in 4bit",
            "--load_in is for task sft, dpo, orpo, kto, grpo, and does nothing for task train",
        ),
        ("train dolly --beta 0.1", "--beta is for task dpo"),
        ("train dpo --vocab_size 8192", "--vocab_size is for task train, and does nothing for task dpo"),
        ("train dpo --model tiny_gpt2", "--model is for task train"),
        ("train demo --attention dot", "--attention is for phase7, and does nothing for new_llm"),
        ("train demo --use_htt false", "--embedding is for phase7"),
        ("train demo --num_heads 8", "--num_heads is for tiny_gpt2 and phase7"),
        ("demo --attention dot", "--attention is for phase7, and does nothing for new_llm or tiny_gpt2"),
        ("train phase7_small --recurrence sequential", "--recurrence is for new_llm"),
        ("train phase7_small --teacher gpt2", "--teacher is for new_llm"),
        ("train dpo --from new_llm_demo", "--from is for task train"),
        ("doctor --recipe demo --htt_rank 8", "--htt_rank is for phase7"),
        ("train mine.yaml", "mine.yaml: beta is for task dpo"),
        ("train other.yaml", "other.yaml, when: cpu: attention is for phase7"),
    ],
)
def test_a_key_that_would_do_nothing_is_refused(capsys, tmp_path, monkeypatch, words, expected):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NEWLLM_DEVICE", "cpu")
    Path("mine.yaml").write_text("data: demo\nbeta: 0.2\n")
    Path("other.yaml").write_text("data: demo\nwhen: {cpu: {attention: dot}}\n")
    code, _, err = run(capsys, *words.split())
    assert code == 2 and expected in err and err.count("\n") == 1
    assert not (tmp_path / "checkpoints").exists()


def test_a_key_of_one_of_the_demos_two_models_is_welcome(tmp_path, monkeypatch):
    from newllm_lib.recipe import refuse_without_effect

    both = [load_recipe("demo", {"model": model}, "cpu") for model in ("new_llm", "tiny_gpt2")]
    refuse_without_effect(["num_heads", "carry_state", "recurrence", "time_scales", "teacher"], *both)
    for key in ("num_heads", "teacher"):
        with pytest.raises(UsageError, match=key):
            refuse_without_effect(["num_heads", "teacher"], both[key == "teacher"])


def test_what_recipes_show_prints_of_every_recipe_can_be_trained(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("NEWLLM_DEVICE", "cpu")
    for name in shipped_recipes():
        saved = tmp_path / f"{name}.yaml"
        saved.write_text(run(capsys, "recipes", "show", name)[1])
        load_recipe(str(saved), resolve_start=False)
