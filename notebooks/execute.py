"""Execute the notebooks for what a visitor sees: pictures, tables, answers, and on which machine they were
made.

    .venv/bin/python notebooks/execute.py            all five, on this machine's GPU
    .venv/bin/python notebooks/execute.py 01 04      some of them

Only `demo` and the generated pairs are trained on, with the form set so: nothing stands under another set's
name, and no text of a set that may not be passed on is stored. Notebook 5 is a short run, and its head says
so. Pictures are PNG (GitHub shows no HTML of ours), there is no widget state, and a notebook of more than 2
MB is refused. What NEWLLM_NOTEBOOK_OVERRIDES says comes on top of that, and into the head (a short try).
`notebooks/build.py --check-outputs` says when the sources are newer than the outputs."""

from __future__ import annotations

import datetime
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from build import HEAD, HERE, SOURCES, build, built_path, digest

BASE_STEPS = 1200  # of notebook 4's base
LARGEST = 2_000_000  # bytes of a notebook
CELL_SECONDS = 3600
# What the form is told: data that may be passed on; what is left alone is the recipe's own.
SMALL_SET = {"batch_size": 256, "learning_rate": 0.003}  # seven thousand conversations, not a million
FORMS: dict[str, tuple[dict, str]] = {
    "01": ({"recipe": "demo"}, "*Data* `demo`"),
    "02": (
        {"data": "demo", "loss_on": "answers", "epochs": 8, **SMALL_SET},
        "the demo's conversations in place of Dolly's, 8 epochs, 256 sequences a step at a rate of 3e-3",
    ),
    "03": (
        {"data": "demo", "size": "10k", "max_samples": None, "epochs": 8, "evals_per_epoch": 1, **SMALL_SET},
        "the demo's conversations in place of UltraChat's, 8 epochs, 256 sequences a step at a rate of 3e-3",
    ),
    "04": (
        {
            "base": "base_new_llm",
            "data": "preferences_ja",
            "max_seq_length": 256,
            "batch_size": 16,
            "epochs": 2,
            "evals_per_epoch": 2,
            "learning_rate": 2e-3,
            "beta": 0.02,
        },
        "the generated Japanese pairs and a small New-LLM that has read the demo and such answers, at a "
        "learning rate that this base needs",
    ),
    "05": (
        {"recipe": "phase7_small", "max_steps": 200},
        "`phase7_small` on `demo`, **a short run** of 200 steps",
    ),
}


def make_base(folder: Path, steps: int) -> None:
    """The base of notebook 4 where no hub is: `benchmarks/dpo.py` trains it on the demo and on the answers of
    other generated pairs, as `checkpoints/base_new_llm`."""
    from benchmarks import dpo

    runs = folder / "checkpoints"
    runs.mkdir()
    dpo.write_texts(runs / "texts", None)
    dpo.train_base("new_llm", runs, steps, dpo.SIZES)


def _without_folder(output: dict, folder: Path) -> dict:
    """An output whose texts name files as seen from the folder in which the notebook ran."""
    text = json.dumps(output, ensure_ascii=False)
    for place in dict.fromkeys((str(folder.resolve()), str(folder))):
        text = text.replace(f"{place}/", "").replace(place, ".")
    return json.loads(text)


def execute(source: Path, folder: Path, seconds: int = CELL_SECONDS) -> nbformat.NotebookNode:
    """The notebook after *Run all* in `folder`, without widgets; its head says data, machine and date.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
        SystemExit: it became larger than `LARGEST`.
    """
    import nbclient

    from newllm_lib.console import duration
    from newllm_lib.device import probe

    text = build(source)
    notebook = nbformat.reads(text, as_version=4)
    overrides, data = FORMS[source.stem[:2]]
    more = json.loads(os.environ.get("NEWLLM_NOTEBOOK_OVERRIDES", "{}"))
    if "base" in overrides:
        make_base(folder, more.get("max_steps", BASE_STEPS))
    if more:
        data = f"{data}, with {', '.join(f'{key} {value}' for key, value in more.items())}"
    told = {
        "NEWLLM_NOTEBOOK_OVERRIDES": json.dumps(overrides | more),
        "NEWLLM_WIDGETS": "0",
        "NEWLLM_PICTURES": "png",
    }
    client = nbclient.NotebookClient(
        notebook, timeout=seconds, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    began = time.monotonic()
    client.execute(env={**os.environ, **told})
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", []):
            output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
        if cell.cell_type == "code":
            cell.outputs = [nbformat.from_dict(_without_folder(output, folder)) for output in cell.outputs]
    took, today = duration(time.monotonic() - began), datetime.date.today().isoformat()
    machine = f"{probe().name}, {today}"
    note = f"> The outputs below are of {data}, on {machine}: *Run all* took {took}. Yours replace them."
    notebook.cells.insert(1, nbformat.v4.new_markdown_cell(note, id=HEAD))
    notebook.metadata["executed"] = {"source": digest(text), "machine": probe().name, "date": today}
    size = len(nbformat.writes(notebook).encode())
    if size > LARGEST:
        raise SystemExit(
            f"{source.stem} would be {size / 1e6:.1f} MB with its outputs: at most {LARGEST / 1e6:g}."
        )
    return notebook


def main(numbers: list[str]) -> int:
    for source in sorted(SOURCES.glob("*.py")):
        if numbers and source.stem[:2] not in numbers:
            continue
        with tempfile.TemporaryDirectory() as folder:
            notebook = execute(source, Path(folder))
        built_path(source).write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")
        print(f"executed {built_path(source).relative_to(HERE.parent)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
