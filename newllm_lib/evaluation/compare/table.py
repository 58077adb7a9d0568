"""A comparison as a table: aligned text for the terminal and the log, Markdown for the file."""

from __future__ import annotations

from collections.abc import Callable

from newllm_lib.console import markdown_cell

# key, label with unit, how a value is written, what is better ("" where neither is)
ROWS: tuple[tuple[str, str, Callable, str], ...] = (
    ("parameters", "parameters", "{:,}".format, ""),
    ("bits_per_byte", "bits per byte", "{:.4f}".format, "lower"),
    ("perplexity", "perplexity", "{:.2f}".format, "lower"),
    ("vocab_size", "  its vocabulary, tokens", "{:,}".format, ""),
    ("unk_share", "  its <unk> share", "{:.1%}".format, ""),
    ("word_perplexity", "word perplexity", "{:.1f}".format, "lower"),
    ("accuracy", "accuracy", "{:.1%}".format, "higher"),
    ("ms_per_batch", "forward, ms/batch", "{:.1f}".format, "lower"),
    ("tokens_per_second", "forward, tokens/s", "{:,.0f}".format, "higher"),
    ("training_ms_per_batch", "a step uncompiled, ms/batch", "{:.1f}".format, "lower"),
    ("training_tokens_per_second", "a step uncompiled, tokens/s", "{:,.0f}".format, "higher"),
    ("trained_tokens_per_second", "training as logged, tokens/s", "{:,.0f}".format, "higher"),
    ("decode_tokens_per_second", "decoding, tokens/s", "{:,.0f}".format, "higher"),
    ("decode_memory_bytes", "memory of one text, KiB", lambda n: f"{n / 1024:,.1f}", "lower"),
    ("peak_memory_mib", "peak memory, MiB", "{:,.1f}".format, "lower"),
    ("context_effective_rank", "context dimensions in use", "{:.0f}".format, ""),
)
NONE = "-"


def table(result: dict) -> tuple[list[str], list[list[str]]]:
    """Header and rows of cells: measure, run_a, run_b, the difference in %, then each baseline."""
    models, baselines = result["models"], result["baselines"]
    header = ["", *names(models), "difference", *baselines]
    rows = []
    for key, label, write, better in ROWS:
        cells = [_cell(column.get(key), write) for column in (*models, *baselines.values())]
        if any(c != NONE for c in cells):
            rows.append(
                [label, *cells[:2], _difference(result["difference_percent"].get(key), better), *cells[2:]]
            )
    return header, rows


def names(models: list[dict]) -> list[str]:
    """What the two are called: by model where they differ in that, else by run."""
    return [m["label" if models[0]["kind"] != models[1]["kind"] else "name"] for m in models]


def _cell(value, write: Callable) -> str:
    return NONE if value is None or value != value else write(value)


def _difference(percent: float | None, better: str) -> str:
    """`-4.9 % better`; exactly equal figures have no sign."""
    if percent is None:
        return NONE
    if percent == 0:
        return "0.0 %"
    if not better:
        return f"{percent:+.1f} %"
    return f"{percent:+.1f} % {'better' if (percent < 0) == (better == 'lower') else 'worse'}"


def as_text(result: dict) -> str:
    """The table, the samples and the verdict as plain text."""
    header, rows = table(result)
    widths = [max(len(r[i]) for r in [header, *rows]) for i in range(len(header))]

    def line(cells):
        first, *others = cells
        return "  ".join(
            [first.ljust(widths[0]), *(c.rjust(w) for c, w in zip(others, widths[1:], strict=True))]
        )

    ruler = "-" * (sum(widths) + 2 * (len(widths) - 1))
    parts = ["", line(header), ruler, *(line(r) for r in rows), ruler, _measured(result), ""]
    for number, prompt in enumerate(result["prompts"]):
        parts += [f"prompt {number + 1}: {_indented(prompt)}"]
        for model, name in zip(result["models"], names(result["models"]), strict=True):
            if number < len(model["samples"]):
                parts.append(f"  {name}: {_indented(model['samples'][number].strip()) or '(nothing)'}")
        parts.append("")
    return "\n".join([*parts, *(f"Note: {n}" for n in result["notes"]), result["verdict"]])


def _indented(text: str) -> str:
    return text.replace("\n", "\n    ")


def _measured(result: dict) -> str:
    """How the figures were taken."""
    a = result["models"][0]
    tokens = f"{a['tokens']:,} tokens ({a['bytes']:,} bytes{', lower-cased' if a['lower_cased'] else ''})"
    ours, other = names(result["models"])
    text = f"{result['split']} split: {tokens}. Differences are {ours}'s in % of {other}'s."
    if a.get("ms_per_batch") is not None:
        text += (
            f" Times: median of 5, {a['batch_size']} x {a['length']} tokens; decoding one text, token by "
            "token."
        )
    return text


def as_markdown(result: dict) -> str:
    """The same as a Markdown page that shows comparison.png."""
    header, rows = table(result)
    lines = [f"# {result['models'][0]['name']} and {result['models'][1]['name']}", "", result["verdict"], ""]
    lines += [f"> {note}" for note in result["notes"]] + ([""] if result["notes"] else [])
    lines += ["![comparison](comparison.png)", "", _row(header), _row(["---"] + ["---:"] * (len(header) - 1))]
    lines += [_row([markdown_cell(c) for c in r]) for r in rows]
    lines += ["", _measured(result), ""]
    if result["prompts"]:
        lines += ["## Continuations", "", f"Sampled with {_sampling(result['settings'])}.", ""]
        lines += [_row(["prompt", *names(result["models"])]), _row(["---"] * 3)]
        for number, prompt in enumerate(result["prompts"]):
            answers = [m["samples"][number] if number < len(m["samples"]) else NONE for m in result["models"]]
            lines.append(_row([markdown_cell(t.strip()) for t in (prompt, *answers)]))
    return "\n".join(lines) + "\n"


def _sampling(settings) -> str:
    shown = ("temperature", "top_k", "top_p", "seed")
    return ", ".join(f"{name} {getattr(settings, name)}" for name in shown)


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
