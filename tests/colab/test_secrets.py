"""The hub's token: from the environment or Colab's secrets, handed to the hub, shown to nobody."""

from __future__ import annotations

import os
import sys
import types
from pathlib import Path

import pytest

from newllm_lib.colab import background, results, secrets
from newllm_lib.errors import UsageError
from newllm_lib.export import folder, gguf
from newllm_lib.recipe import Recipe
from newllm_lib.runs import Run

TOKEN = "hf_averysecrettokenthatmustnotbeseen"


class NotebookAccessError(Exception):
    """As Colab's own."""


class SecretNotFoundError(Exception):
    """As Colab's own."""


@pytest.fixture
def userdata(colab, monkeypatch):
    """Colab's secrets: `.answer` is the value, or the error."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    found = types.SimpleNamespace(answer=TOKEN)

    def get(name):
        assert name == "HF_TOKEN"
        if isinstance(found.answer, Exception):
            raise found.answer
        return found.answer

    sys.modules["google.colab"].userdata = types.SimpleNamespace(get=get)
    return found


def test_the_environment_comes_first(userdata, monkeypatch):
    assert secrets.hub_token() == TOKEN
    monkeypatch.setenv("HF_TOKEN", "another")
    assert secrets.hub_token() == "another"


def test_no_secret_is_no_token_and_one_that_is_locked_says_how_to_open_it(userdata):
    userdata.answer = SecretNotFoundError("HF_TOKEN")
    assert secrets.hub_token() is None
    userdata.answer = NotebookAccessError(f"no access to {TOKEN}")
    with pytest.raises(UsageError, match="under the key icon") as error:
        secrets.hub_token()
    assert TOKEN not in str(error.value) and error.value.__suppress_context__


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """What was exported, written as GGUF and sent: (what, words …)."""
    done = []
    monkeypatch.setattr(folder, "export", lambda run: done.append(("export", run.name)) or tmp_path)
    monkeypatch.setattr(folder, "push", lambda *a, **b: done.append(("push", *a, b)) or "https://hub/me/mine")
    monkeypatch.setattr(gguf, "write_gguf", lambda *a: done.append(("gguf", *a)))
    return done


RUN = Run(Path("checkpoints/mine"))


def test_nothing_is_given_away_before_it_has_a_name(userdata, hub, capsys):
    results.give_away(RUN)
    assert hub == [] and 'to="your-name/your-model"' in capsys.readouterr().out


def test_giving_away_hands_the_token_to_the_hub_and_prints_it_nowhere(userdata, hub, capsys, tmp_path):
    results.give_away(RUN, "me/mine")
    assert hub == [("export", "mine"), ("push", tmp_path, "me/mine", TOKEN, {"private": True})]
    results.give_away(RUN, "me/mine", public=True, gguf=True)
    assert hub[3:] == [("gguf", tmp_path, "mine"), ("push", tmp_path, "me/mine", TOKEN, {"private": False})]
    shown = "".join(capsys.readouterr())
    assert TOKEN not in shown and "Given away: https://hub/me/mine" in shown
    results.give_away(RUN, gguf=True)  # a file alone needs no token
    assert hub[-1][0] == "gguf"


@pytest.mark.parametrize("name, said", [("mine", "give it as OWNER/NAME"), ("me/m ne", "to=me/m ne: ")])
def test_a_name_that_is_none_is_said_before_anything_is_written(userdata, hub, name, said):
    with pytest.raises(UsageError, match=said) as error:
        results.give_away(RUN, name)
    assert hub == [] and "\n" not in str(error.value)


def test_without_a_token_the_cell_says_which_secret_it_needs(userdata, hub, monkeypatch):
    userdata.answer = SecretNotFoundError("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(UsageError, match="set HF_TOKEN .in Colab: as a secret"):
        results.give_away(RUN, "me/mine")
    assert hub == []


def test_training_gets_the_token_only_where_the_hub_may_ask_for_it(userdata, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.delenv("HF_TOKEN")
    for recipe in (Recipe(), Recipe(mirror_dir="/content/drive"), Recipe(from_run=str(tmp_path))):
        background._let_the_hub_know_us(recipe)
        assert "HF_TOKEN" not in os.environ
    hub = Recipe(task="sft"), Recipe(mirror_dir="hf://me/runs"), Recipe(from_run="me/mine")
    for recipe in hub:
        background._let_the_hub_know_us(recipe)
        assert os.environ.pop("HF_TOKEN") == TOKEN
