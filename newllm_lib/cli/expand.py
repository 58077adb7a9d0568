"""`newllm expand`: a trained run with a larger context vector."""

from __future__ import annotations

import argparse

from newllm_lib.cli.hints import command, word_for
from newllm_lib.console import go_on_without_reader, say
from newllm_lib.recipe import Recipe
from newllm_lib.runs import Run


def expand(arguments: argparse.Namespace) -> dict | int:
    """Write the start folder, and say how to train on from it."""
    go_on_without_reader()
    say(f"Expanding the context vector of {arguments.run} to {arguments.context_dim} channels")
    from newllm_lib.training.expand import expand_run

    run = expand_run(arguments.run, arguments.context_dim, arguments.output_dir)
    say(f"Next: {command('train', _recipe_name(run), '--from', word_for(run))}")
    return {"path": str(run.path), "context_dim": arguments.context_dim} if arguments.json else 0


def _recipe_name(run: Run) -> str:
    return Recipe.from_yaml(run.recipe_path).recipe
