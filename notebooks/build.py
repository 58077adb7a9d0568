"""Build notebooks/*.ipynb from notebooks/src/*.py (jupytext percent), without outputs; `--check` only
compares.

A code cell that holds a single line `#@build …` is filled in here, so that what all notebooks share is
written once:

    #@build install        the cell in src/cells/install.py, folded #@build cell NAME      the cell in
    src/cells/NAME.py #@build form NAME      the settings cell of the form NAME in
    newllm_lib/colab/settings.py, rendered from its recipe

The same source gives the same bytes: cell ids come from the cells' content.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import jupytext
import nbformat

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


def main(arguments: list[str]) -> int:
    """Write every notebook, or with `--check` name those that differ from their source (exit code 1)."""
    sources, stale = sorted(SOURCES.glob("*.py")), []
    orphans = [p.name for p in HERE.glob("*.ipynb") if p.stem not in {s.stem for s in sources}]
    for source in sources:
        text, path = build(source), built_path(source)
        if "--check" not in arguments:
            path.write_text(text, encoding="utf-8")
            print(f"built {path.name}")
        elif not path.is_file() or path.read_text(encoding="utf-8") != text:
            stale.append(path.name)
    for name in stale:
        print(f"{name} differs from its source: run `make notebooks`", file=sys.stderr)
    for name in orphans:
        print(f"{name} has no source in notebooks/src", file=sys.stderr)
    return 1 if stale or orphans else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
