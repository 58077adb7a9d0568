"""A comparison as one picture: quality (with counting's), how each got there, and speed."""

from __future__ import annotations

import io
import math
import textwrap
from pathlib import Path

from newllm_lib.evaluation.palette import Style, styles
from newllm_lib.runs import atomic_write_bytes

BASELINE_COLOURS = {"unigram": "#555555", "bigram": "#6b7280"}  # greys: colours are the models'
_SPEEDS = (
    ("trained_tokens_per_second", "training\n(as logged)"),
    ("tokens_per_second", "forward"),
    ("decode_tokens_per_second", "decoding\n(one text)"),
)


def draw(result: dict, path: Path) -> None:
    """Draw a result of `compare` and write it to `path` (PNG).

    Raises:
        NewLLMError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [_bits_per_byte]
    if any(m["curve"] for m in result["models"]):
        panels.append(_curves)
    if any(m.get(key) for m in result["models"] for key, _ in _SPEEDS):
        panels.append(_speed)
    figure = Figure(figsize=(5 * len(panels), 5), dpi=130)
    figure.set_layout_engine("constrained", w_pad=0.15, h_pad=0.1)
    FigureCanvasAgg(figure)
    figure.suptitle(_title(result, 45 * len(panels)), fontsize=13)
    for place, panel in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), place + 1)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
        panel(axes, result)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    atomic_write_bytes(path, picture.getvalue())


def _title(result: dict, width: int) -> str:
    """The verdict's first sentence, in lines of `width` characters."""
    return textwrap.fill(result["verdict"].split(". ")[0].rstrip(".") + ".", width)


def _labels(result: dict) -> list[str]:
    """Short names of the two models for axes and legends."""
    models = result["models"]
    if models[0]["label"] != models[1]["label"]:
        return [m["label"] for m in models]
    return [textwrap.fill(m["name"], 20) for m in models]


def _styles(result: dict) -> list[Style]:
    return styles([m["kind"] if m["label"] != "Phase 8" else "phase8" for m in result["models"]])


def _bits_per_byte(axes, result: dict) -> None:
    """Bars from 0, so that their lengths may be compared; baselines as lines."""
    models = result["models"]
    values = [m["bits_per_byte"] for m in models]
    bars = axes.bar(_labels(result), values, color=[s.colour for s in _styles(result)], width=0.6)
    box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
    axes.bar_label(
        bars, [f"{v:.3f}" for v in values], padding=3, fontsize=12, fontweight="bold", bbox=box, zorder=4
    )
    axes.set_xlim(-0.5, 2.25)  # room for the baselines' names beside the bars
    limits = sorted(((f["bits_per_byte"], name) for name, f in result["baselines"].items()), reverse=True)
    # the higher line's name stands above it, the lower one's below
    for place, (limit, name) in enumerate(limits):
        colour, above = BASELINE_COLOURS[name], place == 0
        axes.axhline(limit, color=colour, linestyle="--", linewidth=1.6, zorder=3)
        axes.annotate(
            f"{name}\n{limit:.3f}",
            (1, limit),
            xycoords=("axes fraction", "data"),
            xytext=(-2, 3 if above else -4),
            textcoords="offset points",
            ha="right",
            va="bottom" if above else "top",
            color=colour,
            fontsize=11,
            fontweight="bold",
        )
    axes.set_ylim(0, 1.18 * max([*values, *(limit for limit, _ in limits)]))
    axes.set(title=f"Prediction, {result['split']} split", ylabel="bits per byte (lower is better)")


def _curves(axes, result: dict) -> None:
    for model, label, (colour, marker) in zip(
        result["models"], _labels(result), _styles(result), strict=True
    ):
        if model["curve"]:
            epochs, values = zip(*model["curve"], strict=True)
            axes.plot(epochs, values, color=colour, marker=marker, markersize=5, label=label)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False, fontsize=11)
    axes.grid(alpha=0.3)
    axes.set(title="Validation during training", xlabel="epoch", ylabel="bits per byte (lower is better)")


def _speed(axes, result: dict) -> None:
    """Grouped bars on a log scale: training and decoding differ by orders of magnitude."""
    shown = [(key, label) for key, label in _SPEEDS if all(m.get(key) for m in result["models"])]
    for index, (model, label, style) in enumerate(
        zip(result["models"], _labels(result), _styles(result), strict=True)
    ):
        places = [i + (index - 0.5) * 0.38 for i in range(len(shown))]
        bars = axes.bar(places, [model[key] for key, _ in shown], width=0.36, color=style.colour, label=label)
        axes.bar_label(bars, [_short(model[key]) for key, _ in shown], padding=2, fontsize=10)
    values = [m[key] for m in result["models"] for key, _ in shown]
    axes.set_yscale("log")
    axes.set_ylim(10 ** math.floor(math.log10(min(values))), 40 * max(values))  # room for the legend
    axes.grid(axis="y", alpha=0.3)
    axes.set_xticks(range(len(shown)), [label for _, label in shown])
    axes.legend(frameon=False, fontsize=11, ncols=2, loc="upper right")
    axes.set(title="Speed on this machine", ylabel="tokens/s, log scale (higher is better)")


def _short(number: float) -> str:
    from newllm_lib.console import count

    return count(number)
