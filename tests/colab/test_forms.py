"""A recipe as a form and back: defaults that are the recipe's, values that become overrides, nothing lost
between.
"""

from __future__ import annotations

import ast
import re
import types
from pathlib import Path

import pytest

from newllm_lib.cli.parser import parse
from newllm_lib.colab import form_checks, forms as forms_module
from newllm_lib.colab.forms import OVERRIDES_VARIABLE, Field, Form
from newllm_lib.colab.settings import DIALOGUE, FORMS, LABELS, PRETRAINING
from newllm_lib.device import probe
from newllm_lib.errors import UsageError
from newllm_lib.recipe import Recipe, load_recipe, overrides as flag_overrides
from newllm_lib.training.estimate import estimate

GPUS = ("T4", "L4", "A100", "H100")
forms = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


@pytest.fixture(autouse=True)
def _no_overrides(monkeypatch):
    monkeypatch.delenv(OVERRIDES_VARIABLE, raising=False)
    monkeypatch.setenv("NEWLLM_DEVICE", "cpu")
    monkeypatch.setattr(form_checks, "hub_answers", lambda: False)


def assigned(text: str) -> dict:
    """Name to value of each `name = value  #@param` line of a cell, as Python reads it."""
    return {
        m[1]: ast.literal_eval(m[2])
        for line in text.splitlines()
        if (m := re.match(r"(\w+) = (.*)  #@param", line))
    }


@forms
def test_a_field_of_the_recipe_is_empty_until_someone_types(form):
    """What is shown is what is trained: a choice is the recipe's own on every machine, all else is empty."""
    shown = assigned(form.render())
    keys = [f for f in form.fields if f.is_recipe_key]
    assert keys
    for f in keys:
        same = {getattr(load_recipe(form.recipe, device_kind=kind), f.name) for kind in ("cpu", "t4", "h100")}
        assert shown[f.name] == "" or same == {shown[f.name]}, f.name
        assert (shown[f.name] == "") == (not f.options() or "" in f.options()), f.name


@forms
def test_what_is_typed_is_what_is_trained_also_where_the_recipe_says_the_same(form, capsys):
    """Each recipe key, with the value of another machine's preset: typed on a CPU it counts there."""
    t4 = load_recipe(form.recipe, device_kind="t4", resolve_start=False)
    for f in form.fields:
        value = getattr(t4, f.name, None)
        if not f.is_recipe_key or f.options() or value in (None, ""):
            continue
        settings = form.read(**{f.name: str(value)})
        assert getattr(settings.recipe(), f.name) == value and settings.overrides[f.name] == value, f.name
        assert f"typed: {f.title} " in capsys.readouterr().out


@forms
def test_the_cell_is_python_and_reads_every_field(form, capsys):
    names = {"settings": None}
    exec(compile(form.render(), "form", "exec"), names)
    settings = names["settings"]
    preset = form.presets.get(form.defaults().get("size"), {})  # the size that is recommended
    assert settings.overrides == preset and settings.name == form.recipe
    assert load_recipe(form.recipe, preset).differences(settings.recipe()) == []
    shown = capsys.readouterr().out
    assert "newllm train" in shown
    recipe = settings.recipe()  # beside each field left alone, the value that it stands for here
    for f in form.fields:
        if f.name in ("batch_size", "max_seq_length", "learning_rate"):
            assert f"{f.title} {getattr(recipe, f.name):g}" in shown, f.name


@forms
def test_every_field_is_labelled_in_english_and_japanese(form):
    for f in form.fields:
        assert f.english.isascii() and re.search(r"[\u3040-\u30ff\u4e00-\u9fff]", f.japanese), f.name
        assert f"#@markdown **{f.english}** · {f.japanese}" in form.render()


