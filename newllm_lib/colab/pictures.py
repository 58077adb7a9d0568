"""Pictures in a notebook: vector drawings that follow its theme, light or dark, and its width.

A matplotlib figure is drawn once in the light theme's colours; as HTML each of these becomes a CSS variable,
so the page that shows it decides. `NEWLLM_PICTURES=png` gives PNG instead, for notebooks that are stored with
what they show (GitHub shows no HTML)."""

from __future__ import annotations

import html as html_module
import io
import os
import re

from newllm_lib.colab.environment import shell
from newllm_lib.evaluation.palette import GRID as GRID, TEXT as TEXT, plain_axes as plain_axes

# light: dark. The first are Okabe and Ito's colours, for dark paper lightened without changing their hue.
_THEME = {
    "#0072b2": "#56b4e9",
    "#d55e00": "#f5894a",
    "#009e73": "#2fc9a0",
    "#cc79a7": "#e6a5c8",
    "#e69f00": "#f0b93a",
    "#56b4e9": "#8fd0f5",
    "#374151": "#d1d5db",  # text
    "#6b7280": "#9ca3af",  # what is said quietly
    "#e5e7eb": "#374151",  # grid
    "#ffffff": "#111827",
}
WIDEST = 1100  # pixels; wider than that a curve only becomes flatter


def _name(light: str) -> str:
    return f"--nl-{light[1:]}"


def _variables(column: int) -> str:
    return ";".join(f"{_name(light)}:{(light, dark)[column]}" for light, dark in _THEME.items())


# Colab, JupyterLab and VS Code each mark their page; elsewhere the system decides.
_DARK = "html[theme=dark] .nl,[data-jp-theme-light=false] .nl,.vscode-dark .nl,.theme-dark .nl"
_LIGHT = "html[theme=light] .nl,[data-jp-theme-light=true] .nl,.vscode-light .nl"
STYLE = (
    f"<style>.nl{{{_variables(0)};color:var({_name(TEXT)});max-width:{WIDEST}px;line-height:1.45;"
    "font-family:system-ui,sans-serif;font-size:14px;overflow-wrap:anywhere}"
    f"@media(prefers-color-scheme:dark){{.nl{{{_variables(1)}}}}}{_LIGHT}{{{_variables(0)}}}"
    f"{_DARK}{{{_variables(1)}}}.nl svg{{width:100%;height:auto}}"
    ".nl table{color:inherit;font-size:inherit}</style>"
)


def themed(light: str) -> str:
    """A colour of the light theme as CSS that follows the page's theme."""
    return f"var({_name(light.lower())},{light})"


def page(body: str) -> str:
    """HTML in the notebook's theme."""
    return f'{STYLE}<div class="nl">{body}</div>'


def svg(figure, described: str = "") -> str:
    """The figure as SVG that follows the page's theme and width; `described` is what a screen reader says."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    figure.patch.set_alpha(0)
    for axes in figure.axes:
        axes.patch.set_alpha(0)
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "newllm"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub("#[0-9a-f]{6}", lambda m: themed(m[0]) if m[0] in _THEME else m[0], text)
    label = html_module.escape(described, quote=True)
    return text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)


def png(figure) -> bytes:
    """The figure as PNG bytes, on white."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="white")
    return buffer.getvalue()


def as_png() -> bool:
    """Whether pictures are to be PNG here."""
    return os.environ.get("NEWLLM_PICTURES") == "png"


def new_figure(width: float = 10.0, height: float = 3.6):
    """An empty matplotlib figure; not pyplot's, which has global state, so that a thread may draw."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def least_span(axes, least: float, values, around=()) -> None:
    """A y axis that shows `values` (and `around`) with a margin, and never less than `least`: what differs by
    less than that shall not look like a cliff."""
    seen = [v for v in [*values, *around] if v is not None and v == v]
    if not seen:
        return
    low, high = min(seen), max(seen)
    missing = max(0.0, least - (high - low)) / 2
    margin = 0.08 * max(least, high - low)
    axes.set_ylim(low - missing - margin, high + missing + margin)


def beside(axes, labels) -> None:
    """Texts right of the axes at their heights, moved apart where they would touch, each with a line to its
    place.

    Args:
        labels: (height in data, text, colour).
    """
    low, high = axes.get_ylim()
    step = 0.075 * (high - low)
    placed: list[float] = []
    for y, _, _ in (ordered := sorted(labels)):
        placed.append(max(y, placed[-1] + step) if placed else y)
    over = placed[-1] - high if placed and placed[-1] > high else 0.0
    for i in reversed(range(len(placed))):  # from the top down again, into the axes
        limit = high if i == len(placed) - 1 else placed[i + 1] - step
        placed[i] = min(placed[i], limit) if over else placed[i]
    for at, (y, text, colour) in zip(placed, ordered, strict=True):
        axes.annotate(
            text,
            (1.0, y),
            xycoords=("axes fraction", "data"),
            xytext=(1.03, at),
            textcoords=("axes fraction", "data"),
            va="center",
            fontsize=10.5,
            color=colour,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.7, "shrinkA": 1, "shrinkB": 0},
        )


def show(figure, described: str = "") -> None:
    """Show the figure in the cell (nothing outside a notebook)."""
    if shell() is None:
        return
    from IPython.display import HTML, Image, display

    if as_png():
        display(Image(data=png(figure), format="png"))
    else:
        display(HTML(page(svg(figure, described))))


def show_html(body: str) -> None:
    """Show HTML in the cell, in the notebook's theme (nothing outside a notebook)."""
    if shell() is None:
        return
    from IPython.display import HTML, display

    display(HTML(page(body)))
