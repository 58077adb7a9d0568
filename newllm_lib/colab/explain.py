"""Pictures that explain a model: what surprises it, what its context vector keeps, what it remembers, where
its parameters are."""

from __future__ import annotations

import html
from collections.abc import Sequence

from newllm_lib.colab import pictures
from newllm_lib.colab.forms import Settings
from newllm_lib.console import count, say
from newllm_lib.data.show import DataSample, look
from newllm_lib.errors import UsageError
from newllm_lib.evaluation.inside import Gates, Recall, Surprise, gates, recall, surprise
from newllm_lib.evaluation.palette import GREY, styles
from newllm_lib.runs import Run

DISTANCES = (4, 8, 16, 32, 64, 128, 256, 512, 1024)
_MOST_BITS = 10.0  # a token of so many bits or more has the deepest colour
_TOKENS = 70  # of a picture with a column for each
_LETTER = 13.4  # points of a monospaced letter of which 96 fill a picture


def _loaded(run: Run | str):
    from newllm_lib.checkpoints import load_model
    from newllm_lib.device import probe

    found = load_model(run, device=probe().torch_device)
    return found.model, found.tokenizer


def _name(run: Run | str) -> str:
    return run.name if isinstance(run, Run) else str(run)


def show_data(settings: Settings) -> DataSample:
    """The chosen data as training reads it: three records with what the loss counts marked, and lengths.

    Raises:
        UsageError, NewLLMError: the data cannot be read.
    """
    recipe = settings.recipe()
    found = look(recipe)
    if recipe.task != "train":
        say(
            f"Shown as a New-LLM would read them. {recipe.base} reads the same dialogues with its own "
            "tokenizer and template."
        )
    words = (
        ""
        if found.tokens_per_word != found.tokens_per_word
        else f", {found.tokens_per_word:.2f} tokens a word"
    )
    say(
        f"The loss counts {found.loss_on} (marked). Vocabulary {found.vocabulary:,}{words}; a training block "
        f"holds {found.window} tokens."
    )
    pictures.show_html(data_html(found))
    pictures.show(lengths_figure(found), "lengths of the documents beside a training block")
    return found


def data_html(found: DataSample) -> str:
    """HTML: some records as they are packed, in the template; what the loss counts is marked."""
    parts = []
    for number, record in enumerate(found.records, 1):
        text = "".join(
            f"<span style='background:rgba(0,158,115,0.25)'>{html.escape(piece.text)}</span>"
            if piece.counts
            else html.escape(piece.text)
            for piece in record.pieces
        )
        head = f"record {number}: {record.tokens:,} tokens, the loss counts {record.counted:,}"
        parts.append(f"<b>{head}</b><div style='white-space:pre-wrap;margin:2px 0 10px'>{text}</div>")
    return "".join(parts)


def lengths_figure(found: DataSample):
    """A figure: how many of the first documents have which length in tokens, and where a training block
    ends."""
    import numpy as np

    figure = pictures.new_figure(10.0, 2.6)
    axes = figure.subplots()
    low, high = min(found.lengths), max([*found.lengths, found.window]) + 1
    axes.hist(found.lengths, bins=np.geomspace(low, high, 41), color="#009E73")
    axes.axvline(found.window, color=pictures.TEXT, linewidth=1.2)
    axes.set_xscale("log", base=2)  # a few long documents would press all others into one bar
    axes.xaxis.set_major_formatter("{x:,.0f}")
    title = (
        f"Lengths of {len(found.lengths):,} documents, tokens (the line: a training block, {found.window})"
    )
    pictures.plain_axes(axes, title)
    return figure


def show_surprise(text: str, *runs: Run | str) -> list[Surprise]:
    """The text coloured by the bits that each token costs, for each run, and their sum by the text's bytes.

    Raises:
        UsageError, NewLLMError: a model cannot be loaded, or there is no text.
    """
    found = [surprise(*_loaded(run), text) for run in runs]
    for run, one in zip(runs, found, strict=True):
        say(
            f"{_name(run)}: {sum(one.bits):,.0f} bits for {one.size:,} bytes = {one.bits_per_byte:.3f} "
            "bits per byte"
        )
    names = [_name(run) for run in runs]
    if pictures.as_png():  # where a notebook is stored, HTML loses its colours
        pictures.show(surprise_figure(names, found))
    else:
        pictures.show_html(surprise_html(names, found))
    return found


