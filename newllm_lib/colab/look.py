"""What is known of runs at this moment: what each does, how far it is, its figures, how long it will take.

It only reads the runs' folders."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

from newllm_lib import runs
from newllm_lib.colab import curves, pictures
from newllm_lib.colab.gpu_monitor import GpuMonitor
from newllm_lib.colab.history import History, samples
from newllm_lib.console import count, duration
from newllm_lib.errors import NewLLMError
from newllm_lib.recipe import Recipe
from newllm_lib.runs import Run
from newllm_lib.training.preferences.curves import preference_figure
from newllm_lib.training.report import FILE as REPORT
from newllm_lib.training.timetable import Timetable

_SHOWN_STATES = {"new": "not started", "dead": "ended without a word"}
_COUNTED = 10e6  # tokens of training text up to which the tables are counted while a run trains
_TOKENS = re.compile(r"  data: .*?([\d.]+)([kMB]?) tokens to train on .*?validation ([\d.]+)([kMB]?)")
_SIZES = {"": 1.0, "k": 1e3, "M": 1e6, "B": 1e9}


@dataclass
class Look:
    """What is known of one run at this moment.

    Attributes:
        doing: what its process does now, in the log's words.
        fraction: of that or of the whole run, 0 to 1; None where it is not known.
        facts: step, loss, speed, time left, best evaluation.
    """

    name: str
    state: str
    doing: str
    fraction: float | None
    facts: list[str]
    message: str = ""


class View:
    """What there is to show of some runs: a look at each, and a picture of all."""

    def __init__(self, runs_shown: Sequence[Run], baselines: dict[str, float] | None = None):
        self.runs = list(runs_shown)
        self.baselines = dict(baselines or {})
        self.counted = baselines is not None
        labels = curves.short_labels([run.name for run in self.runs])
        self.histories = [
            History(run.metrics_path, label) for run, label in zip(self.runs, labels, strict=True)
        ]
        self.statuses = [runs.read_status(run) for run in self.runs]
        self.use = GpuMonitor()

    def update(self) -> bool:
        """Read what is new; True if the picture changes."""
        # The status first: what a run wrote before it ended is then read below.
        self.statuses = [runs.read_status(run) for run in self.runs]
        changed = any([history.update() for history in self.histories])
        return self._count() or changed

    def _count(self) -> bool:
        """The unigram and bigram tables on the first run's text, once its tokenizer is there; True if new."""
        run = self.runs[0]
        if self.counted or not self.histories[0].evaluations or self.histories[0].prefers:
            return False
        if not (run.path / REPORT).is_file() and not run.best.is_dir():
            return False
        self.counted, self.baselines = True, counted(run)
        return bool(self.baselines)

    @property
    def running(self) -> bool:
        return any(status["state"] == "running" for status in self.statuses)

    def looks(self) -> list[Look]:
        return [
            look(run, history, status, self.use)
            for run, history, status in zip(self.runs, self.histories, self.statuses, strict=True)
        ]

    def lines(self) -> list[str]:
        """A line for each run; for those that train also the machine's use and the mirror's state."""
        shown = []
        for run, found in zip(self.runs, self.looks(), strict=True):
            parts = [f"{found.name}: {found.state}", *found.facts, found.doing, found.message]
            shown.append(" | ".join(part for part in parts if part))
            shown += copy_line(run)
        return shown

    def samples(self) -> list[tuple[str, list[dict]]]:
        """(label, sample texts) of each run that has some."""
        found = [
            (h.label, samples(run.samples_path)) for run, h in zip(self.runs, self.histories, strict=True)
        ]
        return [(label, rows) for label, rows in found if rows]

    @property
    def has_picture(self) -> bool:
        """Nothing is drawn of a run that ended before it had figures: two empty axes say nothing."""
        return self.running or any(history.step for history in self.histories)

    def figure(self):
        if len(self.runs) == 1 and (found := preference_figure(self.runs[0])) is not None:
            if self.histories[0].prefers:
                return found
        totals = [status["total_steps"] or 0 for status in self.statuses]
        return curves.draw(self.histories, self.baselines, max(totals) or None, guessing(self.runs[0]))

    def png(self) -> bytes:
        return pictures.png(self.figure())


def look(run: Run, history: History, status: dict, use: GpuMonitor | None = None) -> Look:
    """What is known of a run: state, what it does, how far it is, figures."""
    state, total = status["state"], status["total_steps"]
    step = max(history.step, status["step"] or 0)
    found = Look(run.name, _SHOWN_STATES.get(state, state), "", None, [])
    if state == "running":
        found.doing, found.fraction = _doing(run, history, status, step, total)
        if (busy := use.describe(status["pid"])) if use else "":
            found.facts.append(busy)
    elif state in ("failed", "dead", "interrupted"):
        found.message = status["message"]
    if total and step and found.fraction is None:
        found.fraction = min(1.0, step / total)
    found.facts[:0] = _figures(run, history, status, step, total)
    return found


def _figures(run: Run, history: History, status: dict, step: int, total: int | None) -> list[str]:
    parts = []
    if step:
        parts.append(f"step {step:,}" + (f" of {total:,} ({100 * step / total:.0f} %)" if total else ""))
    trains = status["state"] == "running"
    if history.step and not (trains and not _is_fresh(history, status)):
        _, losses = history.series("loss")
        parts += [f"loss {losses[-1]:.3f}"] if losses else []
        if speed := history.tokens_per_second():
            parts.append(f"{count(speed)} tokens/s")
        if trains and (left := seconds_left(run, history, total)) is not None:
            parts.append(f"{duration(left)} left")
    if best := history.best:
        score = (
            f"{best['eval_bits_per_byte']:.3f} bits per byte"
            if "eval_bits_per_byte" in best
            else (f"held-out loss {best['eval_loss']:.3f}, accuracy {100 * best['eval_accuracy']:.1f} %")
        )
        parts.append(f"best {score} ✓ (epoch {best.get('epoch', 0):.3g})")
    return parts


