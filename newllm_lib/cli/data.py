"""`newllm data`: sets that are made here."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from newllm_lib.cli.hints import command
from newllm_lib.console import say
from newllm_lib.runs import atomic_write_text


def preferences(arguments):
    """Write Japanese preference pairs as JSONL, and say what could tell their better side without understanding it."""
    from newllm_lib.data.preferences import generate, shortcuts

    pairs = generate(arguments.count, arguments.seed)
    path = Path(arguments.output)
    atomic_write_text(path, "".join(pair.to_json() + "\n" for pair in pairs))
    train = [pair for pair in pairs if pair.split == "train"]
    held_out = [pair for pair in pairs if pair.split == "evaluation"]
    kinds = Counter(pair.kind for pair in pairs)
    say(f"{path}: {len(pairs):,} pairs with different prompts, {len(train):,} to train on, {len(held_out):,} about other facts")
    say(f"  what is wrong with the rejected answers: {', '.join(f'{kind} {count:,}' for kind, count in kinds.items())}")
    found = shortcuts(train, held_out) if train and held_out else {}
    for name, accuracy in found.items():
        seen = name.replace("_", " ")
        say(f"  a classifier that sees only the {seen} is right in {100 * accuracy:.1f} % of the held-out pairs")
    say(f"Next: {command('train', 'dpo', '--data', str(path))}")
    result = {"file": str(path), "pairs": len(pairs), "train": len(train), "evaluation": len(held_out), "kinds": dict(kinds)}
    return {**result, "shortcuts": found} if arguments.json else 0
