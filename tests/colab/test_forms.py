"""A recipe as a form and back: defaults that are the recipe's, values that become overrides, nothing lost
between.
"""

from __future__ import annotations

import ast
import re

import pytest

from newllm_lib.cli.parser import parse
from newllm_lib.colab.forms import FORM_DEVICE, OVERRIDES_VARIABLE, Field, Form
from newllm_lib.colab.settings import DIALOGUE, FORMS, LABELS, PRETRAINING
from newllm_lib.device import probe
from newllm_lib.errors import UsageError
from newllm_lib.recipe import Recipe, load_recipe
from newllm_lib.recipe import overrides as flag_overrides
from newllm_lib.training.estimate import estimate

GPUS = ("T4", "L4", "A100", "H100")
forms = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


@pytest.fixture(autouse=True)
def _no_overrides(monkeypatch):
    monkeypatch.delenv(OVERRIDES_VARIABLE, raising=False)
    monkeypatch.setenv("NEWLLM_DEVICE", "cpu")


def assigned(text: str) -> dict:
    """Name to value of each `name = value  #@param` line of a cell, as Python reads it."""
    return {
        m[1]: ast.literal_eval(m[2])
        for line in text.splitlines()
        if (m := re.match(r"(\w+) = (.*)  #@param", line))
    }


@forms
def test_the_defaults_shown_are_the_recipes(form):
    recipe = load_recipe(form.recipe, device_kind=FORM_DEVICE)
    shown = assigned(form.render())
    keys = [f.name for f in form.fields if f.is_recipe_key]
    assert keys
    for key in keys:
        assert (shown[key] or None) == (getattr(recipe, key) or None), key


@forms
def test_the_cell_is_python_and_reads_every_field(form, capsys):
    names = {"settings": None}
    exec(compile(form.render(), "form", "exec"), names)
    preset = form.presets.get(form.defaults().get("size"), {})  # the size that is recommended
    assert names["settings"].overrides == preset and names["settings"].name == form.recipe
    assert load_recipe(form.recipe, preset).differences(names["settings"].recipe()) == []
    assert "newllm train" in capsys.readouterr().out


@forms
def test_every_field_is_labelled_in_english_and_japanese(form):
    for f in form.fields:
        assert f.english.isascii() and re.search(r"[\u3040-\u30ff\u4e00-\u9fff]", f.japanese), f.name
        assert f"#@markdown **{f.english}** · {f.japanese}" in form.render()


@forms
def test_lines_are_as_colab_reads_them(form):
    for line in form.render().splitlines():
        if "#@param" in line:
            kinds = "string|raw|boolean|integer|number"
            assert re.fullmatch(
                rf'\w+ = .+  #@param (\[.+\]( \{{allow-input: true\}})?|\{{type:"({kinds})"\}})', line
            ), line


@forms
def test_every_preset_is_a_valid_recipe(form):
    sizes = next((f.choices for f in form.fields if f.name == "size"), ())
    assert set(sizes) == set(form.presets) and (not sizes or {} in form.presets.values())
    for size in sizes:
        settings = form.read(size=size)
        for model in ("new_llm", "tiny_gpt2"):
            assert settings.recipe(model=model).num_layers > 0


@forms
def test_every_gpu_has_sizes_that_fit_it_and_a_session(form, monkeypatch):
    """By name, or (Phase 7) chosen on that GPU."""
    if not form.choose:
        assert tuple(form.gpus) == GPUS and form.gpus["T4"] == {} and form.defaults()["gpu"] == "T4"
    for gpu in GPUS:
        monkeypatch.setenv("NEWLLM_DEVICE", gpu.lower())
        device, settings = probe(), form.read(**({} if form.choose else {"gpu": gpu}))
        if form.choose:
            assert estimate(settings.recipe(), device)["memory_estimate_gib"] < device.memory_gib
            continue
        for model in ("new_llm", "tiny_gpt2"):
            recipe = settings.recipe(**({} if settings.recipe().task == "dpo" else {"model": model}))
            need = estimate(recipe, device)
            assert (need["memory_estimate_gib"] or 0) < device.memory_gib
            assert (need["hours_estimate"] or 0) < 1.5, (gpu, need)


def test_what_the_user_chooses_counts_more_than_the_gpus_sizes():
    assert PRETRAINING.read(gpu="H100").recipe().hidden_size == 512
    assert PRETRAINING.read(gpu="H100", size="small").recipe().hidden_size == 128
    assert DIALOGUE.read(gpu="A100", num_layers=2).recipe().num_layers == 2
    with pytest.raises(UsageError, match="no gpu 'T5'"):
        PRETRAINING.read(gpu="T5")


