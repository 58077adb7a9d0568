"""`newllm expand`: a run's best model with a larger context vector, as a folder for `--from`."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from newllm_lib import console
from newllm_lib.checkpoints import load_model, save_model
from newllm_lib.errors import NewLLMError, UsageError
from newllm_lib.runs import Run, atomic_write_text, explained, find_run, mark_folder


def expand_run(name: str, context_dim: int, output_dir: str | None = None) -> Run:
    """Write a run whose `best/` predicts as run `name`'s does, with a larger context vector.

    Raises:
        UsageError: no such run, not a New-LLM, a context that is not larger, or a folder that is taken.
        NewLLMError: the run's folder is not whole.
    """
    from newllm_lib.models import NewLLMForCausalLM
    from newllm_lib.models.expansion import expand_context

    run = find_run(name)
    target = Run(Path(output_dir) if output_dir else run.path.with_name(f"{run.name}_context{context_dim}"))
    if os.path.lexists(target.path):
        raise UsageError(f"{target.path} is there already: give another --output_dir.")
    loaded = load_model(run)
    model, recipe = loaded.model, loaded.recipe
    if not isinstance(model, NewLLMForCausalLM):
        raise UsageError(f"{run.name} is no New-LLM: only its context vector can be expanded.")
    if recipe is None:
        raise NewLLMError(f"{run.path} has no recipe.yaml: copy the whole folder of the run.")
    larger = expand_context(model, context_dim)
    with explained(target.path):
        target.path.mkdir(parents=True)
    mark_folder(target.path, "run", target.name)
    save_model(larger, loaded.tokenizer, target.best)
    record = replace(recipe, context_dim=context_dim, run_name=target.name, output_dir=None)
    atomic_write_text(target.recipe_path, record.to_yaml())
    old, new = (sum(p.numel() for p in m.parameters()) for m in (model, larger))
    console.say(
        f"{target.path}: context vectors of {context_dim} channels instead of {model.config.context_dim}, "
        f"{new:,} parameters instead of {old:,}, and for now the same predictions"
    )
    return target