def surprise_html(names: Sequence[str], found: Sequence[Surprise]) -> str:
    """HTML: a column for each model; the deeper a token's colour, the more bits it cost."""
    columns = ""
    for name, style, one in zip(names, styles(names), found, strict=True):
        spans = "".join(
            f"<span title='{bits:.1f} bits' "
            f"style='background:rgba(213,94,0,{min(1.0, bits / _MOST_BITS) * 0.75:.2f});"
            f"border-radius:2px'>{html.escape(piece) or '·'}</span>"
            for piece, bits in zip(one.pieces, one.bits, strict=True)
        )
        total = (
            f"{sum(one.bits):,.0f} bits / {one.size:,} bytes = <b>{one.bits_per_byte:.3f} bits per byte</b>"
        )
        columns += (
            "<div style='flex:1 1 320px;min-width:0'>"
            f"<b style='color:{pictures.themed(style.colour)}'>{html.escape(name)}</b>"
            "<div style='white-space:pre-wrap;line-height:1.9;margin:4px "
            f"0'>{spans}</div><div>{total}</div></div>"
        )
    steps = "".join(
        f"<span style='background:rgba(213,94,0,{min(1.0, b / _MOST_BITS) * 0.75:.2f});padding:1px "
        f"7px'>{b}</span>"
        for b in (0, 1, 2, 4, 6, 8, 10)
    )
    legend = f"<div style='margin-bottom:6px'>bits a token: {steps}+ · 濃いほど予測しにくいトークン</div>"
    return f"{legend}<div style='display:flex;flex-wrap:wrap;gap:24px'>{columns}</div>"


def surprise_figure(names: Sequence[str], found: Sequence[Surprise], columns: int = 96):
    """The same as a figure, a block of lines for each model, so many letters wide."""
    from matplotlib.patches import Rectangle

    blocks = [_in_lines(one, columns) for one in found]
    rows = sum(max(row for row, *_ in block) + 3.2 for block in blocks)
    figure = pictures.new_figure(11.0, 0.26 * rows)
    figure.set_layout_engine("none")  # letters and their boxes must keep their sizes
    axes = figure.add_axes((0.01, 0.0, 0.98, 1.0))
    axes.set(xlim=(0, columns), ylim=(rows, 0))
    axes.set_axis_off()
    top = 0.0
    for name, style, one, block in zip(names, styles(names), found, blocks, strict=True):
        total = f"{sum(one.bits):,.0f} bits / {one.size:,} bytes = {one.bits_per_byte:.3f} bits per byte"
        axes.text(0, top + 0.6, f"{name}: {total}", color=style.colour, fontsize=12, va="center")
        for row, column, piece, bits in block:
            y, shade = top + 1.2 + row, min(1.0, bits / _MOST_BITS) * 0.75
            axes.add_patch(Rectangle((column, y), len(piece), 0.9, color="#D55E00", alpha=shade, linewidth=0))
            axes.text(column, y + 0.45, piece, family="monospace", fontsize=_LETTER, va="center")
        top += max(row for row, *_ in block) + 3.2
    return figure


def _in_lines(one: Surprise, columns: int) -> list[tuple[int, int, str, float]]:
    """(row, column, text, bits) of each token, set in lines of so many letters."""
    placed, row, column = [], 0, 0
    for piece, bits in zip(one.pieces, one.bits, strict=True):
        text = piece.replace("\n", "⏎").replace("$", r"\$") or "·"
        if column + len(text) > columns:
            row, column = row + 1, 0
        placed.append((row, column, text, bits))
        column += len(text)
    return placed


def show_gates(text: str, run: Run | str, layer: int = -1) -> Gates | None:
    """The context vector over a text: which channels are opened at which token; None of a model without one.

    Raises:
        NewLLMError: the model cannot be loaded.
    """
    try:
        found = gates(*_loaded(run), text, layer)
    except UsageError as error:  # a hub base in a notebook's Run all: the cells below are meant for it too
        say(str(error))
        return None
    say(
        f"Opened widest at {widest(found)}: there old memory makes room for new. Longest memory: "
        f"{count(float(found.memory().max()))} tokens."
    )
    pictures.show(gates_figure(found), "how far each channel of the context vector opens at each token")
    return found


def widest(found: Gates, most: int = 3) -> str:
    """The tokens at which most of the vector is replaced, each once: `“ What” (20 %), “ I” (17 %)`."""
    opened: dict[str, float] = {}
    shares = (1 - found.kept[1:]).mean(1).tolist()  # without a text's start, which clears all
    for piece, share in zip(found.pieces[1:], shares, strict=True):
        opened[piece] = max(share, opened.get(piece, 0.0))
    order = sorted(opened, key=opened.__getitem__, reverse=True)[:most]
    return ", ".join(f"“{piece}” ({100 * opened[piece]:.0f} %)" for piece in order)