def _is_fresh(history: History, status: dict) -> bool:
    """Whether something was logged since the run's process began (else what is there is of an earlier
    life)."""
    newest = history.steps.get(max(history.steps, default=0), {}).get("time")
    return newest is None or status["started"] is None or newest >= status["started"]


def _doing(
    run: Run, history: History, status: dict, step: int, total: int | None
) -> tuple[str, float | None]:
    """What a run in training does now, and how much of that is done (None: of the whole run, then)."""
    line = runs.last_line(run) or status["message"] or "starting"
    percent = re.match(r"(?:.*? )?(\d+)%", line)
    if line.startswith("evaluating"):
        return line, None
    if history.steps and _is_fresh(history, status):
        return ("", None) if not status["message"].startswith("no sign") else (status["message"], None)
    if step and not _is_fresh(history, status):
        return f"continuing from step {step:,}: {line}", None
    return line, int(percent[1]) / 100 if percent and "Training" not in line else None


def seconds_left(run: Run, history: History, total: int | None) -> float | None:
    """Time to the run's end from now, evaluations and saves included."""
    recipe, validation = _recipe(run), _said_of_data(run)[1]
    guess = evaluations = 0.0
    if recipe is not None and total:
        evaluations = evaluations_left(recipe, history, total, validation)
        validation = min(validation, recipe.eval_tokens or validation)
    if speed := history.tokens_per_second():
        # forward alone is a third of a step; the sample answers come on top
        guess = validation / (3 * speed) + 2
    left = history.seconds_left(total, evaluations, guess)
    if left is None:
        return None
    newest = max(row.get("time") or 0.0 for row in [*history.steps.values(), *history.evaluations.values()])
    return max(1.0, left - max(0.0, min(left, time.time() - newest))) if left else 0.0


def evaluations_left(recipe: Recipe, history: History, total: int, validation: float) -> float:
    """How many evaluations are still to come, as training's timetable has them.

    Args:
        validation: tokens of the validation text: all of it is measured once more at the end, which counts as
            several, where `eval_tokens` has training measure less on the way.
    """
    if not history.steps_per_epoch:
        return 1.0
    measured = min(validation, recipe.eval_tokens or validation)
    per_epoch = max(1, round(history.steps_per_epoch))
    table = Timetable(recipe, per_epoch, total, round(measured) or None)
    ahead = table.evaluations_from(max(1, history.step + (history.step in history.evaluations)))
    return ahead + (validation / measured if 0 < measured < validation else 0.0)


def _recipe(run: Run) -> Recipe | None:
    try:
        return Recipe.from_yaml(run.recipe_path)
    except (OSError, NewLLMError):  # not written yet
        return None


def _said_of_data(run: Run) -> tuple[float, float]:
    """Tokens of the training and the validation text, as the log says them; 0 where it does not."""
    try:
        with open(run.log, encoding="utf-8", errors="replace") as log:
            found = _TOKENS.search(log.read(20_000))
    except OSError:
        return 0.0, 0.0
    return (float(found[1]) * _SIZES[found[2]], float(found[3]) * _SIZES[found[4]]) if found else (0.0, 0.0)


def guessing(run: Run) -> float | None:
    """Nats a token of a model that knows nothing of the vocabulary's frequencies."""
    recipe = _recipe(run)
    return math.log(recipe.vocab_size) if recipe and recipe.task == "train" and not recipe.from_run else None


def counted(run: Run) -> dict[str, float]:
    """Validation bits per byte of the unigram and bigram tables of a run's training text; {} where that would
    take long, or the text is not there."""
    recipe, tokens = _recipe(run), _said_of_data(run)[0]
    if recipe is None or recipe.task != "train" or not 0 < tokens <= _COUNTED:
        return {}
    from transformers import AutoTokenizer

    from newllm_lib.evaluation.baselines import bigram, unigram
    from newllm_lib.evaluation.evaluate_run import packed_split

    try:
        tokenizer = AutoTokenizer.from_pretrained(run.best, local_files_only=True, trust_remote_code=False)
        train, held_out = (packed_split(recipe, tokenizer, split) for split in ("train", "validation"))
    except (NewLLMError, OSError):  # being replaced, or not read yet: lines that help, but not at any price
        return {}
    return {
        "unigram": unigram(train, held_out, tokenizer)["bits_per_byte"],
        "bigram": bigram(train, held_out, tokenizer)["bits_per_byte"],
    }


def copy_line(run: Run) -> list[str]:
    """One line about the run's copy on Drive, if it has one."""
    status = runs.mirror_status(run)
    if status is None:
        return []
    reached = f"step {status['step']:,}" if status["step"] is not None else "nothing to continue from yet"
    return [
        f"  copy in {status['folder']}: {reached}" + (f" | {status['message']}" if status["message"] else "")
    ]


def run_state(found: Look) -> str:
    """The state's own word, from the one shown."""
    return next((state for state, shown in _SHOWN_STATES.items() if shown == found.state), found.state)
