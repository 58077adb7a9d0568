"""`newllm evaluate`, `compare` and `chat`: what a run is worth."""

from __future__ import annotations

import argparse
import importlib.util
import sys

from newllm_lib.cli.hints import command
from newllm_lib.console import go_on_without_reader, say
from newllm_lib.errors import NewLLMError, UsageError


def evaluate(arguments: argparse.Namespace) -> dict | int:
    """Measure a run on a split, beside the unigram and bigram tables of the same data."""
    say(f"Evaluating {arguments.run} ({arguments.checkpoint}) on the {arguments.split} split of its data")
    from newllm_lib.evaluation.evaluate_run import EvaluationData, evaluate_run

    model = run_of(arguments.run)
    names = arguments.data.split(",") if arguments.data else [None]
    results = {}
    for name in names:
        if len(names) > 1:
            say(f"{name}:")
        results[name] = evaluate_run(
            model,
            EvaluationData(arguments.split, name, arguments.data_dir, arguments.loss_on),
            which=arguments.checkpoint,
            baselines=not arguments.no_baselines,
            batch_size=arguments.batch_size,
            block_length=arguments.block_length,
        )
    for name, found in results.items() if len(names) > 1 else ():
        say(f"  {found['bits_per_byte']:.4f} bits per byte of the {_COUNTED[found['loss_on']]} of {name}")
    result = results[names[0]] if len(names) == 1 else {"data": results}
    say(f"Next: {command('chat', arguments.run)}   or   {command('compare', arguments.run, 'ANOTHER_RUN')}")
    return result if arguments.json else 0


def compare(arguments: argparse.Namespace) -> dict | int:
    """Two runs side by side; saves the table and the picture."""
    go_on_without_reader()
    say(
        f"Comparing {arguments.run_a} with {arguments.run_b} on the test split: quality, samples, speed, "
        "memory"
    )
    from newllm_lib.evaluation.compare.compare import compare as compare_runs
    from newllm_lib.evaluation.evaluate_run import EvaluationData

    data = EvaluationData(data=arguments.data, data_dir=arguments.data_dir)
    result = compare_runs(
        run_of(arguments.run_a), run_of(arguments.run_b), data, output_dir=arguments.output_dir
    )
    say(f"Next: {command('chat', arguments.run_a)}")
    return result if arguments.json else 0


def export(arguments: argparse.Namespace) -> dict | int:
    """A model as a folder for others, with a model card; with --push to the hub too."""
    go_on_without_reader()
    from newllm_lib.checkpoints import locate
    from newllm_lib.export.folder import check_push, export as export_run, push
    from newllm_lib.export.gguf import write_gguf

    if arguments.push == "":
        raise UsageError("--push '' names no model: give OWNER/NAME, or leave it out.")
    model = run_of(arguments.run)
    if arguments.push:  # before a large model is written
        check_push(arguments.push, None)
    folder = export_run(model, arguments.output_dir, arguments.checkpoint)
    result = {"folder": str(folder), "files": sorted(file.name for file in folder.iterdir())}
    if arguments.gguf:
        result["gguf"] = str(
            write_gguf(folder, locate(model, arguments.checkpoint).title().rpartition("/")[2])
        )
    if arguments.push:
        result["address"] = push(folder, arguments.push, private=not arguments.public)
        say(f"It is at {result['address']}")
    else:
        say(f"Next: {command('export', arguments.run, '--push', 'OWNER/NAME')}   (needs HF_TOKEN)")
    return result if arguments.json else 0


def chat(arguments: argparse.Namespace) -> dict | int:
    """Talk with a run in the terminal."""
    say(f"Loading {arguments.run} ({arguments.checkpoint})")
    from newllm_lib.generation.chat import open_session, run_terminal
    from newllm_lib.generation.sampling import Settings

    settings = Settings()
    for name in SETTINGS:
        value = getattr(arguments, name)
        if value is not None:
            settings = settings.changed(name, value)
    run_terminal(open_session(run_of(arguments.run), settings, arguments.checkpoint, system=arguments.system))
    return {} if arguments.json else 0


def serve(arguments: argparse.Namespace) -> dict | int:
    """Answer other programs over HTTP, until Ctrl-C."""
    go_on_without_reader()
    missing = [name for name in ("fastapi", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        raise NewLLMError(f"The server needs packages: {sys.executable} -m pip install {' '.join(missing)}")
    from newllm_lib.serve.app import listen, serve as serve_engine

    bound = listen(arguments.host, arguments.port)
    say(f"Loading {arguments.run} ({arguments.checkpoint})")
    from newllm_lib.checkpoints import load_model
    from newllm_lib.device import probe
    from newllm_lib.serve.engine import Engine

    loaded = load_model(run_of(arguments.run), arguments.checkpoint, device=probe().torch_device)
    serve_engine(Engine(loaded), bound)
    return {} if arguments.json else 0


def run_of(word: str) -> str:
    """What a user calls a run: name or folder, a guide's file name, or a recipe (its newest run).

    Raises:
        UsageError: that recipe has no run yet.
    """
    from newllm_lib.recipe import shipped_recipes
    from newllm_lib.recipe.files import read_record
    from newllm_lib.runs import list_runs, resolve_path

    # The folder of `newllm demo` is named as a recipe is, but holds no model of its own.
    if word not in shipped_recipes() or any(run.name == word and run.best.is_dir() for run in list_runs()):
        return resolve_path(word)
    trained = [run for run in list_runs() if run.best.is_dir() and run.recipe_path.is_file()]
    trained = [run for run in trained if read_record(run.recipe_path).get("recipe") == word]
    if not trained:
        raise UsageError(
            f"There is no run of recipe {word} here yet: train it first ({command('train', word)})."
        )
    return str(max(trained, key=lambda run: run.best.stat().st_mtime).path)


_COUNTED = {"answers": "answers", "everything": "text"}
SETTINGS = ("temperature", "top_k", "top_p", "repetition_penalty", "max_new_tokens", "seed")
