"""What a run's figures mean, and what to do next: beside counting, its start, runs on the same text.

All in bits per byte on the validation split, which alone can be compared across vocabularies; `newllm
evaluate` measures on the test split. Kept as `report.json` in the run's folder, for notebooks.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace

from newllm_lib.console import duration, say
from newllm_lib.data import load_split
from newllm_lib.errors import UsageError
from newllm_lib.evaluation.baselines import bigram
from newllm_lib.recipe import Recipe
from newllm_lib.recipe.files import read_record
from newllm_lib.runs import Run, atomic_write_text, list_runs, may_wait
from newllm_lib.training.resume import free_name
from newllm_lib.training.samples import rows_of

FILE = "report.json"
# tokens of the training split in the bigram table: more would take longer than it tells
_COUNTED = 20_000_000
_LONG = 3600.0  # seconds of training that are called slow; the guides' runs take 20 to 40 minutes
_STILL_FALLING = 0.003  # share by which the last evaluation is below the one before
_SAME_TEXT = ("eval_bytes", "eval_words", "eval_documents", "eval_lower_cased")
# What the guides place after each set; a later one is started from the run before it.
_LADDER = {
    "wikitext": "dailydialog",
    "dolly": "hh_rlhf",
    "hh_rlhf": "ultrachat",
    "ultrachat": "code_alpaca",
    "dolly_ja": "alpaca_ja",
}


# to compare with
_OTHER = {
    "new_llm": ("tiny_gpt2", "new_llm", "tinygpt2"),
    "tiny_gpt2": ("new_llm", "tinygpt2", "new_llm"),
}


def report(recipe: Recipe, run: Run, data) -> dict:
    """Read the run's metrics, set them beside what there is to compare with, say it, and keep it.

    Returns:
        bits_per_byte, beside (a list of name, bits_per_byte, difference_percent), advice (sentences), next (a
        command).
    """
    best = run.best_evaluation()
    if best is None:  # the disk took no row
        return {}
    evaluations = [row for row in run.metrics() if "eval_bits_per_byte" in row and not row.get("final")]
    ours = best["eval_bits_per_byte"]
    table = _bigram(recipe, data)
    beside = [("the bigram table (which token follows which)", table)]
    beside += [
        (f"before training ({recipe.from_run})", row["eval_bits_per_byte"])
        for row in evaluations[:1]
        if row["step"] == 0
    ]
    beside += list(_earlier_runs(recipe, run, best))
    found = {
        "bits_per_byte": ours,
        "on": "answers" if recipe.loss_on == "answers" else "text",
        "beside": [
            {"name": n, "bits_per_byte": v, "difference_percent": 100 * (ours - v) / v} for n, v in beside
        ],
        "advice": list(_advice(recipe, run, evaluations, best, table, data.train.documents)),
        "next": _next(recipe, run),
    }
    if found["advice"]:
        found["advice"].append(f"Another option makes another run: add --output_dir {free_name(run)}.")
    with may_wait(run.path / FILE):
        atomic_write_text(run.path / FILE, json.dumps(found, indent=1, ensure_ascii=False))
    for line in lines(found):
        say(line)
    return found


def lines(found: dict) -> list[str]:
    """A report as text."""
    what = "held-out answers" if found["on"] == "answers" else "held-out text"
    said = [
        f"What it means: {found['bits_per_byte']:.4f} bits per byte of {what} (8: knows nothing; lower is "
        "better)"
    ]
    for other in found["beside"]:
        word = "below" if other["difference_percent"] < 0 else "above"
        said.append(
            f"  {abs(other['difference_percent']):5.1f} % {word}  {other['bits_per_byte']:.4f}  "
            f"{other['name']}"
        )
    said += [f"  {sentence}" for sentence in found["advice"]]
    return said + ([f"Then: {found['next']}"] if found["next"] else [])


def read_report(run: Run) -> dict:
    """The report of a finished run.

    Raises:
        UsageError: it has none yet.
    """
    if not (run.path / FILE).is_file():
        raise UsageError(
            f"{run.name} has no report yet: it is written when training ends (`newllm runs status "
            f"{run.name}`)."
        )
    return json.loads((run.path / FILE).read_text(encoding="utf-8"))


def _bigram(recipe: Recipe, data) -> float:
    """Validation bits per byte of the training split's bigram table (of its beginning, if long)."""
    train = data.train if hasattr(data.train, "ids") else load_split(recipe, data.tokenizer, "train")
    if len(train.ids) > _COUNTED:
        mask = train.loss_mask
        train = replace(train, ids=train.ids[:_COUNTED], loss_mask=None if mask is None else mask[:_COUNTED])
    return bigram(train, data.validation, data.tokenizer)["bits_per_byte"]


def _earlier_runs(recipe: Recipe, run: Run, best: dict, most: int = 3) -> Iterator[tuple[str, float]]:
    """The best other runs of this model that were measured on the very same text: (name, bits per byte)."""
    found = runs_on_the_same_text(run, best, lambda record: _kind(record) == ("train", recipe.model))
    yield from ((f"{name} (an earlier run)", value) for name, value in found[:most])


