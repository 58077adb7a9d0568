"""Draws architecture.png (New-LLM: its block, and the one vector that goes from token to token) and
architecture_phase7.png (what a Phase 7 block sees of the text, and how it is put together).

    python docs/architecture_picture.py
"""

from __future__ import annotations

import math
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import Ellipse, FancyArrowPatch, FancyBboxPatch

BLUE, ORANGE, GREEN, GREY, INK = "#0072B2", "#D55E00", "#009E73", "#6b7280", "#111827"


def box(axes, x, y, width, height, text, colour, fill="#ffffff", size=9.0):
    shape = FancyBboxPatch(
        (x, y), width, height, boxstyle="round,pad=0.02,rounding_size=0.08", ec=colour, fc=fill, lw=1.6
    )
    axes.add_patch(shape)
    axes.text(
        x + width / 2,
        y + height / 2,
        text,
        ha="center",
        va="center",
        fontsize=size,
        color=INK,
        linespacing=1.35,
    )


def arrow(axes, start, end, colour=GREY, width=1.4, bend=0.0, style="-|>"):
    axes.add_patch(
        FancyArrowPatch(
            start,
            end,
            arrowstyle=style,
            mutation_scale=11,
            lw=width,
            color=colour,
            shrinkA=0,
            shrinkB=0,
            connectionstyle=f"arc3,rad={bend}",
        )
    )


def over_time(axes):
    """Left: tokens side by side, the context vector carried through each layer."""
    axes.set_title("Over time: one vector a layer is all that is carried", loc="left", fontsize=11)
    tokens, layers, wide, high = ["The", "cat", "sat", "on"], 2, 1.35, 0.62
    for column, token in enumerate(tokens):
        x = 0.6 + 2.0 * column
        axes.text(x + wide / 2, 0.12, token, ha="center", fontsize=11, fontweight="bold")
        arrow(axes, (x + wide / 2, 0.4), (x + wide / 2, 0.85))
        for layer in range(layers):
            y = 0.85 + 1.35 * layer
            box(axes, x, y, wide, high, f"block {layer + 1}", BLUE, "#eff6ff")
            arrow(axes, (x + wide / 2, y + high), (x + wide / 2, y + 1.35))
            arrow(axes, (x - 0.65, y + high / 2), (x - 0.03, y + high / 2), ORANGE, 2.2)
            axes.text(
                x - 0.34, y + high / 2 + 0.1, f"$c_{{{column}}}$", ha="center", fontsize=11, color=ORANGE
            )
        y = 0.85 + 1.35 * layers
        box(axes, x, y, wide, high, "head", GREY, "#f9fafb")
        following = [*tokens[1:], "the"][column]
        arrow(axes, (x + wide / 2, y + high), (x + wide / 2, y + high + 0.35))
        axes.text(x + wide / 2, y + high + 0.43, f"“{following}”?", ha="center", fontsize=10, color=GREY)
    for layer in range(layers):
        y = 0.85 + 1.35 * layer + high / 2
        arrow(axes, (0.6 + 2.0 * 3 + wide, y), (0.6 + 2.0 * 4 - 0.05, y), ORANGE, 2.2)
    axes.text(
        0.0,
        -0.42,
        "The vector (and the convolution's last three inputs) has the same size after\n4 tokens and after 4 "
        "million. Its gates look at the tokens only, never at\nthe vector itself: in training all columns "
        "are computed at once.",
        fontsize=9.5,
        color=INK,
        va="top",
    )
    axes.set(xlim=(-0.15, 8.8), ylim=(-1.3, 5.0))


