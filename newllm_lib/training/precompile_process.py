"""New-LLM's kernels compiled by another process from a command's first moment on, while it imports.

What a first step launches follows from the recipe alone. The other process needs torch, Triton and our
layers, but not transformers, so it is done about when the training process has imported everything, and finds
the kernels in Triton's cache. Threads would not do: half of Triton's work needs Python's lock, and so do
imports.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

from newllm_lib.recipe import Recipe, load_recipe
from newllm_lib.recipe.loading import size_of_text
from newllm_lib.runs.processes import command_of, environment_of
from newllm_lib.training.compile import needs_no_compiler

_PROMPTS = 8, 13  # rows and tokens, of which kernels know whether 16 divides them
NOTHING_DONE = 3  # exit code: the training process compiles its kernels itself
_DEVICES, _GPUS = Path("/dev"), Path("/proc/driver/nvidia/gpus")
_PACKAGE = Path(__file__).parents[1]
_OF_NO_KERNEL = (
    *("output_dir", "run_name", "mirror_dir", "resume", "force", "seed", "patience", "keep_checkpoints"),
    *("epochs", "max_steps", "learning_rate", "muon_learning_rate", "warmup_steps", "weight_decay"),
    *("evals_per_epoch", "eval_tokens", "sample_tokens", "logging_steps", "save_steps", "save_minutes"),
)


def start_process(name: str, keys: dict[str, object]) -> subprocess.Popen[str] | None:
    """Start to compile for that recipe with these keys; None where there is no GPU, or where it was done
    before: a second process would only take time from the imports. Imports nothing."""
    if not _has_gpu() or done_before(name, keys).is_file():
        return None
    return subprocess.Popen(
        command_of("newllm_lib.training.precompile_process", name, json.dumps(keys)),
        env=environment_of(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def done_before(name: str, keys: dict[str, str]) -> Path:
    """The file in Triton's cache that says so: for this recipe, these sources and libraries, and this GPU.

    Where the kernels are gone from the cache all the same, they are compiled as without this process.
    """
    home = Path(os.environ.get("TRITON_HOME", Path.home())) / ".triton" / "cache"
    sources = [f for room in ("ops", "layers") for f in (_PACKAGE / room).rglob("*.py")]
    sources += (_PACKAGE / "recipes").glob("*.yaml")
    newest = max(f.stat().st_mtime_ns for f in [*sources, *filter(Path.is_file, [Path(name)])])
    gpus = [f.read_text(errors="replace") for f in sorted(_GPUS.glob("*/information"))]
    told = {key: value for key, value in keys.items() if key not in _OF_NO_KERNEL}
    told |= {key: size_of_text(told[key]) for key in ("data", "data_dir") if key in told}
    about = [name, sorted(told.items()), newest, gpus, os.environ.get("NEWLLM_DEVICE")]
    for package in ("torch", "triton", "pytorch-triton"):  # Triton's name with torch's nightly builds
        with suppress(metadata.PackageNotFoundError):
            about.append((package, metadata.version(package)))
    number = hashlib.sha256(json.dumps(about, default=str).encode()).hexdigest()[:20]
    return Path(os.environ.get("TRITON_CACHE_DIR", home)) / f"newllm-{number}"


def is_known_ahead(recipe: Recipe) -> bool:
    """Whether what the recipe launches is known without the model."""
    whole = recipe.micro_batch_size in ("auto", recipe.batch_size)
    ours = recipe.model == "new_llm" and needs_no_compiler(recipe)
    return recipe.task == "train" and recipe.compile in ("auto", "replay") and ours and whole


def _has_gpu() -> bool:
    """Whether there is one NVIDIA GPU for this process, as far as can be seen without torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    asked = os.environ.get("NEWLLM_DEVICE", "") != "cpu" and "WORLD_SIZE" not in os.environ
    numbers = list(_DEVICES.glob("nvidia[0-9]*"))
    return (
        asked
        and bool(numbers)
        and (visible.count(",") == 0 and visible not in ("", "-1") if visible is not None else True)
    )


def compile_for(recipe: Recipe) -> bool:
    """Compile on the first GPU a training step's kernels, say so, and go on with those of sample answers.

    False: not for this recipe or this GPU.
    """
    import torch

    from newllm_lib.device import probe
    from newllm_lib.ops import precompile

    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(probe().dtype)
    if not is_known_ahead(recipe) or dtype is None:
        return False
    torch.manual_seed(0)
    model = _trunk(recipe, dtype).cuda().train()
    ids = torch.ones(recipe.batch_size, recipe.max_seq_length, dtype=torch.long, device="cuda")
    precompile.trace_and_compile(model, lambda: model(ids))
    precompile.wait()
    print(precompile.TRAINING_IS_THERE, flush=True)
    precompile.trace_and_compile(model, model.answer)
    precompile.wait()
    return True


def _trunk(recipe: Recipe, dtype=None):
    """What `models.new_llm` computes in training (in bfloat16, or another dtype), without transformers; two
    blocks are enough.
    """
    import torch
    from torch import nn

    from newllm_lib.layers.context_block import ContextBlock
    from newllm_lib.layers.document import document_starts
    from newllm_lib.ops.add_norm import add_norm
    from newllm_lib.ops.embedding import token_embedding
    from newllm_lib.ops.linear_cross_entropy import linear_cross_entropy

    dtype = dtype or torch.bfloat16

    class Trunk(nn.Module):
        def __init__(self):
            super().__init__()
            sizes = {**vars(recipe), "dropout": 0.0, "conv_width": 4, "context_eps": 1e-6}
            config = SimpleNamespace(**sizes)  # as NewLLMConfig has them
            self.table = nn.Embedding(recipe.vocab_size, recipe.hidden_size)
            self.layers = nn.ModuleList(ContextBlock(config) for _ in range(2))
            self.norm = nn.RMSNorm(recipe.hidden_size, eps=1e-6)

        def forward(self, ids):
            with torch.autocast(ids.device.type, dtype):
                x = token_embedding(ids, self.table.weight, dtype)
                starts, residual = document_starts(ids, 0), None
                for layer in self.layers:
                    state = torch.zeros(len(ids), layer.state_size, device=ids.device)
                    x, residual, _ = layer(x, residual, state, starts)
                x = add_norm(x, residual, self.norm.weight, self.norm.eps)[1]
                return linear_cross_entropy(
                    x, self.table.weight, ids, torch.tensor(ids.numel(), device=ids.device)
                )

        @torch.no_grad()
        def answer(self):
            """What reads `_PROMPTS` with their padding, and then a token, as `generation.decoding` does."""
            prompts = torch.ones(_PROMPTS, dtype=torch.long, device=self.table.weight.device)
            for ids, mask in ((prompts, prompts.bool()), (prompts[:, :1], None)):
                x, starts, residual = self.table(ids), document_starts(ids, 0), None
                for layer in self.layers:
                    state = torch.zeros(len(ids), layer.state_size, device=ids.device)
                    x, residual, _ = layer(x, residual, state, starts, mask)
                add_norm(x, residual, self.norm.weight, self.norm.eps)

    return Trunk()


def main(name: str, keys: str) -> int:
    """What the other process does; its exit code."""
    given = json.loads(keys)
    if not compile_for(load_recipe(name, given)):
        return NOTHING_DONE
    done_before(name, given).touch()
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
