"""`newllm data`: sets that are made here."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

from newllm_lib.cli.hints import command
from newllm_lib.console import say
from newllm_lib.errors import UsageError
from newllm_lib.runs import atomic_write_text, check_file


def preferences(arguments: argparse.Namespace) -> dict | int:
    """Write Japanese preference pairs as JSONL; report what superficial cues give away the better side."""
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
    from newllm_lib.data.mixture import mix as write

    folder = Path(arguments.output or f"data/{Path(arguments.source).name}")
    say(f"Reading {arguments.source}")
    found = write({arguments.source: 1.0}, arguments.max_samples or 10**12, folder)
    return _said(arguments, folder, found)


def mix(arguments: argparse.Namespace) -> dict | int:
    """Several sources in chosen shares, as a folder that training takes."""
    from newllm_lib.data.mixture import mix as write
    from newllm_lib.data.mixture import parse_weights

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
