"""Each notebook from *Run all* to the end with its form left alone, on records of each set's form from a
local hub; only the steps are capped. On a machine with a GPU these are the sizes of that GPU."""

from __future__ import annotations

import json

import pytest

from newllm_lib.data.datasets import REGISTRY
from tests.helpers.chat_bases import chat_base, dialogpt
from tests.helpers.dialogue_sets import dialogue_hub, write_parquet
from tests.helpers.notebooks import NOTEBOOKS
from tests.helpers.texts import paragraphs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
nbformat = pytest.importorskip("nbformat")
SLOWEST_CELL = 900  # seconds


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A hub with the dialogue sets, TinyStories, and DialoGPT in a toy's size."""
    root = tmp_path_factory.mktemp("hub")
    with dialogue_hub(root) as server:
        stories = root / "datasets" / REGISTRY["tinystories"].home / "data"
        for split, seed in (("train", 1), ("validation", 2)):
            rows = [{"text": text} for text in paragraphs(3000 if split == "train" else 300, seed)]
            write_parquet(stories / f"{split}-00000-of-00001.parquet", rows)
        dialogpt(root / "models" / "microsoft" / "DialoGPT-small")
        chat_base(root / "models" / "Qwen" / "Qwen2.5-0.5B-Instruct", "qwen2")
        yield server


def run_all(name, hub, tmp_path, monkeypatch, overrides: dict):
    """The notebook after *Run all* in `tmp_path`, with these overrides of its form."""
    nbclient = pytest.importorskip("nbclient")
    (tmp_path / "tmp").mkdir()  # the lock on a GPU is a file there: these may share one
    for key, value in {
        "TMPDIR": str(tmp_path / "tmp"),
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "hf"),
        "NEWLLM_CACHE": str(tmp_path / "cache"),
        "NEWLLM_NOTEBOOK_OVERRIDES": json.dumps({"max_steps": 8, **overrides}),
    }.items():
        monkeypatch.setenv(key, value)
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    place = {"metadata": {"path": str(tmp_path)}}
    client = nbclient.NotebookClient(notebook, timeout=SLOWEST_CELL, kernel_name="python3", resources=place)
    client.execute()
    return notebook


@pytest.mark.parametrize("name", sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb")))
def test_run_all_comes_to_its_end_with_the_form_left_alone(name, hub, tmp_path, monkeypatch):
    run_all(name, hub, tmp_path, monkeypatch, {})
    assert list((tmp_path / "checkpoints").glob("*/best/*.safetensors")), "nothing was trained"
    runs = [path.name for path in (tmp_path / "checkpoints").iterdir()]
    assert list((tmp_path / "checkpoints").glob("*.zip")), runs


@pytest.mark.parametrize("name", ["02_dolly", "03_ultrachat", "04_dpo_lora"])
def test_a_model_of_the_hub_is_taught_told_how_to_answer_and_talked_with(name, hub, tmp_path, monkeypatch):
    """*Start from* with one of the proposals, and a system prompt."""
    start = "base" if name == "04_dpo_lora" else "from_run"
    chosen = {start: "Qwen/Qwen2.5-0.5B-Instruct", "system": "Answer in a word.", "max_seq_length": 128}
    notebook = run_all(name, hub, tmp_path, monkeypatch, chosen)
    said = "".join(o.get("text", "") for cell in notebook.cells for o in cell.get("outputs", []))
    assert "on Qwen/Qwen2.5-0.5B-Instruct with" in said and "adapters of rank 16" in said
    assert "Nothing is given away yet" in said and "Go on: " in said
    run = next((tmp_path / "checkpoints").glob("*/best")).parent
    assert "Qwen" in (run / "card.md").read_text(encoding="utf-8")
