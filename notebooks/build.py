"""Build notebooks/*.ipynb from notebooks/src/*.py (jupytext percent); `--check` only compares.

A code cell that holds a single line `#@build …` is filled in here, so that what all notebooks share is
written once:

    #@build install        the cell in src/cells/install.py, folded
    #@build cell NAME      the cell in src/cells/NAME.py
    #@build form NAME      the settings cell of the form NAME in newllm_lib/colab/settings.py, from its recipe

The same source gives the same bytes: cell ids come from the cells' content. Outputs, which `execute.py`
makes, stay with the cells that did not change; `--check-outputs` says where a cell's code is newer than
they are."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import jupytext
import nbformat

HEAD = "made-by-execute"  # the cell that says of what the outputs are
CHANGED = " A cell without outputs has changed since."
HERE = Path(__file__).resolve().parent
SOURCES = HERE / "src"
sys.path.insert(0, str(HERE.parent))  # the clone's package, installed or not


def build(source: Path) -> str:
    """The text of the notebook that `source` describes."""
    cells, ids = [], set()
    for cell in jupytext.reads(source.read_text(encoding="utf-8"), fmt="py:percent").cells:
        text, is_form = _filled(cell.source)
        new = nbformat.v4.new_markdown_cell if cell.cell_type == "markdown" else nbformat.v4.new_code_cell
        made = new(text, id=_identity(text, ids))
        if is_form:
            made.metadata["cellView"] = "form"  # Colab hides the code
        cells.append(made)
    notebook = nbformat.v4.new_notebook(cells=cells, metadata=_metadata(source))
    nbformat.validate(notebook)
    return nbformat.writes(notebook) + "\n"


def built_path(source: Path) -> Path:
    return HERE / f"{source.stem}.ipynb"


def _filled(text: str) -> tuple[str, bool]:
    """A cell's text with its `#@build` line carried out, and whether it is a form."""
    if not text.startswith("#@build "):
        return text, False
    _, what, *name = text.split()
    if what == "install":
        return (SOURCES / "cells" / "install.py").read_text(encoding="utf-8").rstrip(), True
    if what == "cell" and len(name) == 1:
        return (SOURCES / "cells" / f"{name[0]}.py").read_text(encoding="utf-8").rstrip(), False
    if what == "form" and len(name) == 1:
        from newllm_lib.colab.settings import FORMS

        return FORMS[name[0]].render(), True
    raise SystemExit(
        f"unknown line {text!r}: use `#@build install`, `#@build cell NAME` or `#@build form NAME`"
    )


def _identity(text: str, taken: set[str]) -> str:
    digest = hashlib.sha256(text.encode()).hexdigest()
    identity = next(digest[:n] for n in range(8, 64) if digest[:n] not in taken)
    taken.add(identity)
    return identity


def _metadata(source: Path) -> dict:
    return {
        "accelerator": "GPU",
        "colab": {"name": f"{source.stem}.ipynb", "gpuType": "T4", "provenance": [], "toc_visible": True},
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }


def digest(text: str) -> str:
    """Of a notebook's code cells: what its outputs were made from."""
    code = [cell.source for cell in nbformat.reads(text, as_version=4).cells if cell.cell_type == "code"]
    return hashlib.sha256("\n\n".join(code).encode()).hexdigest()[:16]


def without_outputs(text: str) -> str:
    """A built notebook's text as it was before `execute.py`."""
    notebook = nbformat.reads(text, as_version=4)
    notebook.metadata.pop("executed", None)
    notebook.cells = [cell for cell in notebook.cells if cell.id != HEAD]
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return nbformat.writes(notebook) + "\n"


def with_outputs_of(text: str, before: str) -> str:
    """`text` with the outputs that `before` has for the cells of the same id, and its note on them."""
    old, new = (nbformat.reads(t, as_version=4) for t in (before, text))
    if "executed" not in old.metadata:
        return text
    known = {cell.id: cell for cell in old.cells}
    for cell in new.cells:
        if cell.cell_type == "code" and cell.id in known:
            cell.outputs, cell.execution_count = known[cell.id].outputs, known[cell.id].execution_count
    new.metadata["executed"] = old.metadata["executed"]
    head = known[HEAD]
    head.source = head.source.removesuffix(CHANGED)
    if old.metadata["executed"]["source"] != digest(text):
        head.source += CHANGED
    new.cells.insert(1, head)
    return nbformat.writes(new) + "\n"


def _is_current(path: Path, text: str) -> bool:
    try:
        found = path.read_text(encoding="utf-8")
        return found in (text, with_outputs_of(text, found)) and without_outputs(found) == text
    except (OSError, ValueError):
        return False


def _outputs_are_older(path: Path, text: str) -> bool:
    made = nbformat.reads(path.read_text(encoding="utf-8"), as_version=4).metadata.get("executed")
    return made is not None and made["source"] != digest(text)


def main(arguments: list[str]) -> int:
    """Write every notebook; with `--check` name those that differ from their source, with `--check-outputs`
    also those whose outputs are older than it (exit code 1)."""
    sources, complaints = sorted(SOURCES.glob("*.py")), []
    for source in sources:
        text, path = build(source), built_path(source)
        if not {"--check", "--check-outputs"} & set(arguments):
            if path.is_file():
                text = with_outputs_of(text, path.read_text(encoding="utf-8"))
            path.write_text(text, encoding="utf-8")
            print(f"built {path.name}")
        elif not _is_current(path, text):
            complaints.append(f"{path.name} differs from its source: run `make notebooks`")
        elif "--check-outputs" in arguments and _outputs_are_older(path, text):
            complaints.append(f"{path.name}: its outputs are older than its source: run notebooks/execute.py")
    for path in HERE.glob("*.ipynb"):
        if path.stem not in {s.stem for s in sources}:
            complaints.append(f"{path.name} has no source in notebooks/src")
    for complaint in complaints:
        print(complaint, file=sys.stderr)
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
