"""A preference run's pictures: loss, margin, accuracy, log-probabilities, distance, GPU memory."""

from __future__ import annotations

import io
from pathlib import Path

from newllm_lib.evaluation.palette import GREY, TEXT, plain_axes
from newllm_lib.runs import Run, atomic_write_bytes, may_wait, read_status

_BLUE, _ORANGE, _GREEN = "#0072B2", "#D55E00", "#009E73"
_TRAINED, _HELD_OUT = (_BLUE, "training"), (_ORANGE, "held out")
# title, unit, training series, held-out series (each with colour and label), a line to compare with (_BASE:
# the base's held-out figure), and the least span of the axis: what learned nothing must not look dramatic
_BASE = "eval_loss"
_PANELS = (
    ("loss", "nats", {"loss": _TRAINED}, {"eval_loss": _HELD_OUT}, _BASE, 0.2),
    (
        "reward margin",
        "reward (beta x nats)",
        {"rewards/margins": _TRAINED, "margin": _TRAINED},
        {"eval_reward_margin": _HELD_OUT},
        0.0,
        0.4,
    ),
    ("reward", "mean", {"reward": _TRAINED}, {"eval_reward": _HELD_OUT}, None, 0.1),
    # by reward: the better answer gained more than the worse one (0.5 before training); by probability: it is
    # the likelier one
    (
        "accuracy",
        "share of pairs",
        {"rewards/accuracies": (_BLUE, "training, by reward"), "accuracy": (_BLUE, "training, by reward")},
        {
            "eval_accuracy": (_ORANGE, "held out, by probability"),
            "eval_reward_accuracy": (GREY, "held out, by reward"),
        },
        0.5,
        1.0,
    ),
    (
        "log-probability of the answers",
        "nats",
        {"logps/chosen": (_GREEN, "chosen"), "logps/rejected": (GREY, "rejected")},
        {"eval_chosen": (_GREEN, "chosen, held out"), "eval_rejected": (GREY, "rejected, held out")},
        None,
        4.0,
    ),
    ("distance from the base (KL)", "nats an answer", {}, {"eval_kl": _HELD_OUT}, 0.0, 1.0),
    ("TRL's estimate of the KL", "nats", {"kl": _TRAINED}, {}, 0.0, 1.0),
    ("length of the answers", "tokens", {"completions/mean_length": _TRAINED}, {}, None, 4.0),
    ("GPU memory", "GiB reserved", {"gpu_memory_gib": _TRAINED}, {}, 0.0, 1.0),
)


def preference_figure(run: Run):
    """A matplotlib figure of the run's `metrics.jsonl`; None while there is nothing to draw."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = list(run.metrics())
    if not any("loss" in row or "eval_loss" in row for row in rows):
        return None
    panels = [
        panel for panel in _PANELS if any(name in row for row in rows for name in (*panel[2], *panel[3]))
    ]
    total = read_status(run)["total_steps"]
    figure = Figure(figsize=(12, 3.2 * -(-len(panels) // 3)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(-(-len(panels) // 3), 3, squeeze=False).flat)
    for place, (title, unit, training, held_out, line, least) in zip(axes, panels, strict=False):
        _draw(place, rows, training, held_out)
        if line == _BASE:
            line = next((row[_BASE] for row in rows if row.get(_BASE) is not None), None)
        if line is not None:
            place.axhline(line, color=GREY, linewidth=0.8, linestyle=":")
        low, high = place.get_ylim()
        missing = max(0.0, least - (high - low)) / 2
        never_below_0 = title == "GPU memory" or "KL" in title
        place.set_ylim(*((0.0, max(least, high)) if never_below_0 else (low - missing, high + missing)))
        plain_axes(place, title, "optimizer step", unit)
        labels = place.get_legend_handles_labels()[1]
        if labels:
            place.legend(frameon=False, fontsize=9, labelcolor=TEXT, **_room_for(place, len(labels)))
        if total:  # the whole run from its first row on
            place.set_xlim(-0.02 * total, 1.02 * total)
    for place in axes[len(panels) :]:
        place.set_visible(False)
    figure.suptitle(run.name, color=TEXT)
    return figure


def _room_for(place, labels: int) -> dict:
    """Where a legend goes: of many lines above them all, for which the axis grows."""
    if labels < 4:
        return {}
    low, high = place.get_ylim()
    place.set_ylim(low, high + 0.35 * (high - low))
    return {"loc": "upper left", "ncols": 2}


def _draw(place, rows: list[dict], training: dict[str, tuple], held_out: dict[str, tuple]) -> None:
    for name, (colour, label) in training.items():
        found = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
        if found:
            place.plot(*zip(*found, strict=True), color=colour, linewidth=1, alpha=0.7, label=label)
    for name, (colour, label) in held_out.items():
        found = [row for row in rows if row.get(name) is not None]
        steps, values = [row["step"] for row in found], [row[name] for row in found]
        if not found:
            continue
        place.plot(steps, values, "o-", color=colour, markersize=4, label=label)
        if f"{name}_low" in found[0]:
            band = ([row[f"{name}_{side}"] for row in found] for side in ("low", "high"))
            place.fill_between(steps, *band, color=colour, alpha=0.15)


def plot_preferences(run: Run) -> Path | None:
    """Draw `curves.png` of a preference run; None while there is nothing to draw."""
    figure = preference_figure(run)
    if figure is None:
        return None
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    with may_wait(run.curves):
        atomic_write_bytes(run.curves, picture.getvalue(), durable=False)
    return run.curves
