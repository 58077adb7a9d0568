"""The tables of docs/results from `results.csv`, and pictures of its figures: nothing is typed twice."""

from __future__ import annotations

import argparse
import re
import textwrap
from collections import Counter
from pathlib import Path

from benchmarks.common import Rows, add_out, picture, read, record
from newllm_lib.console import say
from newllm_lib.errors import NewLLMError

_BEGIN, _END = "<!-- {name}: made by `newllm bench table` -->", "<!-- end of {name} -->"
_NAMES = {
    "new_llm": "New-LLM",
    "attention": "modern attention",
    "attention_helped": "… with convolutions and skips",
    "tiny_gpt2": "TinyGPT2",
    "lstm": "LSTM",
    "seed": "seed recurrence",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_out(parser)
    parser.add_argument(
        "--pages",
        default="docs/results",
        help="the folder whose pages' tables are written (default: docs/results)",
    )


def main(arguments: argparse.Namespace) -> dict | None:
    changed = write_tables(Path(arguments.out), Path(arguments.pages))
    done = "have the figures of" if changed else "already had the figures of"
    say(f"The pages of {arguments.pages} {done} {arguments.out}")
    return {"changed": changed} if arguments.json else None


def record_and_draw(rows: Rows, arguments: argparse.Namespace) -> dict | None:
    """Append the rows to `--out`, and draw the newest figures of their benchmark to `--picture`."""
    result = record(rows, arguments)
    path = Path(arguments.picture or picture_of(rows.benchmark))
    draw(Path(arguments.out), rows.benchmark, path)
    say(f"Picture: {path}. Next: newllm bench table")
    return result


def newest(rows: list[dict], benchmark: str, metric: str) -> list[dict]:
    """The newest row of each model whose metric begins so, in file order; none of 0.1.0's word memory."""
    found: dict[tuple[str, str], dict] = {}
    for row in rows:
        if (
            row["benchmark"] == benchmark
            and row["metric"].startswith(metric)
            and "word_memory" not in row["note"]
        ):
            found[row["model"], row["metric"]] = row
    return list(found.values())


def picture_of(benchmark: str) -> Path:
    """Where its picture lies in the clone."""
    return Path("docs", "images", benchmark.replace(" ", "-") + ".png")


def write_tables(results: Path, pages: Path) -> list[str]:
    """Put the tables of `results` between the marks of the pages in a folder; names of what changed.

    Raises:
        NewLLMError: a file is missing, or no page has a mark for a table.
    """
    for path in (results, pages):
        if not path.exists():
            raise NewLLMError(f"There is no {path}: run this in the clone's folder.")
    rows, texts = (
        read(results),
        {page: page.read_text(encoding="utf-8") for page in sorted(pages.glob("*.md"))},
    )
    before = dict(texts)
    for name, make in TABLES.items():
        begin, end = _BEGIN.format(name=name), _END.format(name=name)
        page = next((page for page, text in texts.items() if begin in text and end in text), None)
        if page is None:
            raise NewLLMError(
                f"No page of {pages} has a place for the table {name}: put in {begin} and {end}."
            )
        table = make(rows) if any(row["benchmark"] == name for row in rows) else "Not measured yet."
        drawn = pages.parent / "images" / picture_of(name).name
        shown = f"\n\n![{name}, measured](../images/{drawn.name})" if drawn.is_file() else ""
        part = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        text = f"{begin}\n{table}{shown}\n{end}"
        texts[page] = part.sub(lambda _, text=text: text, texts[page])
    changed = [page for page, text in texts.items() if text != before[page]]
    for page in changed:
        page.write_text(texts[page], encoding="utf-8")
    return [page.name for page in changed]


def speed_table(rows: list[dict]) -> str:
    """Training steps, the slowest first."""
    memory = {row["model"]: row["value"] for row in newest(rows, "speed", "peak memory")}
    waited = {row["model"]: row["value"] for row in newest(rows, "speed", "each training step")}
    lines = ["| training step | tokens/s | when each step is waited for | GiB |", "|---|---:|---:|---:|"]
    for row in _steps(rows, "speed"):
        name = row["model"]
        cells = _millions(row["value"]), _millions(waited.get(name)), _number(memory.get(name), ".2f")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cpu_speed_table(rows: list[dict]) -> str:
    """Training steps on a CPU, the slowest first, and the blocks of tokens they were taken with."""
    steps = _steps(rows, "speed on a CPU")
    lines = [f"| {row['model']} | {float(row['value']):,.0f} | {row['note']} |" for row in steps]
    return "\n".join(["| training step | tokens/s | |", "|---|---:|---|", *lines])


def _steps(rows: list[dict], benchmark: str) -> list[dict]:
    return sorted(newest(rows, benchmark, "training step"), key=lambda row: float(row["value"]))


def _millions(value: str | None) -> str:
    return "–" if value is None else f"{float(value) / 1e6:.2f} M"


def decode_table(rows: list[dict]) -> str:
    """Tokens a second after a short and a long history, and MiB on the device where they were counted."""
    found, memory = newest(rows, "decode", "decoding after"), newest(rows, "decode", "memory after")
    histories = sorted({_history(r) for r in found})
    heads = " | ".join(f"after {h:,} tokens" for h in histories)
    lines = ["| one text, tokens/s | " + heads + " |", "|---" + "|---:" * len(histories) + "|"]
    for model in dict.fromkeys(r["model"] for r in found):
        alone = {
            _history(r): r["value"] for r in found if r["model"] == model and r["metric"].endswith("batch 1")
        }
        held = {
            _history(r): r["value"] for r in memory if r["model"] == model and r["metric"].endswith("batch 1")
        }
        cells = [
            _number(alone.get(h), ",.0f") + (f" ({float(held[h]):,.1f} MiB)" if h in held else "")
            for h in histories
        ]
        lines.append(f"| {model} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def quality_table(rows: list[dict]) -> str:
    """Bits per byte of each test text and size, with the deviation over seeds where there is one."""
    found = newest(rows, "quality", "bits per byte")
    spread = {(r["model"], _what(r)): r["value"] for r in newest(rows, "quality", "deviation")}
    models = [m for m in _NAMES if any(r["model"] == m for r in found)]
    lines = [
        "| bits per byte | " + " | ".join(_NAMES[m] for m in models) + " |",
        "|---" + "|---:" * len(models) + "|",
    ]
    for what in sorted({_what(r) for r in found}, key=_text_and_size):
        cells = []
        for model in models:
            value = next((r["value"] for r in found if r["model"] == model and _what(r) == what), None)
            deviation = spread.get((model, what))
            cells.append(_number(value, ".3f") + (f" ± {float(deviation):.3f}" if deviation else ""))
        lines.append(f"| {what} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _text_and_size(what: str) -> tuple[str, float]:
    """ "chitchat test, 4M" -> ("chitchat test", 4.0)."""
    text, size = what.rsplit(", ", 1)
    return text, float(size.rstrip("M"))


def _what(row: dict) -> str:
    """ "bits per byte, chitchat test, 4M" -> "chitchat test, 4M"."""
    return row["metric"].split(", ", 1)[1]


def _history(row: dict) -> int:
    return int(re.search(r"after ([\d,]+) tokens", row["metric"])[1].replace(",", ""))


def _number(value: str | None, how: str) -> str:
    return "–" if value is None else format(float(value), how)


TABLES = {
    "speed": speed_table,
    "speed on a CPU": cpu_speed_table,
    "quality": quality_table,
    "decode": decode_table,
}


def draw(results: Path, benchmark: str, path: Path) -> None:
    """A picture of the newest figures of `speed`, `decode` or `quality`."""
    rows = read(results)
    about = next((r for r in reversed(rows) if r["benchmark"] == benchmark), None)
    with picture(path, about) as axis:
        _DRAWN[benchmark](axis, rows)


def _draw_speed(axis, rows, benchmark="speed", unit=(1e6, "million ")) -> None:
    steps, (scale, word) = _steps(rows, benchmark), unit
    colours = ["tab:orange" if r["model"].startswith("New-LLM") else "tab:gray" for r in steps]
    names = [textwrap.fill(r["model"], 36) for r in steps]
    bars = axis.barh(names, [float(r["value"]) / scale for r in steps], color=colours)
    axis.bar_label(bars, fmt="%.2f" if word else "{:,.0f}", padding=3)
    axis.margins(x=0.16)  # room for the figures
    axis.set_xlabel(f"training, {word}tokens a second")


def _draw_decode(axis, rows) -> None:
    found = [r for r in newest(rows, "decode", "decoding after") if r["metric"].endswith("batch 1")]
    for model in dict.fromkeys(r["model"] for r in found):
        mine = sorted((r for r in found if r["model"] == model), key=_history)
        axis.plot([_history(r) for r in mine], [float(r["value"]) for r in mine], marker="o", label=model)
    axis.set(xscale="log", yscale="log", xlabel="tokens of history", ylabel="decoding, tokens a second")
    axis.legend()


def _draw_quality(axis, rows) -> None:
    """Who was trained in the most sizes: the text that was measured most often, and the same less its longest
    document."""
    found = newest(rows, "quality", "bits per byte")
    spread = {(r["model"], _what(r)): float(r["value"]) for r in newest(rows, "quality", "deviation")}
    text = Counter(_text_and_size(_what(r))[0] for r in sorted(found, key=_what)).most_common(1)[0][0]
    sizes_of = Counter(r["model"] for r in found if _text_and_size(_what(r))[0] == text)
    for colour, model in enumerate(m for m in _NAMES if sizes_of[m] == max(sizes_of.values())):
        for of, line in ((text, "-"), (f"{text} less its longest document", "--")):
            mine = sorted(
                (r for r in found if r["model"] == model and _text_and_size(_what(r))[0] == of), key=_size
            )
            values, errors = (
                [float(r["value"]) for r in mine],
                [spread.get((model, _what(r)), 0.0) for r in mine],
            )
            style = {"fmt": f"o{line}", "color": f"C{colour}", "capsize": 3}
            axis.errorbar(
                [_size(r) for r in mine],
                values,
                errors,
                label=_NAMES[model] if line == "-" else None,
                **style,
            )
    sizes = sorted({_size(r) for r in found})
    axis.set_xscale("log")
    axis.set_xticks(sizes, [f"{size:g}M" for size in sizes])
    axis.set_xticks([], minor=True)
    axis.grid(axis="y", alpha=0.3)
    axis.set(xlabel=f"parameters (dashed: {text} less its longest document)", ylabel=f"bits per byte, {text}")
    axis.legend()


def _size(row: dict) -> float:
    return _text_and_size(_what(row))[1]


_DRAWN = {
    "speed": _draw_speed,
    "speed on a CPU": lambda axis, rows: _draw_speed(axis, rows, "speed on a CPU", (1, "")),
    "decode": _draw_decode,
    "quality": _draw_quality,
}
