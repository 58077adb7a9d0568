"""A run as a picture: loss of each logged step, bits per byte of each evaluation; and its rows as JSON."""

from __future__ import annotations

import io
import json
from pathlib import Path

from newllm_lib.runs import atomic_write_bytes, may_wait


def plot_curves(run) -> Path | None:
    """Draw `curves.png` of a run from its `metrics.jsonl`; None while there is nothing to draw."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from newllm_lib.evaluation.palette import plain_axes, styles

    rows = list(run.metrics())
    steps = [r for r in rows if "loss" in r]
    drawn = {"eval_bits_per_byte", "eval_loss", "epoch"}
    evaluations = [r for r in rows if drawn <= r.keys() and not r.get("final")]
    if not steps and not evaluations:
        return None
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    style = styles([run.name])[0]
    left.plot([r["step"] for r in steps], [r["loss"] for r in steps], color=style.colour, label="training")
    left.plot(
        [r["step"] for r in evaluations],
        [r["eval_loss"] for r in evaluations],
        f"{style.marker}--",
        color=style.colour,
        ms=4,
        label="validation",
    )
    plain_axes(left, run.name, "optimizer step", "loss (nats a token)")
    left.legend(frameon=False)
    if evaluations:
        x, y = [r["epoch"] for r in evaluations], [r["eval_bits_per_byte"] for r in evaluations]
        best = min(range(len(y)), key=y.__getitem__)
        right.plot(x, y, f"{style.marker}-", color=style.colour, ms=4)
        right.plot(x[best], y[best], style.marker, color=style.colour, ms=9, label=f"best: {y[best]:.3f}")
        right.legend(frameon=False)
    plain_axes(right, "How well it predicts", "epoch", "bits per byte (validation)")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    with may_wait(run.curves):
        atomic_write_bytes(run.curves, picture.getvalue(), durable=False)
    return run.curves


def write_training_log(run) -> None:
    """`training_log.json`, the Phase 7 guide's name for the rows of `metrics.jsonl` as one list."""
    rows = ",\n".join(json.dumps(row) for row in run.metrics())
    with may_wait(path := run.path / "training_log.json"):
        atomic_write_bytes(path, f"[\n{rows}\n]\n".encode(), durable=False)
