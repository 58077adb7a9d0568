"""What came out of a run, in a cell: a verdict and a picture first, then tables, and no headings of its
own."""

from __future__ import annotations

import contextlib
import html
from collections.abc import Iterator, Sequence

from newllm_lib import console
from newllm_lib.colab import pictures
from newllm_lib.colab.environment import on_colab, shell
from newllm_lib.colab.forms import Settings, in_form_words
from newllm_lib.colab.history import samples
from newllm_lib.console import say
from newllm_lib.evaluation.palette import GREY, styles
from newllm_lib.runs import Run

_COLUMNS = 4  # evaluations of a table of answers
_NEARLY = 0.05  # of a run: the evaluation at an epoch's end and the one at the run's end are one column


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """What is measured says its own lines; here the cell says them, better arranged."""
    console.mute()
    try:
        yield
    finally:
        console.mute(False)


def read(run: Run) -> None:
    """What a finished run's figures mean, what to do next, and its answers to the same questions over time.

    Raises:
        UsageError: it has no report yet.
    """
    from newllm_lib.training.report import FILE as REPORT, lines, read_report

    card = run.path / "card.md"
    if not (run.path / REPORT).is_file() and card.is_file():  # of a hub base that was taught
        page = card.read_text(encoding="utf-8").replace("![curves](curves.png)\n\n", "")
        # a heading would enter the notebook's table of contents
        say(in_form_words("\n".join(line.lstrip("# ") for line in page.splitlines())))
        return
    # a notebook names another run by itself (`background.place`)
    said = [line for line in lines(read_report(run)) if "--output_dir" not in line]
    say("\n".join(map(in_form_words, said)))
    rows = samples(run.samples_path)
    if rows and shell():
        pictures.show_html(answers_table(rows))
    elif rows:
        say(f"{rows[-1]['prompts'][0]} … {rows[-1]['answers'][0]}")


def answers_table(rows: Sequence[dict], most: int = _COLUMNS) -> str:
    """HTML: a row for each question, a column for each of some evaluations."""
    shown = _some(rows, most)
    heads = "".join(
        f"<th style='text-align:left'>step {row['step']:,}<br>{row['bits_per_byte']:.3f} bits/byte"
        f"{'<br>' + html.escape(row['warning']) if row['warning'] else ''}</th>"
        for row in shown
    )
    body = ""
    for number, prompt in enumerate(rows[-1]["prompts"]):
        cells = "".join(
            f"<td style='text-align:left;vertical-align:top'>{_short(row['answers'][number])}</td>"
            for row in shown
        )
        question = f"<td style='text-align:left;vertical-align:top'><b>{html.escape(prompt)}</b></td>"
        body += f"<tr>{question}{cells}</tr>"
    caption = "The most probable answers, evaluation after evaluation · 評価ごとの応答"
    return f"<div>{caption}</div><table><tr><th></th>{heads}</tr>{body}</table>"


def _some(rows: Sequence[dict], most: int) -> list[dict]:
    """The first, the last, and others evenly between; of two that are nearly at the same step the later."""
    last = rows[-1]
    apart = [row for row in rows[:-1] if last["step"] - row["step"] > _NEARLY * max(1, last["step"])] + [last]
    if len(apart) <= most:
        return apart
    return [apart[round(i * (len(apart) - 1) / (most - 1))] for i in range(most)]


