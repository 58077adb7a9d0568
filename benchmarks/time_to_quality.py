"""How soon a model predicts held-out text so well: bits per byte over the seconds since the command's start.

    newllm bench time_to_quality --text FILE [--nanogpt DIR] [--target 2.125]
    newllm bench time_to_quality --packages [--parameters 10M 25M] [--nanogpt DIR]

One after the other, for the same seconds and on the same text: New-LLM and TinyGPT2 by `newllm train`, a
modern attention model by `peer_loop` (compiled and captured on a GPU), nanoGPT by its own `train.py`, each in
a process of its own. Tokens are prepared beforehand, and that time is told apart; kernels that earlier runs
left in a cache are used. A curve is what a model's own evaluations say, at the seconds when they were said.

`--text`: the first nine tenths of the characters train, the rest is held out, one document each. Everyone
trains as its recipe says (nanoGPT: its `config/train_shakespeare_char.py`, by characters), until that is
through or the seconds are over. `--packages`: the Python sources that are installed, at equal numbers of
parameters, tokens a step and vocabulary; a short training says how fast each is, and the measured one has so
many steps that its learning rate has fallen when the seconds are over. nanoGPT's evaluations are means over
random windows of the same tokens, which see half a window on average; ours read documents from their
beginning, attention with half a window or more.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from benchmarks import common, nanogpt
from benchmarks.common import Rows
from benchmarks.corpus import cut_text, python_sources
from newllm_lib.console import say
from newllm_lib.errors import NewLLMError, UsageError
from newllm_lib.recipe import Recipe, load_recipe
from newllm_lib.runs import Run

MODELS = ("new_llm", "tiny_gpt2", "attention", "nanogpt")
SECONDS = {"10M": 90, "25M": 90, "124M": 200}
VOCABULARY = {"10M": 4096, "25M": 8192, "124M": 50257}
PICTURE = "docs/images/time-to-quality.png"

_MARKS = 10  # a curve's rows: so many equal parts of the seconds
_PROBE = 10.0  # seconds of steps that say how fast a model is
_MARGIN = 0.9  # of the steps that would fit: evaluations and saves take time, and speed varies
_TOKENS = {"batch_size": 64, "max_seq_length": 512}  # a step's, for all four
_EVALUATED = 131_072  # tokens of the packages' held-out text, the same ones at each evaluation

_PACKAGES = {  # of the recipe: a text too large to learn by heart
    **_TOKENS,
    "sized_for": "h100",
    "dropout": 0.0,
    "weight_decay": 0.1,
    "optimizer": "muon",
    "schedule": "wsd",
    "min_learning_rate_ratio": 0.0,
    "warmup_steps": 100,
    "evals_per_epoch": "auto",
    "eval_tokens": _EVALUATED,
    "logging_steps": 10,
    "sample_tokens": 0,
    "epochs": 1000,
}
# as benchmarks/quality.py found them at 4M; AdamW's rate falls with the width
_RATES = {"10M": 0.7, "25M": 0.5, "124M": 0.25}
_MUON = {
    "new_llm": (0.014, 0.04),
    "attention": (0.014, 0.04),
    "tiny_gpt2": (4e-3, 0.014),
}
_SMALL = {  # a few steps of a tiny model, anywhere
    "sized_for": "cpu",
    "vocab_size": 300,
    "hidden_size": 32,
    "context_dim": 32,
    "mlp_size": 64,
    "num_layers": 1,
    "num_heads": 2,
    "max_seq_length": 16,
    "batch_size": 4,
    "warmup_steps": 2,
    "epochs": 1000,
    "max_steps": 6,
    "logging_steps": 2,
    "eval_tokens": 256,
    "sample_tokens": 0,
}
_SMALL_NANOGPT = (
    "n_layer=1 n_head=2 n_embd=32 block_size=16 batch_size=4 max_iters=6 eval_interval=3 eval_iters=2"
)


@dataclass(frozen=True)
class Contest:
    """What all models are trained on, and how.

    Args:
        name: for the rows.
        recipe: of `newllm train`.
        keys: of `newllm train`: the models' own by name, and what all share as "all".
        seconds: for each, from its command's start.
        fitted: whether the schedule is fitted to the seconds.
        note: about the text.
        packages: the names of those that are trained on.
        small: tiny models, a few steps.
    """

    name: str
    recipe: str
    keys: dict[str, dict]
    seconds: float
    fitted: bool
    note: str
    small: bool = False
    packages: str = ""

    def keys_of(self, model: str) -> dict:
        """All keys that do something for this model, modern attention taking New-LLM's place."""
        ours = "tiny_gpt2" if model == "tiny_gpt2" else "new_llm"
        keys = {**self.keys["all"], **self.keys.get(model, {}), "model": ours}
        if model == "attention":
            keys["carry_state"] = False
        recipe = load_recipe(self.recipe, keys)
        return {key: value for key, value in keys.items() if recipe.depends_on(key) or key == "num_heads"}


