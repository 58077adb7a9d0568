"""The data recipe of notebook 5: sliders and text say the same, and what they say is the folder that training
reads.
"""

from __future__ import annotations

import json

import pytest

from newllm_lib.cli import main
from newllm_lib.colab import mixture as module
from newllm_lib.colab.forms import OVERRIDES_VARIABLE
from newllm_lib.colab.mixture import Mixture, MixtureWindow, mix
from newllm_lib.colab.settings import PHASE7
from newllm_lib.errors import UsageError


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A working folder with two sources, `one` and `other`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(OVERRIDES_VARIABLE, raising=False)
    monkeypatch.setenv("NEWLLM_DEVICE", "cpu")
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.txt").write_text("".join(f"Sentence {i} of {name}.\n\n" for i in range(90)))
    return tmp_path


def of(weights: str = "", documents: int = 40, **more) -> Mixture:
    return Mixture(PHASE7.read(weights=weights, mix_documents=documents, **more))


def test_its_answer_is_what_training_reads(folder):
    chosen = of("one=1,other=3")
    recipe = chosen.settings().recipe()
    assert recipe.data_dir == str(folder / "data" / "mix") and recipe.run_name.endswith("_mix")
    rows = [
        json.loads(line)["text"]
        for line in (folder / "data" / "mix" / "train.jsonl").read_text().splitlines()
    ]
    assert len(rows) == 40 and sum("of other" in row for row in rows) == 30


def test_the_same_as_the_command(folder, capsys):
    of("one=2,other=2").settings()
    by_widget = {p.name: p.read_bytes() for p in (folder / "data" / "mix").glob("*.jsonl")}
    assert (
        main(["data", "mix", "--weights", "one=1,other=1", "--documents", "40", "--output", "elsewhere"]) == 0
    )
    assert by_widget == {p.name: p.read_bytes() for p in (folder / "elsewhere").glob("*.jsonl")} != {}


def test_what_is_mixed_already_is_not_mixed_again_and_what_changed_is(folder, capsys):
    of("one=1").settings()
    file = folder / "data" / "mix" / "train.jsonl"
    before = file.stat().st_mtime_ns
    of("one=5").settings()  # the same share
    assert file.stat().st_mtime_ns == before
    of("one=1", documents=50).settings()
    assert len(file.read_text().splitlines()) == 50
    of("other=1", documents=50).settings()
    assert "of other" in file.read_text() and "of one" not in file.read_text()
    assert 'weights = "other=1"' in capsys.readouterr().out


def test_without_shares_the_preset_reads_its_own_data(capsys):
    chosen = of()
    assert chosen.settings() is chosen.chosen and chosen.settings().recipe().data_dir is None
    assert "(demo)" in capsys.readouterr().out


def test_two_answers_to_one_question_are_refused():
    with pytest.raises(UsageError, match="clear one"):
        of("one=1", data_dir="other").settings()


@pytest.mark.parametrize("weights", ["one", "one=x", "one=0", "one=1,one=2"])
def test_weights_that_are_none_are_one_line(weights):
    with pytest.raises(UsageError, match=r"\*Data recipe\*"):
        of(weights)


def test_in_text_it_says_how_to_choose(capsys):
    chosen = mix(PHASE7.read(weights="one=1", mix_documents=40))
    assert "one 100 % of 40 documents" in capsys.readouterr().out and chosen.window is None
    chosen.choose("other=1")
    assert chosen.text() == "other=1"


@pytest.fixture
def window(monkeypatch):
    pytest.importorskip("ipywidgets")
    monkeypatch.setattr("IPython.display.display", lambda *_: None)
    return MixtureWindow(of("one=1"))


def test_moved_sliders_are_the_answer_with_or_without_the_button(window, folder):
    assert set(window.sliders) >= {"demo", "ultrachat_200k", "one"} and window.sliders["one"].value == 1
    window.sliders["one"].value = 0
    window.another.value = "other"
    assert window.another.value == "" and window.mixture.weights == {"other": 1.0}
    window.documents.value = 30
    assert window.state.value == "other 100 % of 30 documents"
    window.button.click()
    assert (
        len((folder / "data" / "mix" / "train.jsonl").read_text().splitlines()) == 30
        and "✓" in window.state.value
    )
    assert window.mixture.settings().recipe().data_dir == str(folder / "data" / "mix")


def test_sliders_moved_after_run_all_had_passed_say_that_they_are_not_used_yet(window, folder):
    assert "Not used yet" not in window.state.value
    window.mixture.settings()  # the cell below, before a hand could move anything
    window.another.value = "other"
    assert "Not used yet: run the cells below again" in window.state.value
    window.mixture.settings()
    window._changed()
    assert "Not used yet" not in window.state.value


def test_a_source_that_is_not_there_is_a_line_in_the_window(window):
    window.another.value = "no_such_<source>"
    window.sliders["one"].value = 0
    window.button.click()
    assert "✗" in window.state.value and "no_such_&lt;source&gt;" in window.state.value
    assert not module.FOLDER.exists()
