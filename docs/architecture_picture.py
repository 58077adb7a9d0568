"""Draws docs/architecture.png: New-LLM's block, and the one vector that goes from token to token.

    python docs/architecture_picture.py
"""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

BLUE, ORANGE, GREEN, GREY, INK = "#0072B2", "#D55E00", "#009E73", "#6b7280", "#111827"


def box(axes, x, y, width, height, text, colour, fill="#ffffff", size=9.0):
    shape = FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0.02,rounding_size=0.08", ec=colour, fc=fill, lw=1.6)
    axes.add_patch(shape)
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=size, color=INK, linespacing=1.35)


def arrow(axes, start, end, colour=GREY, width=1.4, bend=0.0, style="-|>"):
    axes.add_patch(
        FancyArrowPatch(start, end, arrowstyle=style, mutation_scale=11, lw=width, color=colour, shrinkA=0, shrinkB=0,
                        connectionstyle=f"arc3,rad={bend}")
    )  # fmt: skip


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
            axes.text(x - 0.34, y + high / 2 + 0.1, f"$c_{{{column}}}$", ha="center", fontsize=11, color=ORANGE)
        y = 0.85 + 1.35 * layers
        box(axes, x, y, wide, high, "head", GREY, "#f9fafb")
        following = [*tokens[1:], "the"][column]
        arrow(axes, (x + wide / 2, y + high), (x + wide / 2, y + high + 0.35))
        axes.text(x + wide / 2, y + high + 0.43, f"“{following}”?", ha="center", fontsize=10, color=GREY)
    for layer in range(layers):
        y = 0.85 + 1.35 * layer + high / 2
        arrow(axes, (0.6 + 2.0 * 3 + wide, y), (0.6 + 2.0 * 4 - 0.05, y), ORANGE, 2.2)
    axes.text(0.0, -0.42, "The vector (and the convolution's last three inputs) has the same size after\n4 tokens and after "
              "4 million. Its gates look at the tokens only, never at\nthe vector itself: in training all columns are computed "
              "at once.",
              fontsize=9.5, color=INK, va="top")  # fmt: skip
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
        axes.text(stream, end, "+", ha="center", va="center", fontsize=12, fontweight="bold",
                  bbox={"boxstyle": "circle,pad=0.12", "fc": "white", "ec": INK})  # fmt: skip
    arrow(axes, (stream, 5.75), (1.47, 6.41), bend=0.0)
    axes.set(xlim=(-0.5, 8.0), ylim=(-0.15, 7.7))


def main() -> None:
    figure = Figure(figsize=(13.5, 5.6), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.12, 1))
    over_time(left)
    one_block(right)
    for axes in (left, right):
        axes.axis("off")
    figure.savefig(Path(__file__).with_name("architecture.png"))


if __name__ == "__main__":
    main()