def test_a_start_keeps_its_sizes_whatever_the_gpu(monkeypatch, tmp_path):
    """A start decides the sizes, and asking for others beside it is an error: the preset must not ask."""
    run = tmp_path / "checkpoints" / "mine"
    run.mkdir(parents=True)
    (run / "recipe.yaml").write_text(
        load_recipe("demo", {"num_layers": 3}, "cpu").to_yaml(), encoding="utf-8"
    )
    monkeypatch.chdir(tmp_path)
    settings = DIALOGUE.read(gpu="H100", from_run="mine")
    assert settings.recipe().num_layers == 3 and "hidden_size" not in settings.overrides


def test_a_field_left_alone_follows_the_device():
    untouched = PRETRAINING.read(batch_size=128)  # what the form shows
    assert untouched.recipe().batch_size == load_recipe("wikitext", device_kind="cpu").batch_size != 128
    assert PRETRAINING.read(batch_size=256).recipe().batch_size == 256


def test_values_become_overrides():
    settings = PRETRAINING.read(
        recipe="demo", size="small", epochs=3, max_samples=50, data_dir="", save_to_drive=False
    )
    assert settings.name == "demo" and settings.extra == {"save_to_drive": False}
    assert settings.overrides == {**PRETRAINING.presets["small"], "epochs": 3, "max_samples": 50}
    recipe = settings.recipe(model="tiny_gpt2")
    assert (recipe.model, recipe.epochs, recipe.max_samples, recipe.hidden_size) == (
        "tiny_gpt2",
        3.0,
        50,
        128,
    )


def test_the_command_means_the_same_recipe():
    settings = PRETRAINING.read(size="small", epochs=2.5, max_samples=None, seed=7, data_dir="my text")
    arguments = parse(settings.arguments(model="tiny_gpt2", deterministic=True, max_steps=None))
    again = load_recipe(arguments.name, flag_overrides(arguments))
    assert again == settings.recipe(model="tiny_gpt2", deterministic=True, max_steps=None)


def test_overrides_from_the_environment_win(monkeypatch):
    monkeypatch.setenv(
        OVERRIDES_VARIABLE, '{"recipe": "demo", "epochs": 1, "max_steps": 5, "save_to_drive": false}'
    )
    settings = PRETRAINING.read(epochs=40.0, save_to_drive=True)
    assert settings.name == "demo" and settings.extra["save_to_drive"] is False
    assert (settings.recipe().epochs, settings.recipe().max_steps) == (1.0, 5)


@pytest.mark.parametrize("text", ["{epochs: 1}", "[1]", '"x"'])
def test_overrides_that_are_no_object_are_refused(monkeypatch, text):
    monkeypatch.setenv(OVERRIDES_VARIABLE, text)
    with pytest.raises(UsageError, match=OVERRIDES_VARIABLE):
        PRETRAINING.read()


@pytest.mark.parametrize(
    "values", [{"size": "huge"}, {"epochs": -1}, {"epochs": "many"}, {"recipe": "wikitexd"}, {"epoch": 3}]
)
def test_a_bad_value_is_one_line(values):
    with pytest.raises(UsageError) as error:
        PRETRAINING.read(**values)
    assert "\n" not in str(error.value)


def test_an_unknown_key_in_the_overrides_names_the_nearest(monkeypatch):
    monkeypatch.setenv(OVERRIDES_VARIABLE, '{"max_step": 5}')
    with pytest.raises(UsageError, match="max_steps"):
        PRETRAINING.read()


def test_parameters_follow_the_types():
    keys = {
        "seed": "integer",
        "epochs": "number",
        "carry_state": "boolean",
        "max_samples": "raw",
        "data_dir": "string",
        "micro_batch_size": "string",
    }
    for name, kind in keys.items():
        assert Field(name, "x", "あ").parameter() == f'{{type:"{kind}"}}'
    assert Field("schedule", "x", "あ").parameter() == '["cosine", "linear", "wsd", "constant"]'


def test_labels_name_recipe_keys():
    assert set(LABELS) <= set(Recipe.__dataclass_fields__)


def test_a_form_of_another_notebook_renders_alone(capsys):
    form = Form("OTHER", "demo", (Field("learning_rate", "Peak learning rate", "学習率"),))
    assert assigned(form.render()) == {
        "learning_rate": load_recipe("demo", device_kind=FORM_DEVICE).learning_rate
    }
