"""One colour and one shape for each model, in every picture: Okabe and Ito's palette, which every kind of
colour blindness tells apart; the shapes are for who sees no colours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

GREY, TEXT, GRID = "#6b7280", "#374151", "#e5e7eb"  # said quietly, said, drawn behind


class Style(NamedTuple):
    """How a model is drawn: `marker` is matplotlib's."""

    colour: str
    marker: str


_STYLES = {
    "new_llm": Style("#0072B2", "o"),
    "tinygpt2": Style("#D55E00", "s"),
    "phase7": Style("#009E73", "^"),
    "phase8": Style("#CC79A7", "D"),
}
_SPARE = (Style("#E69F00", "v"), Style("#56B4E9", "P"))


def styles(names: Sequence[str]) -> list[Style]:
    """The style of each model or run by its name or kind; the second of a kind gets another colour and
    shape."""
    given: list[Style] = []
    free = [*_STYLES.values(), *_SPARE]
    for name in names:
        plain = name.lower().replace("tiny_gpt2", "tinygpt2").replace("-", "_").replace(" ", "")
        own = next((style for kind, style in _STYLES.items() if plain.startswith(kind)), None)
        if own is None or own in given:
            own = next((s for s in (*_SPARE, *free) if s not in given), free[len(given) % len(free)])
        given.append(own)
    return given


def plain_axes(axes, title: str, xlabel: str = "", ylabel: str = "") -> None:
    """Quiet axes with a title on the left, in the theme's colours."""
    axes.set_title(title, fontsize=12, loc="left", color=TEXT)
    axes.set_xlabel(xlabel, fontsize=10.5, color=TEXT)
    axes.set_ylabel(ylabel, fontsize=10.5, color=TEXT)
    axes.tick_params(labelsize=10, colors=TEXT)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
