"""A preference run on one page: what was trained on what, figures before and after, answers."""

from __future__ import annotations

from pathlib import Path

from newllm_lib.checkpoints.location import shown_name
from newllm_lib.console import markdown_cell
from newllm_lib.recipe import Recipe
from newllm_lib.runs import Run, atomic_write_text
from newllm_lib.training.preferences.log import verdict
from newllm_lib.training.trl.card import CARD, trained, use_section, versions

_FEW = 5  # pairs


def write_card(run: Run, recipe: Recipe, result: dict) -> Path:
    """Write `card.md` into the run's folder; returns the file."""
    before, after = (result[when]["figures"] for when in ("before", "after"))
    method = "reward model" if recipe.task == "reward" else recipe.task.upper()
    unit = "answers" if recipe.task == "kto" else "pairs"
    beta = f", beta {recipe.beta:g}" if recipe.depends_on("beta") else ""
    loss = f", loss {recipe.loss_type}" if recipe.task == "dpo" else ""
    finds = "gives the higher reward" if recipe.task == "reward" else "finds more probable"
    lines = [
        f"# {run.name}",
        "",
        verdict(result),
        "",
        f"- base: `{shown_name(result['base'])}`"
        + (
            f", first taught the preferred answers for {recipe.sft_warm_start:g} epochs"
            if recipe.sft_warm_start
            else ""
        ),
        f"- trained: {trained(recipe)}",
        f"- data: {result['data']}",
        f"- {method}: {recipe.epochs:g} epochs, {recipe.batch_size} {unit} a step, learning rate "
        f"{recipe.learning_rate:g}{beta}{loss}, at most {recipe.max_seq_length} tokens, seed "
        f"{recipe.seed}",
        f"- versions: {versions()}",
        "",
        "![curves](curves.png)",
        "",
        f"## On {before['pairs']:,} held-out pairs",
        "",
        f"Accuracy: share of the pairs whose better answer the model {finds}. Margin: by how much, "
        f"{'in nats' if result['unit'] == 'nats' else 'in reward'}. In brackets 95 % intervals, by "
        "resampling all pairs about one thing together.",
        "",
        "| | before | after |",
        "|---|---:|---:|",
        *_figures(method, before, after),
        "",
    ]
    lines += _kinds(before, after) + _shortcuts(result) + _answers(result) + use_section(run, recipe)
    path = run.path / CARD
    atomic_write_text(path, "\n".join(lines) + "\n")
    return path


def _figures(method: str, before: dict, after: dict) -> list[str]:
    rows = [
        ("accuracy", _accuracy(before), _accuracy(after)),
        ("margin", _margin(before), _margin(after)),
        (f"{method} loss", f"{before['loss']:.4f}", f"{after['loss']:.4f}"),
    ]
    if method == "reward model":
        return [f"| {' | '.join(row)} |" for row in rows]
    rows += [
        ("log-probability of the better answer", f"{before['chosen']:.1f}", f"{after['chosen']:.1f}"),
        ("log-probability of the worse answer", f"{before['rejected']:.1f}", f"{after['rejected']:.1f}"),
        ("length of the model's answers, characters", f"{before['length']:.0f}", f"{after['length']:.0f}"),
        ("empty answers", f"{before['empty']:.0%}", f"{after['empty']:.0%}"),
        ("answers that repeat", f"{before['repeating']:.0%}", f"{after['repeating']:.0%}"),
    ]
    if after.get("kl") is not None:
        rows.append(("distance from the base (KL), nats an answer", "0", f"{after['kl']:.2f}"))
    return [f"| {' | '.join(row)} |" for row in rows]


def _kinds(before: dict, after: dict) -> list[str]:
    if "kinds" not in after:
        return []
    lines = ["By what is wrong with the rejected answer:", ""]
    header = ("kind", "pairs", "accuracy before", "accuracy after", "margin before", "margin after")
    lines += [f"| {' | '.join(header)} |", "|---" + "|---:" * 5 + "|"]
    for kind, now in after["kinds"].items():
        old = before["kinds"][kind]
        lines.append(
            f"| {kind} | {now['pairs']} | {_accuracy(old)} | {_accuracy(now)} | {_margin(old)} | "
            f"{_margin(now)} |"
        )
    return [*lines, ""]


def _shortcuts(result: dict) -> list[str]:
    """What the model's accuracy is to be compared with; nothing where all answers are single."""
    if not result["shortcuts"]:
        return []
    seen = ", ".join(
        f"{name.replace('_', ' ')} {100 * score:.1f} %" for name, score in result["shortcuts"].items()
    )
    return [
        "Right on as many pairs without a model, by classifiers that see nothing of the answers but their: "
        f"{seen}.",
        "",
    ]


def _answers(result: dict) -> list[str]:
    if not result["questions"]:
        return []
    lines = ["## Answers", "", "The most probable ones, to held-out prompts.", ""]
    lines += ["| prompt | before | after | the preferred answer |", "|---|---|---|---|"]
    columns = (
        result["questions"],
        result["before"]["answers"],
        result["after"]["answers"],
        result["preferred"],
    )
    return lines + [f"| {' | '.join(map(markdown_cell, row))} |" for row in zip(*columns, strict=True)] + [""]


def _accuracy(figures: dict) -> str:
    """An interval of very few pairs would only pretend to be one."""
    if figures["pairs"] < _FEW:
        return f"{figures['accuracy'] * figures['pairs']:g} of {figures['pairs']}"
    return (
        f"{100 * figures['accuracy']:.1f} % "
        f"({100 * figures['accuracy_low']:.1f}–{100 * figures['accuracy_high']:.1f})"
    )


def _margin(figures: dict) -> str:
    if figures["pairs"] < _FEW:
        return f"{figures['margin']:+.2f}"
    return f"{figures['margin']:+.2f} ({figures['margin_low']:+.2f} to {figures['margin_high']:+.2f})"