@forms
def test_lines_are_as_colab_reads_them(form):
    for line in form.render().splitlines():
        if "#@param" in line:
            kinds = '"(string|boolean|integer|number)"(, placeholder:".+")?'
            assert re.fullmatch(
                rf"\w+ = .+  #@param (\[.+\]( \{{allow-input: true\}})?|\{{type:{kinds}\}})",
                line,
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
        assert tuple(form.gpus) == GPUS and form.gpus["T4"] == {} and form.defaults()["gpu"] == ""
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
    with pytest.raises(UsageError, match="Sizes for this GPU.*not 'T5'"):
        PRETRAINING.read(gpu="T5")


def test_a_gpu_that_is_named_is_meant_whatever_runs_here():
    assert PRETRAINING.read(gpu="T4").recipe().batch_size == 64  # though this is a CPU
    assert PRETRAINING.read(gpu="T4").recipe().sized_for == "t4"


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


STARTS = pytest.mark.parametrize("name", ["DIALOGUE", "ULTRACHAT"])


@STARTS
def test_a_start_is_a_new_model_a_run_or_a_model_of_the_hub(name, tmp_path, monkeypatch):
    """Three proposals of the hub, in both languages; what is no run of plain training is taught as a base."""
    form = FORMS[name]
    proposals = next(f for f in form.fields if f.name == "from_run").choices
    assert proposals[:2] == ("", "none") and len([p for p in proposals if "/" in p]) == 3
    for one in proposals[2:]:
        recipe = form.read(from_run=one).recipe()
        assert (recipe.task, recipe.base, recipe.epochs, recipe.lora_rank) == ("sft", one, 1.0, 16)
    for empty in ("", "none"):
        assert "from_run" not in form.read(from_run=empty).overrides

    def record(run: str, recipe: Recipe) -> None:
        (tmp_path / "checkpoints" / run).mkdir(parents=True)
        (tmp_path / "checkpoints" / run / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")

    record("mine", load_recipe("demo", None, "cpu"))
    record("taught", Recipe(task="sft", base="no/body"))
    (tmp_path / "foreign").mkdir()
    monkeypatch.chdir(tmp_path)
    assert form.read(from_run="mine").recipe().from_run == "mine"
    assert form.read(from_run="taught").recipe().base == "taught"
    assert form.read(from_run="./foreign").recipe().base == "./foreign"


def test_none_is_a_new_model_also_where_the_recipe_has_a_start(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert DIALOGUE.read(recipe="dailydialog", from_run="none").recipe().from_run is None
    assert DIALOGUE.read(recipe="dailydialog").recipe().from_run == "wikitext"
    said = capsys.readouterr().out
    assert "⚠ dailydialog starts from a run of wikitext, and there is none here: train it first" in said
    assert "choose none, or another start, in *Start from*" in said


def test_a_space_is_an_empty_field():
    assert PRETRAINING.read(epochs=" ", data_dir=" ").overrides == {}


def test_a_tick_stands_for_a_key_of_the_recipe(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    for form, start in ((DIALOGUE, {"from_run": "no/body"}), (FORMS["DPO"], {"base": "no/body"})):
        recipe = form.read(**start, four_bits=True, report_to="tensorboard").recipe()
        assert (recipe.load_in, recipe.base, recipe.report_to) == ("4bit", "no/body", "tensorboard")
        assert form.read(**start).recipe().load_in == "full"


def test_the_system_prompt_is_for_the_chat_alone():
    settings = DIALOGUE.read(system="Answer in one word.")
    assert settings.extra["system"] == "Answer in one word." and settings.overrides == {}


def test_a_field_left_alone_follows_the_device():
    untouched = PRETRAINING.read(batch_size="")
    assert untouched.recipe().batch_size == load_recipe("tinystories", device_kind="cpu").batch_size == 32
    assert PRETRAINING.read(batch_size="128").recipe().batch_size == 128


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


def test_the_command_means_the_same_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("my text").mkdir()
    Path("my text/train.txt").write_text("A text of my own.\n")
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


WRONG = [  # what a hand may type, and what the form's own cell says to it
    ("PRETRAINING", {"size": "huge"}, "*Size of both models* must be one of standard, small, large"),
    ("PRETRAINING", {"epochs": "-1"}, "*Epochs* must be at least"),
    ("PRETRAINING", {"epochs": "many"}, "*Epochs* must be a number, not 'many'"),
    ("PRETRAINING", {"batch_size": "1.5"}, "*Sequences a step* must be a whole number, not '1.5'"),
    ("PRETRAINING", {"recipe": "wikitexd"}, "*Data* must be one of"),
    ("PRETRAINING", {"epoch": 3}, "no field 'epoch'"),
    ("PRETRAINING", {"data_dir": "nowhere"}, "*Your own text*: "),
    ("PRETRAINING", {"data_dir": "."}, "*Your own text*: No data files"),
    ("PRETRAINING", {"gpu": "T5"}, "*Sizes for this GPU* must be one of empty, T4, L4"),
    (
        "PRETRAINING",
        {"save_to_drive": "no"},
        "*Keep a copy on Google Drive while training* must be True or False",
    ),
    ("DIALOGUE", {"from_run": "nobody"}, "*Start from*: there is no run nobody here (none is trained yet)"),
    ("DIALOGUE", {"lora_rank": 8}, "choose a run or a model of the hub in *Start from*"),
    ("DIALOGUE", {"system": 3}, "*System prompt* must be text"),
    ("DIALOGUE", {"four_bits": True}, "*Hold a model of the hub in 4 bits* does nothing where a New-LLM"),
    ("DIALOGUE", {"from_run": "no/body", "num_layers": 2}, "*Layers* does nothing where the model no/body"),
    ("DIALOGUE", {"report_to": "wandb"}, "*Tracker* needs the package wandb: run `%pip install wandb`"),
    ("DIALOGUE", {"report_to": "excel"}, "*Tracker* must be one of none, tensorboard"),
    ("ULTRACHAT", {"from_run": "no/body", "four_bits": True}, "4 bits* needs the package bitsandbytes"),
    ("DPO", {"lora_rank": 0, "four_bits": True}, "type 16 into *Rank of the LoRA adapters*"),
    ("DIALOGUE", {"patience": "long"}, "*Stop after so many evaluations"),
    ("DPO", {"data": "mine.jsonl"}, "*Pairs*: there is no file mine.jsonl"),
    ("DPO", {"base": "nobody"}, "*Start from*: there is no run nobody here"),
    ("DPO", {"beta": "low"}, "*Beta* must be a number"),
    ("PHASE7", {"hours": "three"}, "*Hours that you have* must be a number, not 'three'"),
    ("PHASE7", {"hours": -3}, "*Hours that you have* must be at least"),
    ("PHASE7", {"mix_documents": "all"}, "*Documents in that mix* must be a whole number"),
    ("PHASE7", {"weights": "nope=1"}, "*Data recipe*: Unknown data 'nope'"),
    ("PHASE7", {"weights": True}, "*Data recipe* must be text"),
    ("PHASE7", {"weights": "demo"}, "*Data recipe*: demo: write it as"),
    ("PHASE7", {"max_steps": "0"}, "*Stop after this many steps* must be at least"),
]


@pytest.mark.parametrize("form, values, said", WRONG, ids=[f"{f}-{next(iter(v))}" for f, v, _ in WRONG])
def test_a_bad_value_is_one_line_in_the_forms_words(form, values, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # no package of anybody's choice
    with pytest.raises(UsageError) as error:
        FORMS[form].read(**{"recipe": "phase7_small"} | values if form == "PHASE7" else values)
    assert said in str(error.value) and "\n" not in str(error.value) and "--" not in str(error.value)


def test_what_is_not_on_the_hub_is_said_by_the_forms_cell(monkeypatch):
    from huggingface_hub.errors import RepositoryNotFoundError

    def unknown(self, name, timeout):
        raise RepositoryNotFoundError("none", response=types.SimpleNamespace(headers={}, request=None))

    monkeypatch.setattr(form_checks, "hub_answers", lambda: True)
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", unknown)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", unknown)
    with pytest.raises(UsageError, match=r"\*Pairs\*: the Hugging Face hub has no data set no/body"):
        FORMS["DPO"].read(data="no/body")
    with pytest.raises(UsageError, match=r"\*Start from\*: the Hugging Face hub has no model no/body"):
        FORMS["DPO"].read(base="no/body")


def test_without_a_network_the_form_names_what_needs_none(capsys):
    PRETRAINING.read(recipe="demo")
    assert "does not answer" not in capsys.readouterr().out
    PRETRAINING.read()
    assert "without a network choose demo in *Data*" in capsys.readouterr().out
    FORMS["DPO"].read(data="hh_rlhf")
    assert "choose preferences_ja in *Pairs*" in capsys.readouterr().out
    FORMS["PHASE7"].read(recipe="phase7_1.5b")
    assert "write demo=1 into *Data recipe*" in capsys.readouterr().out
    FORMS["DIALOGUE"].read()
    assert "read a folder of your own" in capsys.readouterr().out


def test_advice_and_errors_speak_of_fields():
    PRETRAINING.read(recipe="demo")
    text = "Train longer (--epochs 12), on more (--max_samples 5000), or --dropout 0.3."
    assert forms_module.in_form_words(text) == (
        "Train longer (*Epochs* 12), on more (*Use only this many documents* 5000), or `dropout=0.3`. In the "
        "training cell: train(settings, dropout=…)."
    )
    assert forms_module.in_form_words("a -- b, --unknown 3, x--y") == "a -- b, --unknown 3, x--y"
    command = "Then: newllm train hh_rlhf --epochs 3 --seed 4"  # to be copied into a terminal
    assert forms_module.in_form_words(command) == command
    assert forms_module.in_form_words(f"{command}\n--epochs 3 more") != f"{command}\n--epochs 3 more"


def test_an_unknown_key_in_the_overrides_names_the_nearest(monkeypatch):
    monkeypatch.setenv(OVERRIDES_VARIABLE, '{"max_step": 5}')
    with pytest.raises(UsageError, match="max_steps"):
        PRETRAINING.read()


def test_parameters_follow_the_types():
    text = '{type:"string", placeholder:"as the recipe says"}'  # so that it can be empty
    for name in ("seed", "epochs", "carry_state", "max_samples", "data_dir", "micro_batch_size"):
        assert Field(name, "x", "あ").parameter() == text
    for default, kind in ((3.0, "number"), (3, "integer"), (True, "boolean"), ("", "string")):
        assert Field("hours", "x", "あ", default).parameter() == f'{{type:"{kind}"}}'
    assert Field("schedule", "x", "あ").parameter() == '["cosine", "linear", "wsd", "constant"]'


def test_labels_name_recipe_keys():
    assert set(LABELS) <= set(Recipe.__dataclass_fields__)


def test_a_form_of_another_notebook_renders_alone(capsys):
    form = Form("OTHER", "demo", (Field("learning_rate", "Peak learning rate", "学習率"),))
    assert assigned(form.render()) == {"learning_rate": ""}