def one_block(axes):
    """Right: what a block does with one token."""
    axes.set_title("One block, for one token", loc="left", fontsize=11)
    stream = 0.55
    arrow(axes, (stream, 0.0), (stream, 7.5), INK, 2.0)
    axes.text(stream - 0.12, 0.05, "residual\nstream", ha="right", fontsize=8.5, color=GREY, va="bottom")
    box(axes, 1.5, 0.45, 3.6, 0.55, "RMSNorm", GREY, "#f9fafb")
    box(axes, 1.5, 1.35, 3.6, 0.62, "short convolution: the last 4 tokens", BLUE, "#eff6ff")
    box(axes, 1.5, 2.3, 1.05, 0.7, "gate\n$a_t$", BLUE, "#eff6ff")
    box(axes, 2.78, 2.3, 1.05, 0.7, "input\nSiLU$(i_t)$", BLUE, "#eff6ff")
    box(axes, 4.05, 2.3, 1.05, 0.7, "read-out\nSiLU$(z_t)$", BLUE, "#eff6ff")
    box(axes, 1.5, 3.4, 2.33, 0.75, "$c_t = a_t\\,c_{t-1} + (1-a_t)\\,$input", ORANGE, "#fff7ed", 8.4)
    box(axes, 1.5, 4.5, 3.6, 0.6, "RMSNorm$(c_t)$ · read-out, then a matrix", BLUE, "#eff6ff")
    box(axes, 1.5, 6.1, 3.6, 0.62, "RMSNorm, MLP with squared ReLU", GREEN, "#ecfdf5")
    arrow(axes, (stream, 0.72), (1.47, 0.72))
    arrow(axes, (3.3, 1.02), (3.3, 1.33))
    for x in (2.02, 3.3, 4.57):
        arrow(axes, (3.3 if x == 3.3 else x, 1.99), (x, 2.28))
    arrow(axes, (2.02, 3.02), (2.02, 3.38))
    arrow(axes, (3.3, 3.02), (3.3, 3.38))
    arrow(axes, (2.66, 4.17), (2.66, 4.48))
    arrow(axes, (4.57, 3.02), (4.57, 4.48))
    arrow(axes, (0.75, 3.78), (1.47, 3.78), ORANGE, 2.2)
    axes.text(0.72, 3.92, "$c_{t-1}$", fontsize=11, color=ORANGE)
    arrow(axes, (3.86, 3.78), (5.75, 3.78), ORANGE, 2.2)
    axes.text(5.3, 3.92, "$c_t$ to the next token", fontsize=10, color=ORANGE)
    for y, end in ((4.8, 5.35), (6.41, 6.95)):
        arrow(axes, (5.13, y), (5.45, y), style="-")
        arrow(axes, (5.45, y), (5.45, end), style="-")
        arrow(axes, (5.45, end), (stream + 0.13, end))
        axes.text(
            stream,
            end,
            "+",
            ha="center",
            va="center",
            fontsize=12,
            fontweight="bold",
            bbox={"boxstyle": "circle,pad=0.12", "fc": "white", "ec": INK},
        )
    arrow(axes, (stream, 5.75), (1.47, 6.41), bend=0.0)
    axes.set(xlim=(-0.5, 8.0), ylim=(-0.15, 7.7))


def near_and_far(axes):
    """Left: which tokens a Phase 7 block attends to, and which reach it only through the carried state."""
    axes.set_title(
        "What one token sees: the last 128 by distance, everything older through a state",
        loc="left",
        fontsize=11,
    )
    tokens, window, wide = 12, 5, 0.62
    left = 0.35 + (tokens - window) * wide
    style = {"boxstyle": "round,pad=0.03", "ec": BLUE, "fc": "#eff6ff", "lw": 1.6}
    axes.add_patch(FancyBboxPatch((left - 0.05, 0.35), window * wide, 0.62, **style))
    axes.text(left - 0.12, 1.05, "the window of attention", ha="right", fontsize=9.5, color=BLUE, va="bottom")
    for column in range(tokens):
        x = 0.35 + column * wide
        name, colour = f"$x_{{{column}}}$" if column else "…", BLUE if column >= tokens - window else GREY
        box(axes, x + 0.04, 0.42, wide - 0.18, 0.48, name, colour, "#ffffff", 8.5)
    query = (0.35 + (tokens - 0.5) * wide - 0.05, 0.95)
    for column in range(tokens - window, tokens - 1):
        arrow(axes, (0.35 + (column + 0.5) * wide - 0.05, 0.95), (query[0], 1.75), BLUE, 1.1, bend=-0.15)
    arrow(axes, query, (query[0], 1.75), BLUE, 1.1)
    axes.text(
        3.1,
        3.25,
        "scores are distances in the Poincaré ball,\nhyperbolic space of a learned curvature: near the\n"
        "rim everything is far from everything else,\nas the leaves of a tree are",
        fontsize=9.5,
        color=BLUE,
        va="center",
    )
    ball(axes, 1.75, 3.25, 1.0)
    for column in range(1, tokens):
        x = 0.35 + column * wide
        arrow(axes, (x - wide + 0.3, -1.0), (x + 0.24, -1.0), ORANGE, 1.8)
    for column in range(tokens):
        x = 0.35 + (column + 0.5) * wide - 0.05
        arrow(axes, (x, 0.38), (x, -0.93), GREY, 0.7)
    axes.text(
        0.35,
        -1.2,
        "AR-SSM: a vector of fixed size, carried from the first token on; each token opens as many\nof its "
        "ranks as it needs. Memory and time for a token stay the same however long the text.",
        fontsize=9.5,
        color=ORANGE,
        va="top",
    )
    axes.set(xlim=(0, 8.6), ylim=(-2.2, 4.9))


