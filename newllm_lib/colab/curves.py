"""Runs as a picture: training loss, and validation bits per byte with the best evaluation marked.

It is right from the first second: the x axis is as long as the run will be, and the y axes hold what a model
that knows nothing would score, and later what counting does."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence

from newllm_lib.colab import pictures
from newllm_lib.colab.environment import shell
from newllm_lib.colab.history import History
from newllm_lib.evaluation.palette import GREY, Style, styles

LEAST_LOSS, LEAST_BITS = (
    0.2,
    0.1,
)  # what a difference is worth: axes never show less, in nats and bits per byte


def draw(
    histories: Sequence[History],
    baselines: dict[str, float] | None = None,
    total_steps: int | None = None,
    guessing: float | None = None,
):
    """A matplotlib Figure of one run or several overlaid.

    Args:
        baselines: name to bits per byte, drawn as dashed lines ("bigram": 2.31).
        total_steps: of the longest run; the x axis ends there.
        guessing: the loss in nats of a model that knows nothing.
    """
    figure = pictures.new_figure()
    loss, bits = figure.subplots(1, 2, sharex=True)
    several = len(histories) > 1
    given = styles([history.label for history in histories])
    for history, style in zip(histories, given, strict=True):
        _draw_loss(loss, history, style, f"{short(history.label)} " if several else "")
        _draw_bits(bits, history, style)
    end = total_steps or max([h.step for h in histories], default=0)
    loss.set_xlim(0, end or 1)
    pictures.plain_axes(loss, "Loss, nats a token", "optimizer step")
    pictures.plain_axes(bits, "Bits per byte, validation text (✓ best)", "optimizer step")
    _loss_axis(loss, histories, guessing)
    _bits_axis(bits, histories, baselines or {}, given)
    if not end:  # how long the run will be is not known yet: no scale rather than a wrong one
        loss.set_xticks([])
    return figure


def warm_up() -> None:
    """In a notebook, let a thread draw a picture that nobody sees, so that the first one which is seen does
    not wait for matplotlib, its fonts and the widgets."""

    def draw_one() -> None:
        with contextlib.suppress(ImportError):
            import ipywidgets  # noqa: F401
        pictures.svg(draw([], total_steps=100))

    if shell() is not None:
        threading.Thread(target=draw_one, name="warm-up", daemon=True).start()


def short(label: str, most: int = 24) -> str:
    """A run's name as a legend has room for it; the ends tell runs apart."""
    return label if len(label) <= most else label[: most // 2] + "…" + label[-most // 2 :]


def short_labels(names: list[str]) -> list[str]:
    """Names without the ending that all share: `new_llm`, `tinygpt2` for two runs on the same data."""
    words = [name.split("_") for name in names]
    while len(set(names)) > 1 and len({w[-1] for w in words}) == 1 and min(map(len, words)) > 1:
        words = [w[:-1] for w in words]
    return ["_".join(w) for w in words]


def smooth(values: list[float]) -> list[float]:
    """Exponential moving average over about a thirtieth of the values, without the bias of its start."""
    weight = max(0.0, min(0.95, 1 - 30 / max(1, len(values))))
    average, total, smoothed = 0.0, 0.0, []
    for value in values:
        average = weight * average + (1 - weight) * value
        total = weight * total + (1 - weight)
        smoothed.append(average / total)
    return smoothed


def _draw_loss(axes, history: History, style: Style, name: str) -> None:
    x, y = history.series("loss")
    if y:
        axes.plot(x, y, color=style.colour, linewidth=0.8, alpha=0.3)
        # one point is no line
        marker = style.marker if len(y) == 1 else ""
        axes.plot(x, smooth(y), marker + "-", color=style.colour, linewidth=1.8, label=f"{name}training")
    x, y = history.series("eval_loss")
    if y:
        axes.plot(
            x,
            y,
            _markers(y, style) + "--",
            color=style.colour,
            linewidth=1,
            markersize=4,
            label=f"{name}validation",
            clip_on=False,
        )


def _draw_bits(axes, history: History, style: Style) -> None:
    x, y = history.series("eval_bits_per_byte")
    if not y:
        return
    axes.plot(
        x, y, _markers(y, style) + "-", color=style.colour, linewidth=1.8, markersize=4.5, clip_on=False
    )
    if place := _best(history):
        axes.plot(*place, style.marker, color=style.colour, markersize=8, clip_on=False)


def _best(history: History) -> tuple[int, float] | None:
    best = history.best
    if best is None or best.get("eval_bits_per_byte") is None:
        return None
    return best["step"], best["eval_bits_per_byte"]


def _markers(values: list[float], style: Style) -> str:
    """The model's shape where there are few evaluations; a hundred would only thicken the line."""
    return style.marker if len(values) <= 30 else ""


def _loss_axis(axes, histories: Sequence[History], guessing: float | None) -> None:
    values = [v for h in histories for key in ("loss", "eval_loss") for v in h.series(key)[1]]
    if len(values) < 3 and guessing:
        axes.axhline(guessing, color=GREY, linewidth=1, linestyle=(0, (4, 3)))
        pictures.beside(axes, [(guessing, "knows nothing", GREY)])
        values = [*values, 0.0, guessing]
    if values:
        pictures.least_span(axes, LEAST_LOSS, values)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=10, frameon=False, labelcolor=pictures.TEXT, loc="upper right")
    if not values or not any(h.step for h in histories):
        _waiting(axes)


def _bits_axis(
    axes, histories: Sequence[History], baselines: dict[str, float], given: Sequence[Style]
) -> None:
    labels = [
        (place[1], f"✓ {place[1]:.3f}", style.colour)
        for history, style in zip(histories, given, strict=True)
        if (place := _best(history))
    ]
    values = [v for h in histories for v in h.series("eval_bits_per_byte")[1]]
    for name, value in baselines.items():
        axes.axhline(value, color=GREY, linewidth=1, linestyle=(0, (4, 3)))
        labels.append((value, f"{name} {value:.3f}", GREY))
    if values:
        pictures.least_span(axes, LEAST_BITS, values, baselines.values())
    else:
        axes.set_ylim(0, 8.4)
        labels.append((8.0, "knows nothing", GREY))
        axes.axhline(8.0, color=GREY, linewidth=1, linestyle=(0, (4, 3)))
        axes.text(
            0.5,
            0.5,
            "after the first evaluation",
            transform=axes.transAxes,
            ha="center",
            color=GREY,
            fontsize=11,
        )
    pictures.beside(axes, labels)


def _waiting(axes) -> None:
    if not axes.lines:  # not even what a model that knows nothing would score: a scale would be made up
        axes.set_yticks([])
    axes.text(
        0.5, 0.5, "after the first steps", transform=axes.transAxes, ha="center", color=GREY, fontsize=11
    )