@dataclass
class Curve:
    """What was seen of a training, in seconds since its command's start."""

    steps: list[tuple[float, int]] = field(default_factory=list)
    evaluations: list[tuple[float, float]] = field(default_factory=list)  # bits per byte

    def best(self, until: float = float("inf")) -> tuple[float, float]:
        """(seconds, bits per byte) of the best evaluation so far; infinite where there is none."""
        seen = [(bits, seconds) for seconds, bits in self.evaluations if seconds <= until]
        bits, seconds = min(seen, default=(float("inf"), float("inf")))
        return seconds, bits

    def reached(self, target: float) -> float | None:
        """Seconds until an evaluation was at most `target`; None: none was."""
        return next((seconds for seconds, bits in self.evaluations if bits <= target), None)

    def steps_a_second(self) -> float | None:
        """The median over the stretches between two logged steps; None: there are none."""
        pairs = zip(self.steps, self.steps[1:], strict=False)
        speeds = [
            (last - first) / (ended - began) for (began, first), (ended, last) in pairs if ended > began
        ]
        return statistics.median(speeds) if speeds else None

    def steps_in(self, limit: float) -> int:
        """How many steps fit `limit` seconds at the speed that was seen, with a margin.

        Raises:
            NewLLMError: too little was seen.
        """
        if len(self.steps) < 2 or self.steps[-1][1] == self.steps[0][1]:
            raise NewLLMError("No speed could be measured: too few steps were logged. Give more --seconds.")
        (began, first), (ended, last) = self.steps[0], self.steps[-1]
        return max(2, first + int(_MARGIN * (limit - began) * (last - first) / (ended - began)))


# --- the command --------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_out(parser)
    parser.add_argument("--text", type=Path, metavar="FILE", help="a text of one document")
    parser.add_argument(
        "--split", type=_share, default=0.9, help="share of --text's characters to train on (default: 0.9)"
    )
    parser.add_argument("--packages", action="store_true", help="the installed packages' Python sources")
    parser.add_argument(
        "--parameters",
        nargs="+",
        metavar="SIZE",
        help=f"with --packages, some of {' '.join(SECONDS)} (default: 10M 25M)",
    )
    parser.add_argument("--models", nargs="+", metavar="NAME", help=f"some of {' '.join(MODELS)}")
    parser.add_argument("--recipe", default="text", help="with --text, what is trained (default: text)")
    parser.add_argument("--nanogpt", type=Path, metavar="DIR", help="a clone of nanoGPT (only read)")
    parser.add_argument(
        "--seconds",
        type=common.positive,
        help="for each model, from its command's start (default: 90; at 124M 200)",
    )
    parser.add_argument("--target", type=float, default=2.125, help="bits per byte to reach (default: 2.125)")
    parser.add_argument("--picture", nargs="?", const=PICTURE, help=f"draw the curves (default: {PICTURE})")
    parser.add_argument("--small", action="store_true", help="a few steps of tiny models: whether it runs")
    common.add_set(parser)
    parser.add_argument("--one", help=argparse.SUPPRESS)


def main(arguments: argparse.Namespace) -> dict | None:
    if arguments.one:
        train_attention(**json.loads(arguments.one))
        return None
    _check(arguments)
    models = common.choose(arguments.models, MODELS, "model")
    rows, curves = Rows("time to quality"), {}
    with tempfile.TemporaryDirectory() as folder:
        for contest, texts in contests(arguments, Path(folder)):
            curves[contest.name] = _compete(contest, texts, models, rows, arguments, Path(folder))
    if arguments.picture:
        draw(curves, Path(arguments.picture), rows.rows[0])
        say(f"Picture: {arguments.picture}")
    result = common.record(rows, arguments)
    found = {name: {model: curve.evaluations for model, curve in of.items()} for name, of in curves.items()}
    return result and {**result, "curves": found}


