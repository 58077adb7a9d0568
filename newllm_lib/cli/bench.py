"""`newllm bench`: our models and their peers measured in one run, each figure a row of a CSV."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from newllm_lib.console import say
from newllm_lib.errors import NewLLMError, UsageError


def speed(arguments):
    """Training steps of everyone."""
    from newllm_lib.benchmarks import speed as bench
    from newllm_lib.device import probe

    on_a_cpu = probe().torch_device == "cpu"
    usual = bench.CPU_WAYS if on_a_cpu else bench.WAYS
    ways = _some(arguments.ways or usual, [*bench.WAYS, *bench.CPU_WAYS], "way")
    setting = bench.CPU_SETTING if on_a_cpu else bench.SETTING
    setting = {name: getattr(arguments, name) or usual for name, usual in setting.items()}
    say("Timing training steps, each way in a process of its own: " + ", ".join(ways))
    options = {"steps": arguments.steps, "jobs": arguments.jobs, **setting}
    return _recorded(arguments, "speed on a CPU" if on_a_cpu else "speed", lambda rows: bench.run(rows, ways, **options))


def decode(arguments):
    """Single tokens after short and long histories."""
    from newllm_lib.benchmarks import decode as bench

    ways = _some(arguments.ways, bench.WAYS, "way")
    histories = arguments.histories or bench.HISTORIES
    say("Timing single tokens after " + " and ".join(f"{h:,}" for h in histories) + " tokens of history")
    options = {"histories": histories, "batches": arguments.batches or (1, 64), "tokens": arguments.tokens, "ways": ways}
    return _recorded(arguments, "decode", lambda rows: bench.run(rows, **options))


def quality(arguments):
    """Everyone trained on the same tokens; goes on where it stopped."""
    from newllm_lib.benchmarks import peers
    from newllm_lib.benchmarks import quality as bench

    where = {
        "corpora": arguments.corpora or ["chitchat"], "models": _some(arguments.models, peers.NAMES, "model"),
        "sizes": _some(arguments.sizes or ["4M"], peers.SIZES, "size"),
    }  # fmt: skip
    journal, data, text = Path(arguments.journal), Path(arguments.data), arguments.text and Path(arguments.text)
    who, sizes, corpora = (", ".join(where[name]) for name in ("models", "sizes", "corpora"))
    say(f"Training {who} at {sizes} on {corpora}; journal: {journal}")
    others = [_another() for _ in range(arguments.jobs - 1)]
    try:
        seconds = float("inf") if arguments.minutes is None else 60 * arguments.minutes
        bench.run(journal, data, seconds=seconds, smoke=arguments.smoke, text=text, together=arguments.together,
                  settled=arguments.settled, **where)  # fmt: skip
    finally:
        failed = [p.returncode for p in others if p.wait()]
    if failed:
        killed = [f"signal {-code}" for code in failed if code < 0]
        how = f" ({len(killed)} killed without a word, by {', '.join(sorted(set(killed)))})" if killed else ", as said above"
        raise NewLLMError(f"{len(failed)} of {arguments.jobs} processes failed{how}: the same command goes on.")
    if arguments.no_record:
        return 0
    only = {"smoke": arguments.smoke, "settled": arguments.settled}
    left = [contest for contest in _contests(where) if bench.missing(journal, *contest, arguments.smoke, arguments.settled)]
    if left:
        say(f"Not complete yet: {', '.join(' '.join(c) for c in left)}. The same command goes on.")
    return _recorded(arguments, "quality", lambda rows: bench.report(journal, rows, **only, **where))


def phase7(arguments):
    """1.5 billion parameters: memory, speed, MFU of whole training steps, ours and the peers'."""
    from newllm_lib.benchmarks import train_1p5b as bench
    from newllm_lib.benchmarks.rows import Rows
    from newllm_lib.benchmarks.ways_1p5b import OURS, PEERS
    from newllm_lib.device import probe

    if probe().torch_device == "cpu":
        raise NewLLMError("This measures training on a GPU, and torch sees none here (`newllm doctor`).")
    ways = _some(arguments.ways or ["lowest", "speed", "bnb", "torchao", "default"], [*OURS, *PEERS], "way")
    say("Training steps of 1.5 billion parameters, each way in a process of its own: " + "; ".join(ways))
    rows = Rows("phase7")
    bench.run(rows, ways, arguments.steps, arguments.limit, arguments.side_by_side)
    if arguments.largest:
        layers, count = bench.largest()
        rows.add(f"Phase 7, {layers} layers", "largest that fits", count, "parameters")
    if not rows.rows:
        raise NewLLMError("Nothing could be measured, as said above.")
    rows.append_to(Path(arguments.out))
    say(f"{len(rows.rows)} rows appended to {arguments.out}")
    return {"rows": rows.rows} if arguments.json else 0