def ball(axes, x, y, radius, aspect=1.12):
    """The Poincaré disc with lines of equal distance from a query: they crowd towards the rim."""
    circle = lambda share, **style: axes.add_patch(  # noqa: E731
        Ellipse((x, y), 2 * aspect * radius * share, 2 * radius * share, ec=BLUE, **style)
    )
    circle(1.0, fc="#eff6ff", lw=1.4)
    for distance in (0.5, 1.0, 1.5, 2.0, 2.5):
        circle(math.tanh(distance / 2), fc="none", lw=0.6, ls=":")
    places = {"q": (0.4, 0.0), "k_9": (1.0, 0.4), "k_7": (2.6, 0.8), "k_8": (4.4, 0.9), "k_{10}": (5.6, 0.6)}
    for name, (angle, share) in places.items():
        px, py = x + aspect * radius * share * math.cos(angle), y + radius * share * math.sin(angle)
        axes.plot([px], [py], "o", color=ORANGE if name == "q" else INK, markersize=4)
        axes.text(px + 0.06, py + 0.05, f"${name}$", fontsize=8.5, color=INK)


def phase7_block(axes):
    """Right: how the block is put together."""
    axes.set_title("One Phase 7 block, for one token", loc="left", fontsize=11)
    stream = 0.55
    arrow(axes, (stream, 0.0), (stream, 7.5), INK, 2.0)
    axes.text(stream - 0.12, 0.05, "residual\nstream", ha="right", fontsize=8.5, color=GREY, va="bottom")
    box(axes, 1.5, 0.45, 5.3, 0.55, "RMSNorm", GREY, "#f9fafb")
    box(axes, 1.5, 1.5, 1.25, 1.35, "AR-SSM:\nstate $c_t$,\nread out by\nrank gates", ORANGE, "#fff7ed", 8.6)
    attends = "hyperbolic attention\nto the last 128\n(queries and keys\nturned by position)"
    box(axes, 3.0, 1.5, 2.2, 1.35, attends, BLUE, "#eff6ff", 8.6)
    box(axes, 5.45, 1.5, 1.35, 1.35, "gate\n$g=\\sigma(Gx)$", GREY, "#f9fafb", 8.6)
    box(
        axes,
        1.5,
        3.5,
        5.3,
        0.7,
        "$g\\cdot$ attention $+\\;(1-g)\\cdot$ AR-SSM, then a matrix",
        BLUE,
        "#eff6ff",
    )
    box(axes, 1.5, 5.35, 5.3, 0.62, "RMSNorm, SwiGLU: down(SiLU(gate $x$) · up $x$)", GREEN, "#ecfdf5")
    arrow(axes, (stream, 0.72), (1.47, 0.72))
    for x in (2.12, 4.1, 6.12):
        arrow(axes, (x, 1.02), (x, 1.48))
        arrow(axes, (x, 2.87), (x, 3.48))
    arrow(axes, (0.85, 1.8), (1.47, 1.8), ORANGE, 2.0)
    axes.text(0.78, 1.9, "$c_{t-1}$", fontsize=10, color=ORANGE)
    arrow(axes, (1.47, 2.55), (0.85, 2.55), ORANGE, 2.0)
    axes.text(0.78, 2.65, "$c_t$", fontsize=10, color=ORANGE)
    for y, end in ((3.85, 4.6), (5.66, 6.35)):
        arrow(axes, (6.83, y), (7.1, y), style="-")
        arrow(axes, (7.1, y), (7.1, end), style="-")
        arrow(axes, (7.1, end), (stream + 0.13, end))
        axes.text(
            stream,
            end,
            "+",
            ha="center",
            va="center",
            fontsize=12,
            fontweight="bold",
            bbox={"boxstyle": "circle,pad=0.12", "fc": "white", "ec": INK},
        )
    arrow(axes, (stream, 5.0), (1.47, 5.66))
    axes.text(
        1.5,
        6.75,
        "Below all blocks the embedding, above them the head tied to it: a tensor train\nwith phases, two "
        "small cores instead of vocabulary × width numbers.",
        fontsize=9,
        color=GREY,
        va="bottom",
    )
    axes.set(xlim=(-0.5, 8.0), ylim=(-0.15, 7.7))


def save(name: str, *halves, widths=(1.12, 1)) -> None:
    figure = Figure(figsize=(13.5, 5.6), dpi=110, layout="constrained")
    for axes, draw in zip(figure.subplots(1, 2, width_ratios=widths), halves, strict=True):
        draw(axes)
        axes.axis("off")
    figure.savefig(Path(__file__).with_name(name))


def main() -> None:
    save("architecture.png", over_time, one_block)
    save("architecture_phase7.png", near_and_far, phase7_block)


if __name__ == "__main__":
    main()
