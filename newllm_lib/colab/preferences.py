"""What notebook 4 shows: pairs, packages, results, and a sweep over beta and learning rate."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from newllm_lib.colab import background
from newllm_lib.colab.environment import shell
from newllm_lib.colab.forms import Settings
from newllm_lib.console import say
from newllm_lib.device import stale_packages
from newllm_lib.errors import Interrupted, NewLLMError
from newllm_lib.runs import Run, atomic_write_text, check_file

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

    pairs = load_preferences(settings.recipe())
    say(pairs.description())
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
    """The run's card: figures before and after, by kind, and answers side by side."""
    text = (run.path / "card.md").read_text(encoding="utf-8").replace("![curves](curves.png)\n\n", "")
    if shell():
        from IPython.display import Markdown, display

        display(Markdown(text))
    else:
        say(text)


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
                background.check(started)
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
    from IPython.display import Image, Markdown, display

    from newllm_lib.colab import curves

    display(Markdown("\n".join(lines)))
    display(Image(data=curves.png(sweep_figure(rows)), format="png"))


def sweep_figure(rows: Sequence[dict]):
    """Held-out accuracy (with its interval) over the learning rate, a line for each beta."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for beta in dict.fromkeys(row["beta"] for row in rows):
        here = [row for row in rows if row["beta"] == beta]
        rates, values = [row["learning_rate"] for row in here], [row["accuracy"] for row in here]
        below = [row["accuracy"] - row["accuracy_low"] for row in here]
        errors = [below, [row["accuracy_high"] - row["accuracy"] for row in here]]
        axes.errorbar(rates, values, yerr=errors, marker="o", capsize=3, label=f"beta {beta:g}")
    axes.axhline(0.5, color="#999999", linewidth=0.8, linestyle=":")
    axes.set(xscale="log", xlabel="learning rate", ylabel="accuracy on held-out pairs")
    axes.legend(frameon=False)
    axes.grid(alpha=0.25)
    return figure