def _short(answer: str, most: int = 120) -> str:
    """An answer, cut between words."""
    text = " ".join(answer.split()) or "(nothing)"
    if len(text) > most:
        cut = text.rfind(" ", most // 2, most)
        text = text[: cut if cut > 0 else most] + " …"
    return html.escape(text)


def measure(run: Run) -> dict:
    """Bits per byte on the test split beside counting: a sentence and a picture. Returns the figures.

    Raises:
        NewLLMError: the data cannot be read.
    """
    from newllm_lib.evaluation.evaluate_run import evaluate_run

    say(f"Measuring {run.name} on the test split …")
    with _quietly():
        figures = evaluate_run(run, baselines=True)
    say(verdict(figures))
    pictures.show(scale(run.name, figures), verdict(figures))
    return figures


def verdict(figures: dict) -> str:
    """What figures of `evaluate_run` say, in a sentence or two."""
    ours = figures["bits_per_byte"]
    said = (
        f"{ours:.3f} bits per byte on the test text, perplexity {figures['perplexity']:.1f} over "
        f"{figures['vocab_size']:,} tokens, next token right {100 * figures['accuracy']:.1f} %."
    )
    bigram = figures.get("baselines", {}).get("bigram")
    if bigram is None:
        return said
    limit = bigram["bits_per_byte"]
    if ours < limit:
        below = 100 * (limit - ours) / limit
        return f"{said} That is {below:.1f} % below the bigram table: it uses more than the last token."
    return f"{said} That is not below the bigram table ({limit:.3f}): train longer, or larger."


def scale(name: str, figures: dict):
    """A figure: the model, and the tables that only count, on one scale of bits per byte from 0."""
    figure = pictures.new_figure(10.0, 1.9)
    axes = figure.subplots()
    bars = [("bigram table", "bigram"), ("unigram table", "unigram")]
    found = [
        (label, figures["baselines"][key]["bits_per_byte"], GREY)
        for label, key in bars
        if key in figures.get("baselines", {})
    ]
    found.append(
        (
            name if len(name) < 30 else f"{name[:14]}…{name[-14:]}",
            figures["bits_per_byte"],
            styles([name])[0].colour,
        )
    )
    found.sort(key=lambda bar: -bar[1])
    drawn = axes.barh(
        [label for label, _, _ in found], [value for _, value, _ in found], color=[c for _, _, c in found]
    )
    axes.bar_label(
        drawn, [f"{value:.3f}" for _, value, _ in found], padding=4, fontsize=10.5, color=pictures.TEXT
    )
    pictures.plain_axes(axes, "Bits per byte on the test text (8: knows nothing; shorter is better)")
    axes.set_xlim(0, 1.12 * max(value for _, value, _ in found))
    axes.grid(visible=False, axis="y")
    return figure


def compare(one: Run, other: Run) -> dict:
    """Two runs on the same test text: the verdict and the picture, then the table and samples. See
    `evaluation.compare.compare`.

    Raises:
        UsageError, NewLLMError: a model cannot be loaded, or its data cannot be read.
    """
    from newllm_lib.evaluation.compare import compare as comparing

    say(f"Comparing {one.name} and {other.name} on the test split: prediction, samples, speed and memory …")
    with _quietly():
        result = comparing.compare(one, other, output_dir=one.path)
    say(result["verdict"])
    for note in result["notes"]:
        say(f"Note: {note}")
    if shell():
        from IPython.display import Image, display

        display(Image(result["files"][1]))
        pictures.show_html(comparison_tables(result))
    return result


def comparison_tables(result: dict) -> str:
    """HTML: the figures, and what both made of the same beginnings, folded away."""
    from newllm_lib.evaluation.compare.table import names, table

    header, rows = table(result)
    figures = _table(header, [[html.escape(cell) for cell in row] for row in rows])
    said = [
        [html.escape(prompt), *(_short(model["samples"][i], 240) for model in result["models"])]
        for i, prompt in enumerate(result["prompts"])
    ]
    return (
        f"<details open><summary>All figures · すべての数値</summary>{figures}</details>"
        f"<details open><summary>The same beginnings, continued · 同じ書き出しの続き</summary>"
        f"{_table(['beginning', *names(result['models'])], said, 'left')}</details>"
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], align: str = "right") -> str:
    heads = "".join(f"<th style='text-align:{align if i else 'left'}'>{h}</th>" for i, h in enumerate(header))
    body = "".join(
        "<tr>"
        + "".join(
            f"<td style='text-align:{align if i else 'left'};vertical-align:top'>{cell}</td>"
            for i, cell in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
    return f"<table><tr>{heads}</tr>{body}</table>"


# What the next notebook is after each recipe; its *Start from* takes this run.
_NEXT = {"wikitext": "02_dolly", "tinystories": "02_dolly", "demo": "02_dolly"}
_NEXT |= {"ultrachat": "04_dpo_lora", "ultrachat_200k": "04_dpo_lora"}
_COLAB = "https://colab.research.google.com/github/rato-tokyo/new-llm/blob/main/notebooks"
_WITH_IT = ("samples.md", "report.json", "card.md", "preferences.json", "comparison.md", "comparison.png")


def keep(settings: Settings, *kept: Run) -> None:
    """Keep the runs (Drive, if the form says so; one file to download), and name what can be done with the
    first.

    Raises:
        NewLLMError: Drive refuses, or the disk is full.
    """
    from newllm_lib.colab import drive
    from newllm_lib.colab.download import download

    for run in kept:
        if settings.extra["save_to_drive"] and on_colab():
            drive.save(run)
    first = kept[0]
    download(first, extra=[path for name in _WITH_IT if (path := first.path / name).is_file()])
    newllm = "!newllm" if on_colab() else "newllm"  # there a cell is the only terminal
    say(f"Give it away: {newllm} export {first.name}   (with --push you/name: to the Hugging Face hub)")
    say(f"Use it elsewhere: {newllm} chat {first.name}   or   {newllm} serve {first.name}")
    for line in go_on(settings, first):
        say(line)


def go_on(settings: Settings, run: Run) -> list[str]:
    """The next notebook, with this run chosen."""
    if settings.recipe().has_pairs:
        return [f"Go on: the same notebook with other pairs and *Start from* {run.name}"]
    if settings.recipe().model == "phase7":
        return ["Go on: the same notebook with phase8_small, or a larger preset"]
    notebook = _NEXT.get(settings.name, "03_ultrachat")
    place = f"{_COLAB}/{notebook}.ipynb" if on_colab() else f"notebooks/{notebook}.ipynb"
    return [f"Go on: {place} with *Start from* {run.name}"]


def give_away(run: Run, to: str = "", public: bool = False, gguf: bool = False) -> None:
    """Export a run's best model and upload it to the Hugging Face hub; without a name only say how.

    Args:
        to: its name there, `owner/name`, or empty.
        public: for everybody (else only its owner sees it; an existing one keeps what it is).
        gguf: also write a file for llama.cpp and Ollama.

    Raises:
        UsageError: no such name or no token, or no GGUF of this kind of model.
        NewLLMError: the model is damaged, the disk is full, or the hub refuses.
    """
    from newllm_lib.colab.secrets import hub_token
    from newllm_lib.export.folder import check_push, export, push
    from newllm_lib.export.gguf import write_gguf

    if not to and not gguf:
        say(
            'Nothing is given away yet: write to="your-name/your-model" into this cell and run it. It '
            "needs a token of the Hugging Face hub with write access, HF_TOKEN (in Colab a secret: the key "
            "icon)."
        )
        return
    token = check_push(to, hub_token(), "to=") if to else None  # before anything large is written
    folder = export(run)
    if gguf:
        write_gguf(folder, run.name)
    if to:
        say(f"Given away: {push(folder, to, token, private=not public)}")
