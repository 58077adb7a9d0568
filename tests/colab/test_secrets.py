"""The hub's token: from the environment or Colab's secrets, handed to the hub, shown to nobody."""

from __future__ import annotations

import sys
import types

import pytest

from newllm_lib.colab import secrets
from newllm_lib.errors import UsageError
from newllm_lib.export import folder

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


def test_push_hands_it_to_the_hub_and_prints_it_nowhere(userdata, monkeypatch, capsys, tmp_path):
    sent = []
    monkeypatch.setattr(folder, "export", lambda run: tmp_path)
    monkeypatch.setattr(folder, "push", lambda *words: sent.append(words) or "https://hub.example/me/mine")
    assert secrets.push(None, "me/mine") == "https://hub.example/me/mine"
    assert sent == [(tmp_path, "me/mine", TOKEN, True)]
    assert TOKEN not in "".join(capsys.readouterr())
