"""The file to take home: complete, usable on its own, and handed to the browser in Colab."""

from __future__ import annotations

import zipfile

import pytest

from newllm_lib.colab.download import download
from newllm_lib.errors import NewLLMError
from newllm_lib.runs import Run, staged_directory
from tests.helpers.fake_run import finished


@pytest.fixture
def run(tmp_path) -> Run:
    run = finished(tmp_path / "new_llm_demo")
    run.recipe_path.write_text("recipe: demo\n")
    run.log.write_text("Epoch 1/1\n")
    run.curves.write_bytes(b"picture")
    return run


def save(run: Run, name: str) -> None:
    with staged_directory(run.path / name) as folder:
        for file in ("model.safetensors", "config.json", "tokenizer.json"):
            (folder / file).write_text(f"{name} {file}")


def test_it_holds_the_best_model_tokenizer_curves_and_log(run, tmp_path, capsys):
    save(run, "best")
    save(run, "last")
    table = tmp_path / "comparison.md"
    table.write_text("| a |")
    archive = download(run, extra=[table])
    assert archive == tmp_path / "new_llm_demo.zip" and "MiB" in capsys.readouterr().out
    with zipfile.ZipFile(archive) as file:
        assert file.testzip() is None
        assert sorted(file.namelist()) == [
            f"new_llm_demo/{name}"
            for name in (
                "best/MANIFEST.json",
                "best/config.json",
                "best/model.safetensors",
                "best/tokenizer.json",
                "comparison.md",
                "curves.png",
                "metrics.jsonl",
                "recipe.yaml",
                "train.log",
            )
        ]
        assert file.read("new_llm_demo/best/model.safetensors") == b"best model.safetensors"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["comparison.md", "new_llm_demo", "new_llm_demo.zip"]


def test_a_run_without_an_evaluation_gives_its_last_model(run):
    save(run, "last")
    with zipfile.ZipFile(download(run)) as file:
        assert file.read("new_llm_demo/best/model.safetensors") == b"last model.safetensors"


def test_a_run_without_a_whole_model_says_so(run):
    save(run, "best")
    (run.best / "model.safetensors").unlink()
    with pytest.raises(NewLLMError, match="no saved model yet"):
        download(run)


def test_colab_hands_it_to_the_browser(run, colab):
    save(run, "best")
    archive = download(run)
    assert colab.downloaded == [str(archive)]
