"""The notebooks are what their sources say: built, without outputs, with short cells and the recipes'
defaults.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from newllm_lib.colab import environment
from newllm_lib.colab.settings import FORMS

pytest.importorskip("jupytext")
nbformat = pytest.importorskip("nbformat")
NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
MOST_LINES = 14
REPOSITORY = "rato-tokyo/new-llm"

built = pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def builder():
    spec = importlib.util.spec_from_file_location("build", NOTEBOOKS / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def code(path: Path) -> list:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def test_there_are_notebooks():
    assert list(NOTEBOOKS.glob("*.ipynb")) and len(list(NOTEBOOKS.glob("*.ipynb"))) == len(
        list(NOTEBOOKS.glob("src/*.py"))
    )


def test_check_passes_and_sees_a_difference(builder, tmp_path, monkeypatch, capsys):
    assert builder.main(["--check"]) == 0, capsys.readouterr().err
    monkeypatch.setattr(builder, "HERE", tmp_path)
    assert builder.main(["--check"]) == 1 and "run `make notebooks`" in capsys.readouterr().err
    assert builder.main([]) == 0 and builder.main(["--check"]) == 0
    first = sorted(tmp_path.glob("*.ipynb"))[0]
    first.write_text(
        first.read_text(encoding="utf-8").replace("nbformat_minor", "nbformat_minor "), encoding="utf-8"
    )
    (tmp_path / "99_of_nowhere.ipynb").write_text("{}")
    assert builder.main(["--check"]) == 1
    complaints = capsys.readouterr().err
    assert first.name in complaints and "99_of_nowhere.ipynb has no source" in complaints


def test_outputs_stay_with_cells_that_did_not_change_and_are_told_to_be_old(
    builder, tmp_path, monkeypatch, capsys
):
    source = tmp_path / "01_x.py"
    source.write_text("# %% [markdown]\n# # X\n\n# %%\nprint(1)\n\n# %%\nprint(2)\n")
    monkeypatch.setattr(builder, "HERE", tmp_path)
    monkeypatch.setattr(builder, "SOURCES", tmp_path)
    assert builder.main([]) == 0
    path = tmp_path / "01_x.ipynb"
    notebook = nbformat.read(path, as_version=4)
    for number, cell in enumerate(notebook.cells[1:], 1):
        cell.outputs = [nbformat.v4.new_output("stream", text=f"{number}")]
    notebook.cells.insert(1, nbformat.v4.new_markdown_cell("of demo, on a GPU, today", id=builder.HEAD))
    notebook.metadata["executed"] = {"source": builder.digest(builder.build(source))}
    path.write_text(nbformat.writes(notebook) + "\n")
    assert builder.main(["--check"]) == 0 and builder.main(["--check-outputs"]) == 0
    source.write_text(source.read_text().replace("# # X", "# # Prose"))
    assert builder.main([]) == 0 and builder.main(["--check-outputs"]) == 0  # the outputs are the code's
    source.write_text(source.read_text().replace("print(2)", "print(3)"))
    assert builder.main(["--check"]) == 1 and builder.main([]) == 0 and builder.main(["--check"]) == 0
    kept = [cell.outputs for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert [len(outputs) for outputs in kept] == [1, 0]
    assert nbformat.read(path, as_version=4).cells[1].source.endswith(builder.CHANGED)
    assert builder.main(["--check-outputs"]) == 1 and "older than its source" in capsys.readouterr().err


def test_an_executed_notebook_is_small_says_where_and_has_no_widgets(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(NOTEBOOKS))
    import execute

    source = tmp_path / "01_x.py"
    source.write_text("# %% [markdown]\n# # X\n\n# %%\nimport os\nprint(os.environ['NEWLLM_PICTURES'])\n")
    made = execute.execute(source, tmp_path, seconds=120)
    assert made.cells[2].outputs[0].text == "png\n" and "widgets" not in made.metadata
    assert "`demo`" in made.cells[1].source and made.metadata["executed"]["source"]
    monkeypatch.setattr(execute, "LARGEST", 10)
    with pytest.raises(SystemExit, match="at most"):
        execute.execute(source, tmp_path, seconds=120)
    assert set(execute.FORMS) == {path.stem[:2] for path in NOTEBOOKS.glob("src/*.py")}


def test_an_unknown_build_line_is_refused(builder, tmp_path):
    source = tmp_path / "x.py"
    source.write_text("# %%\n#@build nothing\n")
    with pytest.raises(SystemExit, match="unknown line"):
        builder.build(source)


def test_the_command_line_tells_by_its_exit_code():
    ended = subprocess.run(
        [sys.executable, str(NOTEBOOKS / "build.py"), "--check"], capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr


@built
def test_no_widget_state_and_outputs_only_of_execute(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert "widgets" not in notebook.metadata
    if "executed" not in notebook.metadata:
        for cell in code(path):
            assert cell.outputs == [] and cell.execution_count is None


@built
def test_it_opens_in_colab_with_a_gpu(path):
    notebook = nbformat.read(path, as_version=4)
    assert notebook.metadata.accelerator == "GPU" and notebook.metadata.colab.name == path.name
    assert f"https://colab.research.google.com/github/{REPOSITORY}/blob/main/notebooks/{path.name}" in (
        notebook.cells[0].source
    )
    identities = [cell.id for cell in notebook.cells]
    assert len(set(identities)) == len(identities)


@built
def test_one_install_cell_and_one_form_both_folded(path):
    folded = [cell for cell in code(path) if cell.metadata.get("cellView") == "form"]
    assert len(folded) == 2 and "colab_bootstrap.sh" in folded[0].source and "#@param" in folded[1].source
    assert sum("#@param" in cell.source for cell in code(path)) == 1


@built
def test_the_forms_defaults_are_the_recipes(path):
    form_cell = next(cell.source for cell in code(path) if "#@param" in cell.source)
    form = next(form for form in FORMS.values() if f"import {form.name}" in form_cell)
    assert form_cell == form.render()  # and tests/colab/test_forms.py compares that with the recipe


@built
def test_cells_are_short_and_explained(path):
    cells = nbformat.read(path, as_version=4).cells
    for before, cell in zip(cells, cells[1:], strict=False):
        if cell.cell_type == "code":
            lines = [line for line in cell.source.splitlines() if line.strip() and not line.startswith("#")]
            fields = sum("#@param" in line for line in lines)  # a form has a line a field
            assert len(lines) - fields <= MOST_LINES, cell.source
            assert before.cell_type == "markdown", f"nothing explains {cell.source[:60]!r}"
            compile(cell.source, path.name, "exec")


@built
def test_names_that_cells_use_and_others_make_are_known(path):
    """A cell out of order says in one line that another makes what it needs: each such name has to be
    known."""
    made: set[str] = set()
    for cell in code(path):
        tree = ast.parse(cell.source)
        used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        for name in (used & made) - {"Path", "json", "torch"}:
            assert name in environment.MADE_BY_CELLS, (path.name, name)
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                made.add(node.id)
            if isinstance(node, ast.ImportFrom | ast.Import):
                made |= {alias.asname or alias.name for alias in node.names}


@built
def test_japanese_is_whole(path):
    """Each section and each paragraph between two cells says it in Japanese too."""
    cells = nbformat.read(path, as_version=4).cells
    for before, cell in zip(cells, cells[1:], strict=False):
        if cell.cell_type == "code":
            assert re.search(r"[\u3040-\u30ff]", before.source), before.source


@built
def test_each_shows_its_data_and_its_model_and_ends_in_the_same_cell(path):
    sources = [cell.source for cell in code(path)]
    assert any("show_data(settings)" in source or "look(settings)" in source for source in sources)
    assert any("print(network)" in source and "optimizer.step()" in source for source in sources)
    ends = [
        source.splitlines()[0] for source in sources if source.startswith("from newllm_lib.colab.results")
    ]
    assert ends[-1].endswith("import keep")
    assert any("give_away(run, to=" in source for source in sources) != path.stem.startswith("01")
    assert any("**Exercise**" in cell.source for cell in nbformat.read(path, as_version=4).cells)


def test_run_all_passes_over_the_experiments():
    sources = "\n".join(cell.source for cell in code(NOTEBOOKS / "04_dpo_lora.ipynb"))
    assert "experiments = False" in sources
    after = sources.partition("experiments = False")[2]
    assert all(
        line.startswith("    ")
        for line in after.splitlines()
        if re.search(r"\b(train|sweep|report|wait)\(", line)
    )
    assert 'Path("data/' in after  # a reader's own pairs do not lie about in the clone's top folder
