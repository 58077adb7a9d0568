"""What notebook 4 shows: pairs, packages, results, and a sweep over beta and learning rate."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import numpy as np

from newllm_lib.colab import background, curves, pictures
from newllm_lib.colab.environment import shell
from newllm_lib.colab.forms import Settings, in_form_words
from newllm_lib.console import say
from newllm_lib.device import stale_packages
from newllm_lib.errors import Interrupted, NewLLMError
from newllm_lib.evaluation.palette import styles
from newllm_lib.runs import Run, atomic_write_text, check_file

_KANA = re.compile("[\u3040-\u30ff]")
ENGLISH_BASE = "microsoft/DialoGPT-small"
_PACKAGES = ("torch", "numpy", "transformers", "datasets", "accelerate", "peft", "trl")


def packages() -> dict[str, str]:
    """Check that what this kernel has loaded is what is installed; returns the versions.

    Raises:
        NewLLMError: a package was changed after it was loaded: names it, and says what to do.
    """
    for line in stale_packages():
        raise NewLLMError(line)
    versions = {name: metadata.version(name) for name in _PACKAGES}
    say("  ".join(f"{name} {version}" for name, version in versions.items()))
    return versions


def look(settings: Settings, shown: int = 4):
    """Read the chosen pairs, show some, and report what superficial cues give away the better side."""
    from newllm_lib.data.preferences import load_preferences, shortcuts

    curves.warm_up()
    pairs = load_preferences(settings.recipe())
    say(pairs.description())
    if settings.recipe().base == ENGLISH_BASE and _KANA.search(pairs.train[0].chosen):
        say(
            f"⚠ {ENGLISH_BASE} was trained on English and hardly writes Japanese, and these pairs are "
            "Japanese: "
            "it can learn to rank them, not to write such answers. Choose a Japanese model in *Start from*."
        )
    for pair in pairs.train[:: max(1, len(pairs.train) // shown)][:shown]:
        say(
            f"\n  {pair.question()}\n    + {pair.chosen}\n    - {pair.rejected}"
            + (f"   ({pair.kind})" if pair.kind else "")
        )
    say()
    for name, accuracy in shortcuts(pairs.train, pairs.evaluation).items():
        say(
            f"a classifier that sees only the {name.replace('_', ' ')} is right in {100 * accuracy:.0f} % of "
            "the held-out pairs"
        )
    return pairs


def report(run: Run) -> None:
    """A preference run's result: the verdict, each held-out pair's shift as a picture, then the card's
    tables."""
    text = in_form_words((run.path / "card.md").read_text(encoding="utf-8"))
    lines = text.replace("![curves](curves.png)\n\n", "").splitlines()[2:]
    # a heading would enter the notebook's table of contents
    lines = [f"**{line.lstrip('# ')}**" if line.startswith("#") else line for line in lines]
    if not shell():
        say("\n".join(lines))
        return
    from IPython.display import Markdown, display

    display(Markdown(lines[0]))
    say(language(json.loads((run.path / "preferences.json").read_text(encoding="utf-8"))))
    pictures.show(
        shifts_figure(margin_shifts(run)), "each held-out pair's margin before and after, as an arrow"
    )
    display(Markdown("\n".join(lines[1:])))


def language(result: dict) -> str:
    """A line where the base does not write the pairs' language; empty where it does.

    Args:
        result: what a run's `preferences.json` holds.
    """
    written = [bool(_KANA.search(text)) for text in result["before"]["answers"]]
    if not any(_KANA.search(text) for text in result["preferred"]) or 2 * sum(written) >= len(written):
        return ""
    return (
        f"⚠ The base hardly writes Japanese ({sum(written)} of {len(written)} answers before training), "
        "and the "
        "pairs are Japanese: preferences rank what a model can say, they do not teach it the language. "
        "Choose a "
        "Japanese model in *Start from*, or let it first learn the preferred answers."
    )


def margin_shifts(run: Run) -> np.ndarray:
    """(pairs, 2): the margin log p(better) - log p(worse) of each held-out pair in nats, before and after.

    Raises:
        NewLLMError: the model, its base or the pairs cannot be read.
    """
    from newllm_lib.checkpoints import load_model
    from newllm_lib.data.preferences import encode_pairs, load_preferences
    from newllm_lib.device import probe
    from newllm_lib.evaluation.preferences import pair_log_probs

    found, device = load_model(run, device=probe().torch_device), probe().torch_device
    pairs = load_preferences(found.recipe).evaluation
    encoded = encode_pairs(pairs, found.tokenizer, found.recipe.max_seq_length)

    def margins(model) -> np.ndarray:
        log_probs = pair_log_probs(model, encoded.rows, found.tokenizer.pad_token_id)
        return (log_probs[:, 0] - log_probs[:, 1]).numpy()

    after = margins(found.model)
    if hasattr(found.model, "disable_adapter"):
        with found.model.disable_adapter():
            return np.stack([margins(found.model), after], 1)
    base = run.path / "base" if (run.path / "base").is_dir() else found.recipe.base
    return np.stack([margins(load_model(base, device=device).model), after], 1)


def shifts_figure(shifts: np.ndarray, most: int = 80):
    """A figure: an arrow for each held-out pair, from its margin before to after; right of the zero line the
    better answer is the likelier one.

    Args:
        shifts: (pairs, 2) as from `margin_shifts`.
        most: so many pairs are drawn, evenly over those ordered by their margin before.
    """
    order = shifts[:, 0].argsort()
    order = order[np.linspace(0, len(order) - 1, min(most, len(order))).round().astype(int)]
    figure = pictures.new_figure(10.0, 4.6)
    axes = figure.subplots()
    for place, (before, after) in enumerate(shifts[order]):
        arrow = {"arrowstyle": "-|>", "linewidth": 1.1, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 7}
        arrow["color"] = "#009E73" if after >= before else "#D55E00"
        drawn = axes.annotate("", (after, place), (before, place), arrowprops=arrow)
        drawn.arrow_patch.set_clip_box(axes.bbox)
    axes.axvline(0.0, color=pictures.TEXT, linewidth=1.2)
    near = shifts[_near(shifts)]
    low, high = min(0.0, float(near.min())), max(0.0, float(near.max()))
    missing = max(0.0, 2.0 - (high - low)) / 2  # two nats at least: what is less hardly changes an answer
    margin = 0.04 * (high - low + 2 * missing)
    axes.set_xlim(low - missing - margin, high + missing + margin)
    axes.set_ylim(-1, len(order))
    axes.set_yticks([])
    risen, right = (shifts[:, 1] > shifts[:, 0]).mean(), [(shifts[:, i] > 0).mean() for i in (0, 1)]
    pictures.plain_axes(
        axes,
        f"Each held-out pair, before → after: {100 * risen:.0f} % rose; better answer likelier "
        f"{100 * right[0]:.0f} → {100 * right[1]:.0f} %",
        "margin in nats: right of 0 the better answer is the likelier one"
        + (
            f" ({len(shifts) - len(near)} of {len(shifts)} pairs lie farther out)" * (len(near) < len(shifts))
        ),
    )
    return figure


def _near(shifts: np.ndarray) -> np.ndarray:
    """(pairs,) bool: all but the few whose margins are so far out that the others would be pressed into a
    line."""
    first, third = np.quantile(shifts, (0.25, 0.75))
    reach = 4 * (third - first)
    return ((shifts >= first - reach) & (shifts <= third + reach)).all(1)


def answer(run: Run | str, *questions: str, **settings) -> list[str]:
    """What a run answers to questions: `answer(run, "AIとは何ですか。", temperature=0.7)`."""
    from newllm_lib.checkpoints import load_model
    from newllm_lib.data.preferences import Pair
    from newllm_lib.data.records import Message
    from newllm_lib.device import probe
    from newllm_lib.evaluation.answers import answers

    loaded = load_model(run, device=probe().torch_device)
    pairs = [Pair((Message("user", question),), "", "") for question in questions]
    said = answers(loaded.model, loaded.tokenizer, pairs, settings.pop("max_new_tokens", 64), **settings)
    for question, text in zip(questions, said, strict=True):
        say(f"{question}\n  {text}")
    return said


def sweep(settings: Settings, betas: Sequence[float], learning_rates: Sequence[float], **more) -> list[dict]:
    """Train each beta with each learning rate in turn; a table and a picture. Finished runs are reused.

    A run whose answers collapse is a row like the others: it says so in its last column.
    """
    rows = []
    for beta in betas:
        for rate in learning_rates:
            started = background.start(settings, beta=beta, learning_rate=rate, **more)
            background.watch(started.run)
            problem = ""
            try:
                background.wait(started.run)
            except Interrupted:
                raise
            except NewLLMError as error:
                problem = str(error)
            result = started.run.path / "preferences.json"
            if not result.is_file():
                raise NewLLMError(problem or f"{started.run.name} has no result.")
            after = json.loads(result.read_text(encoding="utf-8"))["after"]["figures"]
            kept = {
                name: after[name]
                for name in ("accuracy", "accuracy_low", "accuracy_high", "margin", "loss", "kl")
            }
            rows.append(
                {"run": started.run.name, "beta": beta, "learning_rate": rate, **kept, "problem": problem}
            )
    show_sweep(rows)
    return rows


def show_sweep(rows: Sequence[dict], folder: str | Path = "checkpoints") -> None:
    """The table of a sweep, and its plot: accuracy against the distance from the base, for each beta."""
    lines = ["| beta | learning rate | accuracy | margin, nats | KL | |", "|---:|---:|---:|---:|---:|---|"]
    for row in rows:
        kl = "" if row["kl"] is None else f"{row['kl']:.2f}"
        spread = (
            f"{100 * row['accuracy']:.1f} % "
            f"({100 * row['accuracy_low']:.1f}–{100 * row['accuracy_high']:.1f})"
        )
        cells = (
            f"{row['beta']:g}",
            f"{row['learning_rate']:g}",
            spread,
            f"{row['margin']:+.2f}",
            kl,
            row["problem"][:60],
        )
        lines.append(f"| {' | '.join(cells)} |")
    check_file(Path(folder) / "sweep.md", "folder", lambda text: text.startswith(lines[0]))
    atomic_write_text(Path(folder) / "sweep.md", "\n".join(lines) + "\n")
    if not shell():
        say("\n".join(lines))
        return
    from IPython.display import Markdown, display

    display(Markdown("\n".join(lines)))
    pictures.show(sweep_figure(rows), "accuracy over the learning rate, a line for each beta")


def sweep_figure(rows: Sequence[dict]):
    """Held-out accuracy (with its interval) over the learning rate, a line for each beta."""
    figure = pictures.new_figure(7.0, 3.8)
    axes = figure.subplots()
    given = iter(styles([str(row["beta"]) for row in rows]))
    for beta in dict.fromkeys(row["beta"] for row in rows):
        here = [row for row in rows if row["beta"] == beta]
        rates, values = [row["learning_rate"] for row in here], [row["accuracy"] for row in here]
        below = [row["accuracy"] - row["accuracy_low"] for row in here]
        errors = [below, [row["accuracy_high"] - row["accuracy"] for row in here]]
        colour, marker = next(given)
        axes.errorbar(
            rates, values, yerr=errors, marker=marker, color=colour, capsize=3, label=f"beta {beta:g}"
        )
    axes.axhline(0.5, color="#6b7280", linewidth=0.8, linestyle=":")
    axes.set_xscale("log")
    axes.set_ylim(0, 1)
    pictures.plain_axes(
        axes, "Held-out pairs whose better answer is the likelier one", "learning rate", "share"
    )
    axes.legend(frameon=False, labelcolor=pictures.TEXT)
    return figure