def gates_figure(found: Gates):
    """A figure: above, how far the gates open at each token on average; below, each channel, the longest
    memory on top, the deeper the colour the more of it is replaced."""
    import numpy as np
    from matplotlib.colors import to_rgb

    first = int(found.kept[0].amax() == 0)  # a document's start clears all, and would dwarf the rest
    pieces = found.pieces[first : first + _TOKENS]
    shown = len(pieces)
    opened = (1 - found.kept[first : first + shown, found.order()]).numpy()
    figure = pictures.new_figure(11.0, 5.6)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(1, 3.2))
    above.bar(range(shown), 100 * opened.mean(1), color=styles(["new_llm"])[0].colour, width=0.85)
    pictures.plain_axes(above, "How far the gates open at each token", ylabel="% replaced")
    picture = np.zeros((opened.shape[1], shown, 4), dtype=np.float32)
    picture[..., :3] = to_rgb(styles(["tinygpt2"])[0].colour)
    picture[..., 3] = opened.T
    below.imshow(picture, aspect="auto", origin="lower", interpolation="nearest")
    pictures.plain_axes(below, "Each channel of the context vector: orange = replaced, blank = kept")
    below.grid(visible=False)
    memory = found.memory()[found.order()]
    places = [round(i * (len(memory) - 1) / 4) for i in range(5)]
    below.set_yticks(places, [f"{float(memory[place]):.0f}" for place in places])
    below.set_ylabel("remembers, tokens", fontsize=10.5, color=pictures.TEXT)
    labels = [piece.replace("\n", "⏎").replace("$", r"\$").strip() or "␣" for piece in pieces]
    below.set_xticks(range(shown), labels, rotation=90, fontsize=9)
    return figure


def show_recall(*runs: Run | str, distances: Sequence[int] = DISTANCES) -> list[Recall]:
    """A name given, and asked for so many tokens later: its probability for each run.

    Raises:
        UsageError, NewLLMError: a model cannot be loaded.
    """
    found = [recall(*_loaded(run), distances) for run in runs]
    for run, one in zip(runs, found, strict=True):
        sees = "any distance" if one.window is None else f"{one.window} tokens at most"
        say(
            f"{_name(run)} sees {sees}; after {one.distances[0]} tokens the name that was given is "
            f"{one.ratio[0]:.2f} times as likely as another ({_percent(one.known[0])}), after "
            f"{one.distances[-1]} {one.ratio[-1]:.2f} times"
        )
    pictures.show(recall_figure([_name(run) for run in runs], found), "probability of a name over distance")
    return found


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share >= 1e-4 else "under 0.01 %"


def recall_figure(names: Sequence[str], found: Sequence[Recall]):
    """A figure: how many times likelier the name that was given is than one that was not; at 1 it is
    forgotten. A line where a window ends."""
    figure = pictures.new_figure(10.0, 3.8)
    axes = figure.subplots()
    pictures.plain_axes(
        axes,
        "Asked for the name: how many times likelier it is than a name that was not given",
        "tokens since the name was given",
        "times",
    )
    axes.axhline(1.0, color=GREY, linewidth=1, linestyle=(0, (4, 3)))
    for name, style, one in zip(names, styles(names), found, strict=True):
        axes.plot(one.distances, one.ratio, style.marker + "-", color=style.colour, markersize=5, label=name)
        if one.window is not None and one.window <= max(one.distances):
            axes.axvline(one.window, color=style.colour, linewidth=1, linestyle=(0, (4, 3)))
            axes.annotate(
                f"{name}'s window ends ({one.window})",
                (one.window, 0),
                xycoords=("data", "axes fraction"),
                xytext=(4, 4),
                textcoords="offset points",
                fontsize=10,
                color=style.colour,
            )
    axes.set_xscale("log", base=2)
    axes.set_xticks(found[0].distances, [str(d) for d in found[0].distances])
    axes.minorticks_off()
    pictures.least_span(axes, 1.0, [r for one in found for r in one.ratio], (1.0,))
    axes.legend(fontsize=10.5, frameon=False, labelcolor=pictures.TEXT, loc="upper right")
    pictures.beside(axes, [(1.0, "forgotten", GREY)])
    return figure


def show_model(model) -> None:
    """Where a model's parameters are: its parts in the order in which a token goes through them."""
    pictures.show_html(model_html(model))


def model_html(model) -> str:
    """HTML: a box for each part with its share of the parameters."""
    parts, seen = [], set()
    body = getattr(model, "base_model", model)
    for name, child in body.named_children():
        blocks = (
            list(child.children()) if len(list(child.children())) > 1 and name in ("layers", "h") else [child]
        )
        for number, block in enumerate(blocks, 1):
            own = [p for p in block.parameters() if id(p) not in seen]
            seen.update(map(id, own))
            inner = ", ".join(part for part, _ in block.named_children()) if len(blocks) > 1 else ""
            label = f"{name} {number}" if len(blocks) > 1 else name
            parts.append((label, inner, sum(p.numel() for p in own)))
    total = sum(p.numel() for p in model.parameters())
    if not parts or not total:
        raise UsageError("This model has no parts to show.")
    grey, blue = pictures.themed(GREY), pictures.themed("#0072b2")
    rows = "".join(
        f"<div style='border:1px solid {grey};border-radius:6px;padding:4px 10px;margin:3px 0'>"
        f"<b>{html.escape(label)}</b> <span style='color:{grey}'>{html.escape(inner)}</span> "
        f"<span style='float:right'>{number:,}</span>"
        f"<div style='height:5px;width:{100 * number / total:.1f}%;background:{blue}'></div></div>"
        for label, inner, number in parts
        if number
    )
    return f"<div>{total:,} parameters; a token goes through from top to bottom</div>{rows}"