def runs_on_the_same_text(
    run: Run, best: dict, fits: Callable[[dict], bool] = lambda record: True
) -> list[tuple[str, float]]:
    """Other runs here that were measured on the same text as `run`: (name, bits per byte), the best first.

    Args:
        best: a row of the run's metrics with what was measured.
        fits: of a run's record, whether it is meant.
    """
    found = []
    for other in list_runs():
        if other.path.resolve() == run.path.resolve() or not other.recipe_path.is_file():
            continue
        row = other.best_evaluation()
        same = row and all(row.get(key) == best.get(key) for key in _SAME_TEXT)
        if same and fits(read_record(other.recipe_path)):
            found.append((other.name, row["eval_bits_per_byte"]))
    return sorted(found, key=lambda pair: pair[1])


def _kind(record: dict) -> tuple[str, str]:
    return record.get("task", "train"), record.get("model", "new_llm")  # whatever version wrote it


def _advice(
    recipe: Recipe,
    run: Run,
    evaluations: list[dict],
    best: dict,
    table: float,
    documents: float = float("inf"),
) -> Iterator[str]:
    """What the figures ask for, each with the option to change: one that would change this run.

    Args:
        documents: how many there were to train on.
    """
    scores = [row["eval_bits_per_byte"] for row in evaluations]
    place = min(range(len(scores)), key=scores.__getitem__)
    rate = recipe.scaled_learning_rate()
    last = place == len(scores) - 1
    falling = last and place and (scores[-2] - scores[-1]) / scores[-2] > _STILL_FALLING
    # it stopped because it no longer improved: then more steps are not taken
    stopped = recipe.patience is not None and len(scores) - 1 - place >= recipe.patience
    longer = _longer(recipe, evaluations[-1])
    if best["eval_bits_per_byte"] > table:
        other = "" if falling else f"hange --learning_rate (now {rate:.1e}), or --num_layers"
        more = f"Train longer ({longer})" + (f", or c{other}" if other else "")
        yield (
            "Not below the bigram table: it uses little more than the last token. "
            f"{f'C{other}' if stopped else more}."
        )
    elif falling:
        yield f"Still improving when it ended: {longer} would go further."
    if not place and len(scores) > 1:
        yield f"Not improving: the first evaluation stayed the best. Lower --learning_rate (now {rate:.1e})."
    elif len(scores) - 1 - place >= 2:
        yield (
            f"Not improving after epoch {best['epoch']:.3g}, where the best model was kept: it learns by "
            f"heart. More text ({_more_text(recipe, documents)})"
            + (f", or --dropout {recipe.dropout + 0.1:.1f}." if recipe.dropout <= 0.4 else ".")
        )
    samples = rows_of(run)
    if samples and samples[-1]["warning"]:
        how = "on more text" if stopped else f"longer ({longer}), or on more text"
        yield f"{samples[-1]['warning']} (samples.md): train {how}."
    seconds = _seconds(recipe, run)
    if seconds > _LONG:
        yield (
            f"Slow: {duration(seconds)} of training. Quicker with "
            f"{'fewer --max_steps' if recipe.max_steps else 'fewer documents (--max_samples)'}, shorter "
            "blocks (--max_seq_length), fewer --num_layers, or on a faster GPU."
        )


def _longer(recipe: Recipe, last: dict) -> str:
    """The option that trains about twice as long as this run, by what ended it: max_steps, or the epochs."""
    steps, epochs = recipe.max_steps, f"--epochs {2 * recipe.epochs:g}"
    if not steps or last["step"] < steps or not last["epoch"]:
        return epochs
    all_epochs = round(recipe.epochs * last["step"] / last["epoch"])
    if 2 * steps <= all_epochs:
        return f"--max_steps {2 * steps}"
    return "--max_steps none" if all_epochs > 1.5 * steps else f"--max_steps none {epochs}"


def _more_text(recipe: Recipe, documents: float) -> str:
    if recipe.max_samples and documents >= recipe.max_samples:
        return f"--max_samples {5 * recipe.max_samples}"
    return "a larger set" if recipe.from_run else "a larger set, or --from a run that was trained on one"


def _seconds(recipe: Recipe, run: Run) -> float:
    """How long the optimizer steps took, at the speed that was logged."""
    rows = [row for row in run.metrics() if row.get("tokens_per_second")]
    if not rows:
        return 0.0
    tokens = rows[-1]["step"] * recipe.batch_size * recipe.max_seq_length
    return tokens / statistics.median(row["tokens_per_second"] for row in rows)


def _next(recipe: Recipe, run: Run) -> str:
    """The step that the guides take next."""
    name = run.name if run.path.parent.name == "checkpoints" else str(run.path)
    if recipe.recipe == "dailydialog":
        model, here, there = _OTHER.get(recipe.model, ("", "", ""))
        other = run.path.with_name(run.name.replace(here, there, 1)) if model else run.path
        if other != run.path and (other / "best").is_dir():
            return f"newllm compare {name} {other.name if name == run.name else other}"
        return f"newllm train dailydialog --model {model}, then compare the two" if model else ""
    following = _LADDER.get(recipe.recipe)
    return f"newllm train {following} --from {name}" if following else ""
