"""Every notebook, run from the top in a fresh kernel on the demo data with a tiny model, as a user would run
it.
"""

from __future__ import annotations

import json
from importlib.metadata import version

import pytest

from tests.helpers.notebooks import NOTEBOOKS, TINY, write_data

nbformat = pytest.importorskip("nbformat")


SLOWEST_CELL = 400  # seconds


@pytest.fixture(params=sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb")), scope="module")
def executed(request, tmp_path_factory):
    """A notebook after Run all, and the folder it ran in."""
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("chitchat_dataset", reason="needs the demo data: pip install chitchat-dataset")
    path, folder = NOTEBOOKS / f"{request.param}.ipynb", tmp_path_factory.mktemp(request.param)
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:  # *Run all* passes over these; here they are run
        cell.source = cell.source.replace("experiments = False", "experiments = True")
    with pytest.MonkeyPatch.context() as patch:
        small = {**TINY[path.stem], **write_data(path.stem, folder / "data")}
        patch.setenv("NEWLLM_NOTEBOOK_OVERRIDES", json.dumps(small))
        client = nbclient.NotebookClient(
            notebook,
            timeout=SLOWEST_CELL,
            kernel_name="python3",
            resources={"metadata": {"path": str(folder)}},
        )
        client.execute()
    return notebook, folder


def outputs(notebook, kind: str) -> list:
    """All outputs of a MIME type."""
    return [
        output["data"][kind]
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if kind in output.get("data", {})
    ]


def widget_values(notebook) -> str:
    """What all widgets show at the end."""
    states = notebook.metadata["widgets"]["application/vnd.jupyter.widget-state+json"]["state"].values()
    return "\n".join(str(state["state"].get("value", "")) for state in states)


def printed(notebook) -> str:
    return "".join(
        output.get("text", "")
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
    )


def test_a_notebook_runs_from_the_top(executed):
    """Run all ends without an error, pictures are shown, and the run folders hold what their texts
    promise.
    """
    notebook, folder = executed
    assert any("<svg" in page for page in outputs(notebook, "text/html"))
    ended = list((folder / "checkpoints").glob("*/best/*.safetensors"))
    assert ended, f"no run with a best model in {folder}"
    assert "Traceback" not in printed(notebook)


@pytest.mark.parametrize("executed", ["01_wikitext_pretraining"], indirect=True)
def test_pretraining_trains_compares_chats_and_packs(executed):
    notebook, folder = executed
    assert len(list((folder / "checkpoints").glob("tinygpt2_demo*/best"))) == 1
    ours = next((folder / "checkpoints").glob("new_llm_demo*/best")).parent
    shown = printed(notebook)
    assert "bits per byte" in shown and "bigram" in shown and "New-LLM" in shown
    assert "Hello! How are you today?" in widget_values(notebook)  # the chat's window
    assert len(outputs(notebook, "image/png")) == 1  # the comparison; all else is drawn for the page's theme
    drawn = "".join(outputs(notebook, "text/html"))
    assert widget_values(notebook).count("<svg") >= 2  # two trainings, in views that lived on
    assert drawn.count("<svg") >= 3 and "bits a token" in drawn  # both together, gates, what is remembered
    assert "Waiting for" in shown
    assert (ours / "comparison.md").is_file() and (ours / "comparison.png").is_file()
    assert (ours.parent / f"{ours.name}.zip").is_file()


@pytest.mark.parametrize("executed", ["02_dolly", "03_ultrachat"], indirect=True)
def test_dialogue_trains_in_the_background_reads_its_result_chats_and_packs(executed):
    notebook, folder = executed
    trained = [
        p.parent
        for name in ("dolly", "ultrachat")
        for p in (folder / "checkpoints").glob(f"new_llm_{name}*/best")
    ]
    assert trained
    run, shown = trained[0], printed(notebook)
    assert "training in the background (pid" in shown and "Waiting for" in shown
    assert "● done" in widget_values(notebook).replace("</span>", "")  # the view, after its cell had ended
    assert (
        "What it means:" in shown
        and "bits per byte of held-out answers" in shown
        and "the bigram table" in shown
    )
    assert any(
        "evaluation after evaluation" in page and "Hello! How are you today?" in page
        for page in outputs(notebook, "text/html")
    )
    assert not any(
        line.startswith("#") for page in outputs(notebook, "text/markdown") for line in page.split("\n")
    )
    assert "Hello! How are you today?" in widget_values(notebook)
    assert (run.parent / f"{run.name}.zip").is_file() and (run / "samples.jsonl").is_file()


@pytest.mark.parametrize("executed", ["04_dpo_lora"], indirect=True)
def test_preferences_are_trained_shown_used_and_swept(executed):
    notebook, folder = executed
    shown, cards = printed(notebook), "".join(outputs(notebook, "text/markdown"))
    assert "a classifier that sees only the length" in shown and f"trl {version('trl')}" in shown
    assert "held-out pairs" in cards and "| accuracy |" in cards and "| beta | learning rate |" in cards
    assert "2 left out" in "".join(
        p.read_text(encoding="utf-8") for p in (folder / "checkpoints").glob("*my_pairs*/train.log")
    )
    run = next((folder / "checkpoints").glob("*/export/model.safetensors")).parents[1]
    assert (run / "best" / "adapter_model.safetensors").is_file() and run.name.startswith("dpo_base")
    assert (run.parent / f"{run.name}.zip").is_file() and "".join(outputs(notebook, "text/html")).count(
        "<svg"
    ) >= 3
    assert len(list((folder / "checkpoints").glob("dpo_base*/preferences.json"))) == 5


@pytest.mark.parametrize("executed", ["05_phase7_1p5b"], indirect=True)
def test_phase7_is_planned_mixed_tried_trained_and_resumed(executed):
    notebook, folder = executed
    shown, tables = printed(notebook), "".join(outputs(notebook, "text/markdown"))
    assert "computed" in tables and "phase7_1.5b" in tables and "H100" in tables and "tokens, " in shown
    mixed = json.loads((folder / "data" / "mix" / "mix.json").read_text())
    assert sorted(counts["train"] for counts in mixed["sources"].values()) == [30, 90]
    assert "Data recipe" in widget_values(notebook) and "demo 75 %" in widget_values(notebook)
    run = next((folder / "checkpoints").glob("phase7_small*/best")).parent
    assert "_mix_" in run.name and f"data_dir: {folder / 'data' / 'mix'}" in (run / "recipe.yaml").read_text()
    assert "Step     10 | Loss:" in shown  # the test run's log
    assert f"{run.name} is finished already" in shown and (run.parent / f"{run.name}.zip").is_file()
    assert "Hello! How are you today?" in widget_values(notebook)
