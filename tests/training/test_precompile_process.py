"""The process that compiles New-LLM's kernels beside a command's imports: when there is one, and that it
meets them all.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from newllm_lib.ops import precompile
from newllm_lib.recipe import load_recipe
from newllm_lib.training import precompile_process
from newllm_lib.training.model_config import build_model


def recipe(**changes):
    return load_recipe(
        "demo", {"sized_for": "h100", "vocab_size": 300, "batch_size": 3, "max_seq_length": 9, **changes}
    )


@pytest.mark.parametrize(
    ("gpus", "environment", "expected"),
    [
        (["nvidia0"], {}, True),
        (["nvidia0"], {"CUDA_VISIBLE_DEVICES": "0"}, True),
        ([], {}, False),
        (["nvidiactl"], {}, False),
        (["nvidia0"], {"CUDA_VISIBLE_DEVICES": ""}, False),
        (["nvidia0", "nvidia1"], {"CUDA_VISIBLE_DEVICES": "0,1"}, False),
        (["nvidia0"], {"NEWLLM_DEVICE": "t4"}, True),
        (["nvidia0"], {"NEWLLM_DEVICE": "cpu"}, False),
        (["nvidia0"], {"WORLD_SIZE": "2"}, False),
    ],
    ids=str,
)
def test_begins_where_one_gpu_is_seen(gpus, environment, expected, monkeypatch, tmp_path):
    for name in ("CUDA_VISIBLE_DEVICES", "NEWLLM_DEVICE", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for name in gpus:
        (tmp_path / name).touch()
    monkeypatch.setattr(precompile_process, "_DEVICES", tmp_path)
    started = []
    monkeypatch.setattr(precompile_process.subprocess, "Popen", lambda words, **_: started.append(words))
    precompile_process.start_process("demo", {"vocab_size": "300"})
    assert len(started) == expected


def test_what_was_compiled_before_needs_no_process(monkeypatch, tmp_path):
    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr(precompile_process, "_DEVICES", tmp_path)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for name in ("CUDA_VISIBLE_DEVICES", "NEWLLM_DEVICE", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    started = []
    monkeypatch.setattr(precompile_process.subprocess, "Popen", lambda words, **_: started.append(words))
    keys = {"vocab_size": "300"}
    precompile_process.done_before("demo", keys).touch()
    precompile_process.start_process("demo", keys)
    precompile_process.start_process("demo", keys | {"output_dir": "another", "max_steps": "7"})
    assert not started
    precompile_process.start_process("demo", {"vocab_size": "400"})  # other kernels
    monkeypatch.setattr(precompile_process.metadata, "version", lambda package: "another")
    precompile_process.start_process("demo", keys)
    assert len(started) == 2


def test_triton_of_a_nightly_torch_has_another_name(monkeypatch):
    def version(package):
        if package == "triton":
            raise precompile_process.metadata.PackageNotFoundError(package)
        return nightly

    monkeypatch.setattr(precompile_process.metadata, "version", version)
    nightly = "3.6.0+git1"
    before = precompile_process.done_before("demo", {})
    nightly = "3.6.0+git2"
    assert precompile_process.done_before("demo", {}) != before


def test_suits_what_is_made_of_our_kernels():
    assert precompile_process.is_known_ahead(recipe())
    assert precompile_process.is_known_ahead(recipe(hidden_size=512))
    assert precompile_process.is_known_ahead(recipe(batch_size=32, micro_batch_size="32"))
    for changes in (
        {"model": "tiny_gpt2", "carry_state": False},
        {"recurrence": "sequential"},
        {"compile": "off"},
        {"kernels": "off"},
        {"gradient_checkpointing": "on"},
        {"micro_batch_size": 1},
    ):
        assert not precompile_process.is_known_ahead(recipe(**changes)), changes


def test_computes_what_the_model_computes():
    model = build_model(recipe(num_layers=2, dropout=0.0), 300).train()
    model.config.bos_token_id = 0
    trunk = precompile_process._trunk(recipe())
    found = {
        name.removeprefix("model."): value
        for name, value in model.state_dict().items()
        if name != "lm_head.weight"
    }
    found["table.weight"] = found.pop("embed_tokens.weight")
    trunk.load_state_dict(found)
    ids = torch.randint(0, 300, (3, 9))
    with torch.autocast("cpu", torch.bfloat16):
        expected = model(input_ids=ids, shift_labels=ids, num_items_in_batch=torch.tensor(27)).loss
    torch.testing.assert_close(trunk(ids), expected)


def test_imports_no_transformers():
    code = (
        "import sys; from newllm_lib.training import precompile_process as k; from newllm_lib.recipe import "
        "load_recipe\n"
    )
    code += "print('torch' in sys.modules); k._trunk(load_recipe('demo', {'sized_for': 'h100'}))\n"
    code += "print('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split() == [
        "False",
        "False",
    ]


def test_says_that_it_has_done_nothing(monkeypatch):
    monkeypatch.setenv("NEWLLM_DEVICE", "cpu")
    words = [sys.executable, "-m", "newllm_lib.training.precompile_process", "demo", '{"vocab_size": "300"}']
    assert subprocess.run(words).returncode == precompile_process.NOTHING_DONE


def test_its_end_is_waited_for(monkeypatch):
    monkeypatch.setattr(precompile, "_elsewhere", None)
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.3)"])
    precompile.wait_for_process(process)
    precompile.wait()
    assert process.poll() == 0


def test_training_begins_when_its_own_kernels_are_there(monkeypatch):
    monkeypatch.setattr(precompile, "_elsewhere", None)
    code = f"import time; print({precompile.TRAINING_IS_THERE!r}, flush=True); time.sleep(1)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    precompile.wait_for_process(process)
    precompile.wait()
    assert process.poll() is None  # it goes on with those of the answers
    precompile.wait_for_all()
    assert process.poll() == 0
    precompile.wait_for_all()  # there is none any more


def test_computes_what_answers_do():
    trunk = precompile_process._trunk(recipe())
    assert trunk.answer() is None


@pytest.mark.gpu
def test_nothing_is_left_to_compile(monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    sizes = {
        "vocab_size": 320,
        "hidden_size": 48,
        "context_dim": 48,
        "mlp_size": 80,
        "batch_size": 16,
        "max_seq_length": 64,
    }
    code = f"""
import sys, torch
from newllm_lib.recipe import load_recipe
recipe = load_recipe("demo", {sizes})
if sys.argv[1] == "ahead":
    from newllm_lib.training import precompile_process
    precompile_process.compile_for(recipe)
else:
    from newllm_lib.training.model_config import build_model
    model, ids = build_model(recipe, 320).cuda().train(), torch.randint(0, 320, (16, 64), device="cuda")
    model.config.bos_token_id = 0
    tokens = torch.tensor(1024, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        model(input_ids=ids, shift_labels=ids, num_items_in_batch=tokens, use_cache=True).loss.backward()
    from newllm_lib.generation.decoding import continue_texts
    from newllm_lib.generation.sampling import Settings
    prompts = [list(range(1, n)) for n in (5, 9, 12, 14)]
    continue_texts(model, prompts, Settings(temperature=0, max_new_tokens=20), [0], [])
"""
    there = []
    for who in ("ahead", "model"):
        subprocess.run([sys.executable, "-c", code, who], check=True)
        there.append({file.name for file in Path(tmp_path).rglob("*.cubin")})
    assert there[0] and there[1] <= there[0]
