"""What several tests start from: both models, trained a little."""

import pytest

from tests.helpers.small_runs import write_text


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder that a test runs in, with a little text in `text/`."""
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory):
    """A folder in which both models have been trained on WikiText's recipe; to be copied, not changed."""
    from newllm_lib.recipe import load_recipe
    from newllm_lib.training import train
    from tests.helpers.tuning import TINY, write_talks

    folder = tmp_path_factory.mktemp("pretrained")
    write_text(folder)
    write_talks(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for model, name in (("new_llm", "new_llm_wikitext"), ("tiny_gpt2", "tinygpt2_wikitext")):
            choices = {"data_dir": str(folder / "text"), "run_name": name, "model": model}
            train(load_recipe("wikitext", {**TINY, **choices}))
    return folder