def _check(arguments: argparse.Namespace) -> None:
    if bool(arguments.text) == arguments.packages:
        raise UsageError("Give --text FILE or --packages: one of them is what everyone trains on.")
    if arguments.parameters and not arguments.packages:
        raise UsageError("--parameters is for --packages: with --text the recipe has the sizes.")
    if arguments.packages and arguments.recipe != "text":
        raise UsageError("--recipe is for --text: with --packages all models have the same settings.")
    if arguments.nanogpt:
        nanogpt.check(arguments.nanogpt)
    if arguments.models and "nanogpt" in arguments.models and not arguments.nanogpt:
        raise UsageError("--models nanogpt needs --nanogpt DIR, the folder of a nanoGPT clone.")


def _share(text: str) -> float:
    share = float(text)
    if not 0 < share < 1:
        raise argparse.ArgumentTypeError(f"must be a share between 0 and 1, not {text!r}")
    return share


# --- what is trained on -------------------------------------------------------------------------------------


def contests(arguments: argparse.Namespace, folder: Path) -> list[tuple[Contest, dict[str, str] | None]]:
    """What is asked for, its text written below `folder`; with the text itself where characters count."""
    asked = common.changes(arguments.set)
    small = _SMALL if arguments.small else {}
    data = {"data_dir": str(folder / "text"), "streaming": "off"}
    if arguments.text:
        parts = cut_text(arguments.text, arguments.split, folder / "text")
        sizes = {part: len(text.encode("utf-8")) for part, text in parts.items()}
        note = f"{sizes['train']:,} bytes; held out: the text's end, {sizes['validation']:,} bytes"
        keys = {"all": {**data, "documents": "file", **small, **asked}}
        seconds = arguments.seconds or 90
        name = f"{arguments.text.name}, recipe {arguments.recipe}"
        return [(Contest(name, arguments.recipe, keys, seconds, False, note, arguments.small), parts)]
    sources = python_sources(Path(sysconfig.get_paths()["purelib"]), folder / "text")
    found = []
    for size in common.choose(arguments.parameters or ["10M", "25M"], tuple(SECONDS), "size"):
        keys = _sized_keys(size, {**_PACKAGES, **data}, small, asked)
        seconds, fitted = arguments.seconds or SECONDS[size], not arguments.small
        about = {"note": sources.in_words(), "packages": " ".join(sources.packages["train"])}
        contest = Contest(f"packages, {size}", "demo", keys, seconds, fitted, small=arguments.small, **about)
        found.append((contest, None))
    return found


def _sized_keys(size: str, shared: dict, small: dict, asked: dict) -> dict[str, dict]:
    from benchmarks.peers import sized_recipe

    names = ("hidden_size", "context_dim", "mlp_size", "num_layers", "num_heads", "vocab_size")
    recipe = sized_recipe("new_llm", size, VOCABULARY[size])
    keys = {"all": {**shared, **{name: getattr(recipe, name) for name in names}, **small, **asked}}
    for model, (rate, muon) in _MUON.items():
        keys[model] = {"learning_rate": rate * _RATES[size], "muon_learning_rate": muon}
    keys["new_llm"]["carry_state"] = True
    return {model: {**own, **asked} for model, own in keys.items()}


def _compete(contest, texts, models, rows: Rows, arguments, folder: Path) -> dict[str, Curve]:
    """Train all, one after the other; their curves and, in `rows`, what counts of them."""
    recipe = load_recipe(contest.recipe, contest.keys_of("new_llm"))
    began = time.monotonic()
    peer = _prepared(contest, texts, recipe, arguments, Path(tempfile.mkdtemp(dir=folder)))
    about = f"{contest.note}; trained on: {contest.packages}" if contest.packages else contest.note
    rows.add(contest.name, "tokens prepared beforehand", time.monotonic() - began, "s", about)
    curves: dict[str, Curve] = {}
    for model in models:
        if model == "nanogpt" and peer is None:
            say(f"{contest.name}: nanoGPT is not measured without --nanogpt DIR")
            note = "not measured: no --nanogpt DIR"
            rows.add(f"nanogpt, {contest.name}", "best bits per byte", float("nan"), "bit/byte", note)
            continue
        steps = None
        if contest.fitted:
            probe = train(model, contest, peer, folder, stop=_seen_enough)
            steps = probe.steps_in(contest.seconds)
        curves[model] = curve = train(model, contest, peer, folder, steps)
        _add(rows, model, contest, curve, arguments.target)
    return curves


