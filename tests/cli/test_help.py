"""`--help` and `--help-all` of what trains: which flags, with which values, how wide, how soon?"""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields

import pytest

from newllm_lib import device
from newllm_lib.cli import main
from newllm_lib.recipe import Recipe, load_recipe, shipped_recipes

KEYS = {f.metadata["flag"] or f.name: f for f in fields(Recipe) if f.name != "recipe"}


@pytest.fixture
def shown(capsys, monkeypatch, tmp_path):
    """The page that a command shows on a CPU in a terminal of 80 columns."""
    monkeypatch.setenv("NEWLLM_DEVICE", "cpu")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)

    def show(command: str) -> str:
        assert main(command.split()) == 0
        captured = capsys.readouterr()
        assert not captured.err and max(map(len, captured.out.splitlines())) <= 80
        return captured.out

    return show


def flags(page: str) -> dict[str, str]:
    """The recipe's flags of a page with the value that stands beside each."""
    lines = re.findall(r"^  --(\w+) (\S+)", page, re.MULTILINE)
    return {name: value for name, value in lines if name in KEYS}


@pytest.mark.parametrize("name", shipped_recipes())
def test_a_recipes_help_shows_at_most_twenty_flags_with_its_values_here(shown, name):
    recipe = load_recipe(name, device_kind="cpu", resolve_start=False)
    found = flags(shown(f"train {name} --help"))
    assert 12 <= len(found) <= 20
    for flag, value in found.items():
        wanted = getattr(recipe, KEYS[flag].name)
        assert (None if value == "none" else type(wanted)(value)) == wanted, flag
        assert recipe.depends_on(KEYS[flag].name), flag


def test_each_of_the_flags_people_use_is_one_line(shown):
    page = shown("train demo --help")
    assert "--batch_size 32" in page and "--epochs 0.8" in page and "`newllm train demo --help-all`" in page
    sections = page.split("\n\n")[2:-1]
    assert [part.splitlines()[0] for part in sections] == [
        "Model",
        "Data",
        "Training",
        "Where it goes",
        "Machine",
        "This command",
    ]
    assert all(line.startswith("  -") for part in sections for line in part.splitlines()[1:])


def test_help_all_shows_what_does_something_and_without_a_recipe_every_key(shown):
    assert flags(shown("train --help-all")).keys() == KEYS.keys()
    recipe = load_recipe("demo", device_kind="cpu")
    meant = {flag for flag, f in KEYS.items() if recipe.depends_on(f.name)}
    assert flags(shown("train demo --help-all")).keys() == meant
    assert {"num_heads", "attention", "beta"}.isdisjoint(meant)


def test_help_takes_the_flags_before_it_and_the_recipe_on_either_side(shown):
    assert shown("train --help demo") == shown("train demo -h") == shown("train demo --help")
    page = shown("train demo --model tiny_gpt2 --num-layers 3 --help-all")
    assert flags(page)["num_layers"] == "3" and "num_heads" in flags(page)
    assert flags(shown("train demo --sized_for h100 --help"))["batch_size"] == "128"


def test_the_demos_help_is_of_both_its_models(shown):
    page = shown("demo --help")
    assert "--learning_rate 0.006 (tiny_gpt2: 0.003)" in page
    assert {"model", "run_name", "from"}.isdisjoint(flags(shown("demo --help-all")))
    assert {"num_heads", "carry_state"} <= flags(shown("demo --help-all")).keys()


def test_doctors_help_is_about_itself(shown):
    page = shown("doctor --help")
    assert "--recipe" in page and "--num_layers" not in page and "`newllm train --help-all`" in page


def test_a_recipe_that_is_not_there_is_named_in_one_line(capsys):
    assert main(["train", "wikitxt", "--help"]) == 2
    assert "did you mean wikitext?" in capsys.readouterr().err
    assert main(["train"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and all(name in error for name in shipped_recipes())


@pytest.mark.parametrize("words", [["train", "demo", "--help"], ["demo", "--help-all"]], ids=" ".join)
def test_it_takes_less_than_a_second_and_loads_no_torch(words):
    code = (
        "import time; start = time.monotonic()\n"
        "from newllm_lib.cli import main; import sys\n"
        f"assert main({words}) == 0\n"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)\n"
        "assert time.monotonic() - start < 1, time.monotonic() - start"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize(
    ("gpus", "says", "environment", "expected"),
    [
        ([], None, {}, "cpu"),
        (["nvidia0"], "Model: \t\t NVIDIA H200\nIRQ:   \t\t 4", {}, "h100"),
        (["nvidia0"], "Model: \t\t Tesla T4", {}, "t4"),
        (["nvidia0"], "Model: \t\t NVIDIA GeForce RTX 4090", {}, "other"),
        (["nvidia0"], None, {}, "other"),
        (["nvidia0"], "Model: \t\t Tesla T4", {"CUDA_VISIBLE_DEVICES": ""}, "cpu"),
        (["nvidia0"], "Model: \t\t Tesla T4", {"NEWLLM_DEVICE": "a100"}, "a100"),
        (["nvidiactl"], None, {}, "cpu"),
    ],
)
def test_the_kind_of_a_machine_is_known_without_torch(
    tmp_path, monkeypatch, gpus, says, environment, expected
):
    for name in ("NEWLLM_DEVICE", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for name in gpus:
        (tmp_path / name).touch()
    if says:
        about = tmp_path / "driver" / "gpus" / "0000:01:00.0" / "information"
        about.parent.mkdir(parents=True)
        about.write_text(says)
    monkeypatch.setattr(device, "_DEVICES", tmp_path)
    monkeypatch.setattr(device, "_DRIVER", tmp_path / "driver")
    monkeypatch.setattr(device, "_torch_build", lambda: "cu128")
    assert device.guess_kind() == expected


def test_it_is_the_kind_that_the_probe_finds(monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.delenv("NEWLLM_DEVICE", raising=False)
    assert device.guess_kind() in (device.probe().kind, "other")
