"""`newllm data`: what is read, and sets that are made here."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from newllm_lib.cli.hints import command
from newllm_lib.console import go_on_without_reader, say
from newllm_lib.errors import NewLLMError, UsageError
from newllm_lib.recipe import Recipe, load_recipe, overrides, refuse_without_effect, shipped_recipes
from newllm_lib.runs import atomic_write_text, check_file, check_picture


def show(arguments: argparse.Namespace) -> dict | int:
    """Records as training will read them, token by token."""
    from newllm_lib.data.show import look

    if arguments.picture:
        check_picture(Path(arguments.picture), "--picture")
    recipe = _recipe(arguments)
    say(f"Reading {arguments.source} as training will")
    if recipe.has_pairs:
        return _show_pairs(arguments, recipe)
    sample = look(recipe, arguments.count)
    coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and not arguments.json
    for line in sample.lines(coloured):
        print(line, flush=True) if coloured else say(line)
    if arguments.picture:
        sample.picture(arguments.picture)
        say(f"{arguments.picture}: a histogram of the lengths")
    return sample.plain() if arguments.json else 0


def _show_pairs(arguments: argparse.Namespace, recipe: Recipe) -> dict | int:
    found = _pairs(recipe)
    for line in (*found.report.lines(), found.description()):
        say(line)
    rows: list[Any] = found.train[: arguments.count]
    for number, row in enumerate(rows, 1):
        say(f"\n{found.unit.removesuffix('s')} {number}")
        for role, content in (*row.prompt, *row.beside().items()):
            say(f"  {role}: {content}")
    return {found.unit: [json.loads(row.to_json()) for row in rows]} if arguments.json else 0


def check(arguments: argparse.Namespace) -> dict | int:
    """All of the data, read once: exit code 0 where they can be trained on, else 1."""
    from newllm_lib.data.show import check as read_all

    recipe = _recipe(arguments)
    say(f"Reading all of {arguments.source}")
    if recipe.has_pairs:
        return _check_pairs(arguments, recipe)
    found = read_all(recipe)
    for line in found.report.lines():
        say(f"  {line}")
    for split, count in found.records.items() if any(found.records.values()) else ():
        say(f"  {split}: {count:,} records, {found.characters[split]:,} characters")
    if found.problem:
        raise NewLLMError(found.problem)
    say(f"It can be trained on. Next: {command('data', 'show', arguments.source)}")
    parts = {"records": found.records, "characters": found.characters, "report": found.report.plain()}
    return parts if arguments.json else 0


def _check_pairs(arguments: argparse.Namespace, recipe: Recipe) -> dict | int:
    found = _pairs(recipe)
    for line in (*found.report.lines(), found.description()):
        say(f"  {line}")
    counts = {"train": len(found.train), "evaluation": len(found.evaluation)}
    return {found.unit: counts, "report": found.report.plain()} if arguments.json else 0


def _pairs(recipe: Recipe) -> Any:
    from newllm_lib.data.preferences import load_preferences, load_prompts

    return load_prompts(recipe) if recipe.task == "grpo" else load_preferences(recipe)


def _recipe(arguments: argparse.Namespace) -> Recipe:
    """The recipe that a word names, or the demo's with these data.

    Raises:
        UsageError: there is none, and no such file, folder or data set.
    """
    asked, word = overrides(arguments), arguments.source
    is_recipe = word in shipped_recipes() or word.endswith((".yaml", ".yml"))
    if not is_recipe and not (Path(word) / "recipe.yaml").is_file():
        if "data" in asked:
            raise UsageError(
                f"{word} and --data both name data: leave one out (a recipe may stand beside it)."
            )
        word, asked = "demo", {**asked, "data": word}
    recipe = load_recipe(word, asked)
    refuse_without_effect(asked, recipe)
    return recipe


def preferences(arguments: argparse.Namespace) -> dict | int:
    """Write Japanese preference pairs as JSONL; report what superficial cues give away the better side."""
    go_on_without_reader()
    from newllm_lib.data.preferences import generate, shortcuts

    path = Path(arguments.output)
    check_file(path, "--output", _begins_with_a_pair)
    pairs = generate(arguments.count, arguments.seed)
    atomic_write_text(path, "".join(pair.to_json() + "\n" for pair in pairs))
    train = [pair for pair in pairs if pair.split == "train"]
    held_out = [pair for pair in pairs if pair.split == "evaluation"]
    kinds = Counter(pair.kind for pair in pairs)
    say(
        f"{path}: {len(pairs):,} pairs with different prompts, {len(train):,} to train on, {len(held_out):,} "
        "about other facts"
    )
    say(
        "  what is wrong with the rejected answers: "
        f"{', '.join(f'{kind} {count:,}' for kind, count in kinds.items())}"
    )
    found = shortcuts(train, held_out) if train and held_out else {}
    for name, accuracy in found.items():
        seen = name.replace("_", " ")
        say(
            f"  a classifier that sees only the {seen} is right in {100 * accuracy:.1f} % of the held-out "
            "pairs"
        )
    say(f"Next: {command('train', 'dpo', '--data', str(path))}")
    result = {
        "file": str(path),
        "pairs": len(pairs),
        "train": len(train),
        "evaluation": len(held_out),
        "kinds": dict(kinds),
    }
    return {**result, "shortcuts": found} if arguments.json else 0


def _begins_with_a_pair(text: str) -> bool:
    """Whether the first line of a file is a pair as `preferences` writes it."""
    try:
        return {"prompt", "chosen", "rejected", "kind"} <= set(json.loads(text.partition("\n")[0]))
    except (ValueError, TypeError):
        return False


def get(arguments: argparse.Namespace) -> dict | int:
    """Documents of one source, read and written once, in a folder that training takes."""
    go_on_without_reader()
    from newllm_lib.data.mixture import mix as write

    folder = Path(arguments.output or f"data/{Path(arguments.source).name}")
    say(f"Reading {arguments.source}")
    found = write({arguments.source: 1.0}, arguments.max_samples or 10**12, folder)
    return _said(arguments, folder, found)


def mix(arguments: argparse.Namespace) -> dict | int:
    """Several sources in chosen shares, as a folder that training takes."""
    go_on_without_reader()
    from newllm_lib.data.mixture import mix as write, parse_weights

    weights = parse_weights(arguments.weights or _asked())
    folder = Path(arguments.output)
    say("Mixing " + ", ".join(f"{name} {100 * share:.0f} %" for name, share in weights.items()))
    return _said(arguments, folder, write(weights, arguments.documents, folder))


def _said(arguments: argparse.Namespace, folder: Path, found: dict) -> dict | int:
    total = {
        split: sum(counts[split] for counts in found.values()) for split in ("train", "validation", "test")
    }
    say(f"{folder}: " + ", ".join(f"{split} {count:,}" for split, count in total.items()) + " documents")
    say(f"Next: {command('train', 'phase7_small', '--data_dir', str(folder))}")
    return {"folder": str(folder), "documents": total, "sources": found} if arguments.json else 0


def _asked() -> str:
    """The weights, from the user at a terminal.

    Raises:
        UsageError: there is no terminal to ask, or nothing was chosen.
    """
    from newllm_lib.data.mixture import OFFERED

    if not sys.stdin.isatty():
        raise UsageError("There is no terminal to ask: say --weights, such as --weights demo=2,dolly=1.")
    say(
        "A weight for each source (Enter: none). demo needs no network, the others are on the Hugging Face "
        "hub."
    )
    answers = {name: input(f"  {name}: ").strip() for name in OFFERED}
    chosen = ",".join(f"{name}={weight}" for name, weight in answers.items() if weight and weight != "0")
    if not chosen:
        raise UsageError("No source was given a weight: at least one is needed.")
    return chosen