def _prepared(contest: Contest, texts, recipe: Recipe, arguments, place: Path) -> nanogpt.NanoGPT | None:
    """Everyone's tokens on disk; nanoGPT's folder, where there is one."""
    from newllm_lib.data import prepare
    from newllm_lib.device import probe
    from newllm_lib.evaluation.batching import subset

    flags = [] if probe().torch_device == "cuda" else ["--device=cpu", "--compile=False"]
    flags += [f"--{flag}" for flag in _SMALL_NANOGPT.split()] if contest.small else []
    with closing(prepare(recipe)) as data:
        if not arguments.nanogpt:
            return None
        if texts is not None:
            return nanogpt.by_characters(arguments.nanogpt, place, texts, flags)
        vocabulary, parts = len(data.tokenizer), (data.train, subset(data.validation, recipe.eval_tokens))
        if not contest.small:
            flags += _nanogpt_flags(contest.name.split()[-1], recipe, vocabulary)
        return nanogpt.by_our_tokens(arguments.nanogpt, place, *parts, vocabulary, flags)


def _nanogpt_flags(size: str, recipe: Recipe, vocabulary: int) -> list[str]:
    """Of the same size and tokens a step, evaluated as often; a rate as for GPT-2-small, more for less."""
    from benchmarks.peers import SIZES

    parameters, width, _ = SIZES[size]
    rate = {"10M": 1e-3, "25M": 1e-3, "124M": 6e-4}[size]
    tokens = recipe.batch_size * recipe.max_seq_length
    keys = {"batch_size": recipe.batch_size, "block_size": recipe.max_seq_length}
    keys |= {"gradient_accumulation_steps": 1, "dropout": 0.0, "warmup_iters": 100, "log_interval": 10}
    keys |= {"learning_rate": rate, "min_lr": rate / 10, "always_save_checkpoint": False}
    keys |= {"eval_iters": max(1, _EVALUATED // tokens), "eval_interval": (1 << 22) // tokens}
    keys |= nanogpt.sized(parameters, width, vocabulary)
    return [f"--{key}={value}" for key, value in keys.items()]


def _add(rows: Rows, model: str, contest: Contest, curve: Curve, target: float) -> None:
    what, add = f"{model}, {contest.name}", partial(rows.add, f"{model}, {contest.name}", note=contest.note)
    seconds, bits = curve.best()
    if not curve.evaluations:
        say(f"{what}: not one evaluation in {contest.seconds:g} s")
        rows.add(what, "best bits per byte", float("nan"), "bit/byte", f"none in time; {contest.note}")
        return
    reached = curve.reached(target)
    in_time = "not reached" if reached is None else f"after {reached:.1f} s"
    say(f"{what}: {bits:.4f} bits per byte after {seconds:.1f} s; {target:g} {in_time}")
    add("best bits per byte", bits, "bit/byte")
    add("seconds to the best", seconds, "s")
    if curve.steps:
        add("seconds to the first logged step", curve.steps[0][0], "s")
    speed = curve.steps_a_second() if contest.fitted else None  # then all have as many tokens a step
    if speed is not None:
        add("training speed", speed * _TOKENS["batch_size"] * _TOKENS["max_seq_length"], "tokens/s")
    if reached is not None:
        add(f"seconds to {target:g} bits per byte", reached, "s")
    for part in range(1, _MARKS + 1):
        mark = contest.seconds * part / _MARKS
        _, so_far = curve.best(mark)
        if so_far < float("inf"):
            add(f"best bits per byte within {mark:g} s", so_far, "bit/byte")
        if so_far == bits:
            break  # what comes after tells no more


def draw(curves: dict[str, dict[str, Curve]], path: Path, about: dict[str, str]) -> None:
    """Bits per byte over seconds, a part for each text and size."""
    with common.picture(path, about, len(curves)) as axes:
        for axis, (name, of) in zip([axes] if len(curves) == 1 else axes, curves.items(), strict=True):
            for model, curve in of.items():
                if curve.evaluations:
                    axis.plot(*zip(*curve.evaluations, strict=True), marker=".", label=model)
            axis.set(title=name, xlabel="seconds since the command's start", ylabel="bits per byte, held out")
            axis.legend()


# --- one training -------------------------------------------------------------------------------------------


def train(
    model: str,
    contest: Contest,
    peer: nanogpt.NanoGPT | None,
    folder: Path,
    steps: int | None = None,
    stop: Callable[[Curve], bool] | None = None,
) -> Curve:
    """A training in a process of its own, ended when the contest's seconds are over.

    Args:
        steps: that its schedule is made for; None: as its settings say.
        stop: asked again and again, ends it before.

    Raises:
        NewLLMError: it failed.
    """
    place = Path(tempfile.mkdtemp(dir=folder))
    if model == "nanogpt":
        words, cwd, read = peer.words(steps), peer.place, _Printed(peer, place / "log")
    else:
        words, cwd, read = _command(model, contest, steps, place / "run"), None, _Written(Run(place / "run"))
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}  # what nanoGPT prints is seen at once
    if model == "nanogpt":
        environment["PYTHONDONTWRITEBYTECODE"] = "1"  # its folder stays as it is
    with open(place / "log", "wb") as log:
        read.began = began = time.time()
        process = subprocess.Popen(
            words, stdout=log, stderr=subprocess.STDOUT, cwd=cwd, env=environment, start_new_session=True
        )
        try:
            while process.poll() is None and time.time() - began < contest.seconds:
                time.sleep(0.05)
                curve = read()
                if stop is not None and stop(curve):
                    break
            ended = process.poll()
        finally:
            _end(process)
    if ended:
        what = f"{model}, {contest.name}"
        raise NewLLMError(f"{what} failed: {common.last_line((place / 'log').read_text(errors='replace'))}")
    return read()


def _end(process: subprocess.Popen) -> None:
    """It and all that it has started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def _seen_enough(curve: Curve) -> bool:
    return len(curve.steps) > 1 and curve.steps[-1][0] - curve.steps[0][0] >= _PROBE


def _command(model: str, contest: Contest, steps: int | None, run: Path) -> list[str]:
    keys = contest.keys_of(model) | {"output_dir": str(run)} | ({} if steps is None else {"max_steps": steps})
    if model == "attention":
        about = json.dumps({"recipe": contest.recipe, "keys": keys})
        return common.command("time_to_quality", "--one", about)
    recipe = load_recipe(contest.recipe, keys)
    flags = [w for key, value in keys.items() if recipe.depends_on(key) for w in (f"--{key}", str(value))]
    return [sys.executable, "-m", "newllm_lib", "train", contest.recipe, *flags]


class _Written:
    """The curve that a run's log holds so far."""

    began = 0.0

    def __init__(self, run: Run):
        self.run = run

    def __call__(self) -> Curve:
        rows = self.run.metrics() if self.run.metrics_path.exists() else []
        curve = Curve()
        for row in rows:
            seconds = row["time"] - self.began
            if "eval_bits_per_byte" not in row:
                curve.steps.append((seconds, row["step"]))
            elif not row.get("final"):
                curve.evaluations.append((seconds, row["eval_bits_per_byte"]))
        return curve


class _Printed:
    """The curve that nanoGPT has printed so far: a line's time is that of being seen, every 0.05 s."""

    began = 0.0

    def __init__(self, peer: nanogpt.NanoGPT, log: Path):
        self.peer, self.log, self.curve, self.read = peer, log, Curve(), 0

    def __call__(self) -> Curve:
        with self.log.open("rb") as file:
            file.seek(self.read)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self.read += len(whole)
        seconds = time.time() - self.began
        for line in re.split(r"[\r\n]+", whole.decode(errors="replace")):
            if found := nanogpt.EVALUATED.match(line):
                self.curve.evaluations.append((seconds, self.peer.bits_per_byte(float(found[2]))))
            elif found := nanogpt.LOGGED.match(line):
                self.curve.steps.append((seconds, int(found[1])))
        return self.curve


def train_attention(recipe: str, keys: dict) -> None:
    """Modern attention in this process, logged as a run is."""
    import torch

    from benchmarks.peer_loop import Step, bits_per_byte, precision, train_peer
    from benchmarks.peers import attention_like
    from newllm_lib.data import prepare
    from newllm_lib.device import probe
    from newllm_lib.evaluation.batching import subset
    from newllm_lib.training.timetable import Timetable

    device = probe().torch_device
    torch.set_float32_matmul_precision("high")
    loaded = load_recipe(recipe, keys)
    torch.manual_seed(loaded.seed)
    run = Run(loaded.run_path())
    run.path.mkdir(parents=True)
    with closing(prepare(loaded)) as data, run.metrics_path.open("a") as log:
        model = attention_like(loaded, len(data.tokenizer))
        validation = subset(data.validation, loaded.eval_tokens or sys.maxsize)

        def write(row: dict) -> None:
            log.write(json.dumps({**row, "time": time.time()}) + "\n")
            log.flush()

        def watch(step: Step) -> None:
            table = Timetable(loaded, step.per_epoch, step.total, validation.tokens - 1)
            decision = table.after(step.number)
            if decision.log:
                write({"step": step.number, "loss": float(step.loss)})
            if decision.evaluate:
                with precision(device):
                    found = bits_per_byte(model, validation, loaded.max_seq_length)
                write({"step": step.number, "eval_bits_per_byte": found})

        train_peer(model, loaded, data, device, watch, mode="reduce-overhead")
