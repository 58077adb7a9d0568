"""What older versions wrote: records of runs, keys by older names, configurations of models."""

from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from newllm_lib import __version__
from newllm_lib.cli.parser import build, parse
from newllm_lib.errors import NewLLMError, UsageError
from newllm_lib.models import NewLLMConfig, Phase7Config
from newllm_lib.recipe import Recipe, aliases, load_recipe, overrides, recorded
from newllm_lib.removed import MODEL_OPTIONS, RECIPE_KEYS

RECORDS = sorted((Path(__file__).parent / "records").glob("*_0.1.0.yaml"))


def record(folder: Path, **changes) -> Path:
    """The record of a New-LLM by 0.1.0, with some keys changed (None: taken out)."""
    values = yaml.safe_load(RECORDS[1].read_text()) | changes
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in values.items() if value is not None}))
    return path


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_a_record_of_the_first_version_is_read_key_by_key(path):
    written, found = yaml.safe_load(path.read_text()), Recipe.from_yaml(path)
    written = {
        f.name: f.default for f in fields(found)
    } | written  # what came later is as if it were not there
    assert {f.name: getattr(found, f.name) for f in fields(found)}.items() <= written.items()
    today = load_recipe(written["recipe"], {"model": found.model}, found.sized_for)
    today.keep(found)
    assert today.differences(found) == []


def test_a_run_goes_on_measuring_as_it_did_but_for_what_is_typed(tmp_path):
    ran = load_recipe("demo", {"evals_per_epoch": "3", "eval_tokens": "4096"}, "cpu")
    for typed, expected in (({}, (3, 4096)), ({"eval_tokens": "8192"}, (3, 8192))):
        today = load_recipe("demo", typed, "cpu")
        today.keep(ran)
        assert (today.evals_per_epoch, today.eval_tokens) == expected
        assert bool(today.differences(ran)) == bool(typed)


def test_a_record_names_the_version_that_wrote_it(tmp_path):
    found = Recipe.from_yaml(record(tmp_path))
    assert yaml.safe_load(found.to_yaml())["version"] == __version__
    (tmp_path / "again.yaml").write_text(found.to_yaml())
    assert Recipe.from_yaml(tmp_path / "again.yaml") == found


@pytest.mark.parametrize(
    ("version", "expected"),
    [(None, 1), ("0.1.9", 1), ("0.2.0", 2), ("0.3.0.dev1", 2), ("0.4.0", 3), ("0.10.0", 3)],
)
def test_a_key_that_a_record_lacks_has_the_default_of_the_version_that_wrote_it(
    tmp_path, monkeypatch, version, expected
):
    before = {"0.2.0": {"keep_checkpoints": 1}, "0.4.0": {"keep_checkpoints": 2, "patience": 7}}
    monkeypatch.setattr(recorded, "_DEFAULTS_BEFORE", before)
    monkeypatch.setattr(Recipe.__dataclass_fields__["keep_checkpoints"], "default", 3)
    lacking = record(tmp_path, version=version, keep_checkpoints=None)
    values = recorded.as_of_today(
        yaml.safe_load(lacking.read_text()), lacking, [f.name for f in fields(Recipe)]
    )
    assert values.get("keep_checkpoints", 3) == expected
    assert Recipe.from_yaml(record(tmp_path, version=version)).keep_checkpoints == 2  # it is written there


@pytest.mark.parametrize("key", RECIPE_KEYS)
def test_a_key_that_is_gone_is_dropped_where_it_did_nothing_and_named_elsewhere(tmp_path, key):
    what, neutral = RECIPE_KEYS[key].what, RECIPE_KEYS[key].neutral
    for value in (neutral, str(neutral).lower()) if neutral is not None else ("true", False):
        assert not hasattr(Recipe.from_yaml(record(tmp_path, **{key: value})), key)
    if neutral is None:
        return
    with pytest.raises(UsageError) as error:
        Recipe.from_yaml(record(tmp_path, **{key: 17}))
    text = str(error.value)
    assert "\n" not in text and all(
        part in text for part in (f"{key} 17", what, "gone since 0.2.0", "commit 6e07e55")
    )


def test_a_key_that_no_version_knows_is_named(tmp_path):
    with pytest.raises(UsageError, match="did you mean epochs"):
        Recipe.from_yaml(record(tmp_path, epocs=3))


def test_an_older_name_is_read_as_todays(tmp_path, monkeypatch):
    monkeypatch.setitem(aliases._RENAMED, "rounds", "epochs")
    assert Recipe.from_yaml(record(tmp_path, epochs=None, rounds=9)).epochs == 9
    mine = tmp_path / "mine.yaml"
    mine.write_text("rounds: 3\nwhen:\n  cpu: {rounds: 2}\n")
    assert [load_recipe(str(mine), device_kind=kind).epochs for kind in ("h100", "cpu")] == [3, 2]
    flags = overrides(parse(["train", str(mine), "--rounds", "5"]))
    assert load_recipe(str(mine), flags, "cpu").epochs == 5
    assert "--rounds" not in build()[1]["train"].format_help()
    with pytest.raises(UsageError, match="one key"):
        load_recipe(str(mine), {"rounds": 1, "epochs": 1}, "cpu")


def test_a_record_is_a_recipe_too(tmp_path):
    loaded = load_recipe(str(record(tmp_path)), device_kind="cpu")
    assert loaded.differences(Recipe.from_yaml(RECORDS[1])) == [] and loaded.run_name == "new_llm_demo"


def test_configurations_of_older_models():
    quiet = {name: option.neutral for name, option in MODEL_OPTIONS.items()} | {"word_memory": 0.0}
    assert not quiet.keys() & NewLLMConfig(**quiet).to_dict().keys()
    assert "rank_cost" not in Phase7Config(rank_cost=0.0).to_dict()
    for name, value in (("word_memory", 100.0), ("mlp_conv", True), ("embedding_skip", True)):
        line = rf"{name} {value} \({MODEL_OPTIONS[name].what}\), which is gone since 0\.2\.0; commit 6e07e55"
        with pytest.raises(NewLLMError, match=line):
            NewLLMConfig(**quiet | {name: value})