def phase8(arguments):
    """Phase 8 beside Phase 7: quality, speed and memory over the length of the text."""
    from newllm_lib.benchmarks import phase8 as bench
    from newllm_lib.benchmarks.rows import Rows, read

    parts, ways = _some(arguments.parts, bench.PARTS, "part"), _some(arguments.ways, bench.WAYS, "way")
    changes, rows, out = _changes(arguments.set), Rows("phase8"), Path(arguments.out)
    if "speed" in parts:
        say("Timing training steps of " + "; ".join(ways))
        seconds = float("inf") if arguments.minutes is None else 60 * arguments.minutes
        bench.speed(rows, ways, arguments.lengths, arguments.steps, changes, seconds)
    if "quality" in parts:
        say("Training, then evaluating " + "; ".join(ways))
        bench.quality(rows, ways, Path(arguments.work), changes)
    if not rows.rows:
        raise NewLLMError("Nothing could be measured, as said above.")
    rows.append_to(out)
    say(f"{len(rows.rows)} rows appended to {out}")
    if "speed" in parts:
        picture = Path(arguments.picture or "docs/phase8.png")
        bench.draw([row for row in read(out) if row["benchmark"] == "phase8"], picture)
        say(f"Picture: {picture}")
    return {"rows": rows.rows} if arguments.json else 0


def _changes(pairs) -> dict[str, str]:
    """`KEY=VALUE` words as a dictionary.

    Raises:
        UsageError: one has no equals sign.
    """
    for pair in pairs or ():
        if "=" not in pair:
            raise UsageError(f"--set {pair}: write it as KEY=VALUE, such as epochs=2.")
    return dict(pair.split("=", 1) for pair in pairs or ())


def table(arguments):
    """The README's tables from the CSV."""
    from newllm_lib.benchmarks.results import write_tables

    changed = write_tables(Path(arguments.out), Path(arguments.readme))
    say(f"{arguments.readme} {'has the figures of' if changed else 'already had the figures of'} {arguments.out}")
    return {"changed": changed} if arguments.json else 0


def _recorded(arguments, name: str, measure):
    """Run `measure(rows)`, append its rows, draw the picture."""
    from newllm_lib.benchmarks.results import draw, picture_of, refuse_another
    from newllm_lib.benchmarks.rows import Rows
    from newllm_lib.runs import check_file

    rows, out, picture = Rows(name), Path(arguments.out), Path(arguments.picture or picture_of(name))
    check_file(out, "--out", lambda text: text.startswith("date,benchmark,"))
    refuse_another(picture)
    measure(rows)
    if not rows.rows:
        say("Nothing to record.")
        return {"rows": []} if arguments.json else 0
    rows.append_to(out)
    draw(out, name, picture)
    say(f"{len(rows.rows)} rows appended to {out}; picture: {picture}. Next: newllm bench table")
    return {"rows": rows.rows} if arguments.json else 0


def _some(chosen, known, what: str) -> list[str]:
    """The names that were chosen, all where none was.

    Raises:
        UsageError: one that is not known.
    """
    for name in chosen or ():
        if name not in known:
            raise UsageError(f"There is no {what} {name!r}: use {', '.join(known)}.")
    return list(chosen or known)


def _another() -> subprocess.Popen:
    """The same command as one more process on the same journal, which records nothing itself."""
    words = list(sys.argv[1:])
    for number, word in enumerate(words):
        if word == "--jobs":
            words[number + 1] = "1"
        elif word.startswith("--jobs="):
            words[number] = "--jobs=1"
    return subprocess.Popen([sys.executable, "-m", "newllm_lib", *words, "--no_record"])


def _contests(where: dict):
    return [(c, m, s) for s in where["sizes"] for c in where["corpora"] for m in where["models"]]
