"""Phase 8 and Phase 7 at equal parameters: quality after equal tokens, speed and memory by length.

    newllm bench phase8 [--parts speed quality] [--lengths 512 65536] [--set epochs=2]

Phase 7 appears twice: with its window of 128 tokens, and with a window as long as the text, which is what
linear attention stands for. A step of the speed part is forward, backward and AdamW on random tokens, not
compiled, in texts of each length that are together as many tokens as the longest text has. The quality part
is `newllm train` and `newllm evaluate` on ChitChat.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from pathlib import Path

from benchmarks import common
from benchmarks.common import Rows
from newllm_lib.console import count, say
from newllm_lib.recipe import Recipe, load_recipe

WAYS = {  # recipe, and whether attention sees the whole text
    "Phase 8": ("phase8_small", False),
    "Phase 7, full attention": ("phase7_small", True),
    "Phase 7": ("phase7_small", False),
}
LENGTHS = (512, 1024, 2048, 4096, 8192, 16_384, 32_768, 65_536)
LENGTHS_WITHOUT_GPU = (128, 256, 512, 1024, 2048)
PARTS = ("speed", "quality")
_FASTER = "Phase 8", "Phase 7, full attention"  # whose crossover is looked for


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_out(parser, "docs/images/phase8.png")
    parser.add_argument("--parts", nargs="+", metavar="PART", help="speed, quality (default: both)")
    parser.add_argument(
        "--ways", nargs="+", metavar="WAY", help=f"only these of {', '.join(map(repr, WAYS))}"
    )
    parser.add_argument(
        "--lengths",
        nargs="+",
        type=common.positive,
        metavar="N",
        help="tokens in a text (default: 512 to 65,536)",
    )
    parser.add_argument("--steps", type=common.positive, default=3, help="timed steps (default: 3)")
    parser.add_argument("--minutes", type=float, help="speed: begin no further measurement after this time")
    parser.add_argument(
        "--work", default="checkpoints/phase8_quality", help="where the trained runs are kept"
    )
    common.add_set(parser)


def main(arguments: argparse.Namespace) -> dict | None:
    parts, ways = (
        common.choose(arguments.parts, PARTS, "part"),
        common.choose(arguments.ways, list(WAYS), "way"),
    )
    changes, rows, out = common.changes(arguments.set), Rows("phase8"), Path(arguments.out)
    if "speed" in parts:
        say("Timing training steps of " + "; ".join(ways))
        seconds = common.seconds(arguments.minutes)
        speed(rows, ways, arguments.lengths, arguments.steps, changes, seconds)
    if "quality" in parts:
        say("Training, then evaluating " + "; ".join(ways))
        quality(rows, ways, Path(arguments.work), changes)
    result = common.record(rows, arguments)
    if "speed" in parts:
        picture = Path(arguments.picture or "docs/images/phase8.png")
        draw([row for row in common.read(out) if row["benchmark"] == "phase8"], picture)
        say(f"Picture: {picture}")
    return result


def recipe_of(way: str, length: int | None = None, changes: dict | None = None) -> Recipe:
    """The recipe of one way; global attention has a window of `length` (None: the recipe's blocks)."""
    name, full = WAYS[way]
    changes = dict(changes or {})
    window = length or load_recipe(name, changes).max_seq_length
    return load_recipe(name, {**changes, "attention_window": window} if full else changes)


def speed(
    rows: Rows,
    ways=tuple(WAYS),
    lengths=None,
    steps: int = 3,
    changes: dict | None = None,
    seconds: float = math.inf,
) -> None:
    """Time whole steps; add tokens/s and memory a token of each way and length, and the crossover.

    Args:
        seconds: begin no further length after so many; what is missing then is said.
    """
    import torch

    began, gpu = time.monotonic(), torch.cuda.is_available()
    lengths = list(lengths or (LENGTHS if gpu else LENGTHS_WITHOUT_GPU))
    trained = {way: _Training(recipe_of(way, max(lengths), changes)) for way in ways}
    for length in lengths:
        for way, training in trained.items():
            if time.monotonic() - began > seconds:
                say(f"  {way}, {length:,} tokens: left out, the time is up")
                continue
            texts = max(1, max(lengths) // length)
            try:
                fast, kib = training.measure(texts, length, steps)
            except torch.cuda.OutOfMemoryError:
                say(f"  {way}, {length:,} tokens: out of memory")
                torch.cuda.empty_cache()
                continue
            note = f"{training.parameters:,} parameters, {texts} texts a step, not compiled"
            rows.add(way, f"training, texts of {length:,}", fast, "tokens/s", note)
            rows.add(way, f"memory for a token, texts of {length:,}", kib, "KiB", note)
            passed = time.monotonic() - began
            figures = f"{count(fast):>6} tokens/s, {kib:.1f} KiB a token"
            say(f"  {way:<24} {length:>7,} tokens: {figures} ({passed:.0f} s)")
    crossing = crossover(*(speeds(rows.rows, way) for way in _FASTER))
    if crossing:
        say(f"  From about {crossing:,.0f} tokens on, {_FASTER[0]} is faster than {_FASTER[1]}.")
        rows.add(
            _FASTER[0],
            f"faster than {_FASTER[1]} from",
            crossing,
            "tokens",
            "interpolated between the measured lengths",
        )


class _Training:
    """A model and its optimizer, whose steps on random tokens are measured."""

    def __init__(self, recipe: Recipe):
        import torch

        from newllm_lib.models import parameters
        from newllm_lib.training.model_config import build_model

        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.manual_seed(0)
        self.model = build_model(recipe, recipe.vocab_size, device=self.device.type).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        self.parameters, self.vocabulary = parameters(self.model), recipe.vocab_size
        self._step(self._texts(1, 128))  # makes the optimizer's state

    def measure(self, texts: int, length: int, steps: int) -> tuple[float, float]:
        """Tokens a second (the median), and KiB for each token at the peak."""
        from newllm_lib.evaluation.memory import peak_memory

        ids, times = self._texts(texts, length), []
        peak = peak_memory(lambda: self._step(ids), self.device)  # also compiles what is new
        for _ in range(steps):
            start = time.perf_counter()
            self._step(ids)
            times.append(time.perf_counter() - start)
        return texts * length / statistics.median(times), peak / (texts * length) / 1024

    def _texts(self, texts: int, length: int):
        import torch

        return torch.randint(0, self.vocabulary, (texts, length + 1), device=self.device)

    def _step(self, ids) -> None:
        import torch

        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            loss = self.model(
                ids[:, :-1].contiguous(), shift_labels=ids[:, 1:].contiguous(), use_cache=False
            ).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def quality(
    rows: Rows, ways=tuple(WAYS), work: Path = Path("checkpoints/phase8_quality"), changes: dict | None = None
) -> None:
    """Train each way and add its bits per byte of the test text. A run that is there is only evaluated."""
    from newllm_lib.evaluation.evaluate_run import evaluate_run
    from newllm_lib.training import train
    from newllm_lib.training.model_config import count_parameters, model_config

    for way in ways:
        name = way.lower().replace(",", "").replace(" ", "_")
        recipe = recipe_of(way, None, {**(changes or {}), "output_dir": str(work / name)})
        result = evaluate_run(train(recipe), baselines=True)
        size = count_parameters(model_config(recipe, result["vocab_size"]))
        note = f"{size:,} parameters, {recipe.epochs:g} epochs, vocabulary {result['vocab_size']:,}"
        note += f", seed {recipe.seed}"
        rows.add(way, "bits per byte, ChitChat test", result["bits_per_byte"], "bit/byte", note)
        bigram = result["baselines"]["bigram"]["bits_per_byte"]
        found = f"{result['bits_per_byte']:.4f} bits per byte (bigram table {bigram:.4f})"
        say(f"{way}: {found}, {size:,} parameters")


def speeds(rows: list[dict], way: str, metric: str = "training, texts of ") -> dict[int, float]:
    """Length to the newest figure of one way."""
    return {
        int(row["metric"].removeprefix(metric).replace(",", "")): float(row["value"])
        for row in rows
        if row["model"] == way and row["metric"].startswith(metric)
    }


def crossover(ours: dict[int, float], other: dict[int, float]) -> float | None:
    """The length from which ours is faster, interpolated in logarithms; None: never, or from the first."""
    both = sorted(ours.keys() & other.keys())
    gain = [math.log(ours[n] / other[n]) for n in both]
    for i in range(len(both) - 1, 0, -1):
        if gain[i] > 0 >= gain[i - 1]:
            share = gain[i - 1] / (gain[i - 1] - gain[i])
            return both[i - 1] * (both[i] / both[i - 1]) ** share
    return None


def draw(rows: list[dict], path: Path) -> None:
    """Speed and memory over the length of the texts, with the crossover."""
    about = next(row for row in reversed(rows) if row["metric"].startswith("training, "))
    with common.picture(path, about, columns=2) as (fast, small):
        for way in WAYS:
            for axis, metric in ((fast, "training, texts of "), (small, "memory for a token, texts of ")):
                line = sorted(speeds(rows, way, metric).items())
                if not line:
                    continue
                axis.plot([n for n, _ in line], [value for _, value in line], marker="o", label=way)
        crossing = crossover(*(speeds(rows, way) for way in _FASTER))
        if crossing:
            fast.axvline(crossing, color="0.5", linestyle=":", label=f"crossover, {crossing:,.0f} tokens")
        fast.set(yscale="log", ylabel="training, tokens/s", title="whole training steps, not compiled")
        small.set(
            ylabel="memory, KiB a token", title="most that a step holds", ylim=(0, 1.15 * small.get_ylim()[1])
        )
        for axis in (fast, small):
            axis.set_xscale("log", base=2)
            axis.xaxis.set_major_formatter(lambda tokens, _: f"{tokens:,.0f}")
            axis.set_xlabel("tokens in a text")
            axis.grid(alpha=0.3)
        fast.legend()
