"""Runs as a picture: training loss, and validation bits per byte with the best evaluation marked."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

from newllm_lib.colab.history import History

# Blue, orange, green, purple of Okabe and Ito's palette: distinct in every common colour blindness.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#AA4499")
GREY = "#6b7280"
LN2 = math.log(2)


def draw(histories: Sequence[History], baselines: dict[str, float] | None = None):
    """A matplotlib Figure of one run or several overlaid.

    Args:
        baselines: name to bits per byte, drawn as dashed lines ("bigram": 2.31).
    """
    from matplotlib.figure import Figure  # not pyplot: no global state, so a thread may draw

    figure = Figure(figsize=(10, 3.6), dpi=110, layout="constrained")
    loss, bits = figure.subplots(1, 2, sharex=True)
    for history, colour in zip(histories, _colours(), strict=False):
        _draw_loss(loss, history, colour, _short(history.label) if len(histories) > 1 else "")
        _draw_bits(bits, history, colour)
    for name, value in (baselines or {}).items():
        bits.axhline(value, color=GREY, linewidth=1, linestyle=(0, (4, 3)))
        bits.annotate(
            f"{name} {value:.3f}",
            (0.01, value),
            xycoords=("axes fraction", "data"),
            xytext=(0, 3),
            textcoords="offset points",
            color=GREY,
            fontsize=8,
        )
    _finish(loss, "Loss (nats per token)", legend=True)
    _finish(bits, "Bits per byte on the validation text (✓ best)", legend=False)
    return figure


def png(figure) -> bytes:
    """The figure as PNG bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def smooth(values: list[float]) -> list[float]:
    """Exponential moving average over about a thirtieth of the values, without the bias of its start."""
    weight = max(0.0, min(0.95, 1 - 30 / max(1, len(values))))
    average, total, smoothed = 0.0, 0.0, []
    for value in values:
        average = weight * average + (1 - weight) * value
        total = weight * total + (1 - weight)
        smoothed.append(average / total)
    return smoothed


def _colours():
    while True:
        yield from COLOURS


def _short(label: str, most: int = 24) -> str:
    """A run's name as a legend has room for it; the ends tell runs apart."""
    return f"{label if len(label) <= most else label[: most // 2] + '…' + label[-most // 2 :]} "


def _draw_loss(axes, history: History, colour: str, name: str) -> None:
    x, y = history.series("loss")
    if y:
        axes.plot(x, y, color=colour, linewidth=0.8, alpha=0.3)
        axes.plot(x, smooth(y), color=colour, linewidth=1.8, label=f"{name}training")
    x, y = history.series("eval_loss")
    if y:
        axes.plot(
            x, y, _markers(y) + "--", color=colour, linewidth=1, markersize=3.5, label=f"{name}validation"
        )


def _draw_bits(axes, history: History, colour: str) -> None:
    x, y = history.series("eval_bits_per_byte")
    if not y:
        return
    axes.plot(x, y, _markers(y) + "-", color=colour, linewidth=1.8, markersize=3.5)
    best = history.best
    if best is not None and best.get("eval_bits_per_byte") is not None:
        place = (best.get("epoch", best["step"]), best["eval_bits_per_byte"])
        axes.plot(*place, "o", color=colour, markersize=7)
        axes.annotate(
            f"✓ {place[1]:.3f}",
            place,
            xytext=(6, 9),
            textcoords="offset points",
            ha="right",
            color=colour,
            fontsize=10,
            fontweight="bold",
        )


def _markers(values: list[float]) -> str:
    """Dots where there are few evaluations; a hundred would only thicken the line."""
    return "o" if len(values) <= 30 else ""


def _finish(axes, title: str, legend: bool) -> None:
    axes.set_title(title, fontsize=10.5, loc="left")
    axes.set_xlabel("epoch", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_lines():
        axes.margins(y=0.14)
        if legend:
            axes.legend(fontsize=8, frameon=False)
    else:
        axes.text(
            0.5, 0.5, "waiting for the first figures …", transform=axes.transAxes, ha="center", color=GREY
        )
