"""An export loads with transformers alone, and says what the model said here, token for token."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import torch

from newllm_lib.checkpoints import load_model
from newllm_lib.export.folder import export
from newllm_lib.export.modeling import KINDS, modeling_file
from tests.helpers.anywhere import alone, said

PHASE7 = {"ssm_ranks": 4, "htt_rank": 4, "num_heads": 2, "hidden_size": 16, "context_dim": 16}
MODELS = {  # name: kind, recipe keys
    "parallel": ("new_llm", {}),
    "sequential": ("new_llm", {"recurrence": "sequential"}),
    "phase7": ("phase7", {**PHASE7, "attention_window": 8}),
    "plain_phase7": ("phase7", {**PHASE7, "attention": "dot", "ar_ssm": False, "embedding": "dense"}),
    "phase8": ("phase7", {**PHASE7, "attention": "linear"}),
    "tiny_gpt2": ("tiny_gpt2", {"max_seq_length": 64}),
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory, bpe, make_model):
    """The exports by name, each with what the model said, and what a process without newllm_lib found."""
    place, folders = tmp_path_factory.mktemp("exports"), {}
    for name, (kind, keys) in MODELS.items():
        model = make_model(bpe, kind, scale=0.5, **keys)
        source = place / f"made_{name}"
        model.save_pretrained(source)
        bpe.save_pretrained(source)
        folders[name] = export(source, place / name)
        torch.save(said(model, bpe, remote=kind != "tiny_gpt2"), folders[name].with_suffix(".pt"))
    script = Path(__file__).with_name("loads_anywhere.py")
    return folders, json.loads(alone(place, str(script), *map(str, folders.values())))


@pytest.mark.parametrize("name", MODELS)
def test_it_says_the_same_without_newllm_lib(name, exported):
    found = exported[1][name]
    assert "newllm_lib" not in found["class"]
    assert max(found["logits"], found["padded"], found["loss"], found["reread"]) < 1e-4, found
    assert all(found[what] for what in ("greedy", "gradients", "tokens", "tuple", "hidden_states")), found


def test_with_newllm_lib_the_fast_classes_are_used(exported, tmp_path):
    code = (
        "import sys; from transformers import AutoModelForCausalLM; "
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True); "
        "model.save_pretrained('again'); print(*[kind.__module__ for kind in type(model).__mro__])"
    )
    shown = alone(tmp_path, "-c", code, str(exported[0]["parallel"]), path=str(Path(__file__).parents[2]))
    assert shown.startswith("transformers_modules") and "newllm_lib.models.new_llm" in shown.split()
    assert (tmp_path / "again" / "modeling_new_llm.py").is_file()  # trained further, it still loads anywhere


@pytest.mark.parametrize("name", ["parallel", "phase8", "tiny_gpt2"])
def test_the_cards_use_is_true(name, exported, monkeypatch):
    text = (exported[0][name] / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.setenv("HF_MODULES_CACHE", str(exported[0][name].parent / "modules_here"))
    exec(code.replace("FOLDER_OR_REPOSITORY", str(exported[0][name])), {})
    assert ("trust_remote_code" in code) == (name != "tiny_gpt2")


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_is_plain_torch_and_names_nothing_of_ours(kind):
    text, _, fast = modeling_file(kind).partition("try:\n    import newllm_lib.models")
    imported = {
        line.split()[1].partition(".")[0]
        for line in text.splitlines()
        if line.startswith(("from ", "import "))
    }
    assert imported - sys.stdlib_module_names == {"torch", "transformers"}
    assert "torch.library" not in text and fast


def test_an_export_is_loaded_here_by_our_own_classes(exported):
    for name, (kind, _) in MODELS.items():
        config = load_model(exported[0][name]).model.config
        assert config.model_type == kind and not config.auto_map
