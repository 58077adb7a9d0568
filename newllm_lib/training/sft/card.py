"""An instruction run on one page: base, data, figures before and after, answers."""

from __future__ import annotations

from pathlib import Path

from newllm_lib.checkpoints.location import shown_name
from newllm_lib.console import markdown_cell
from newllm_lib.recipe import Recipe
from newllm_lib.runs import Run, atomic_write_text
from newllm_lib.training.trl.card import CARD, trained, use_section, versions

_LEAST = 0.003  # share by which the figure must fall to be called a gain


def write_card(run: Run, recipe: Recipe, result: dict) -> Path:
    """Write `card.md` into the run's folder; returns the file."""
    before, after = result["before"], result["after"]
    lines = [
        f"# {run.name}",
        "",
        verdict(result),
        "",
        f"- base: `{shown_name(result['base'])}`, licence {result['licence'] or 'not named on its card'}: it "
        "binds what is made from it",
        f"- trained: {trained(recipe)}",
        f"- data: {result['data']}; at most {recipe.max_seq_length} tokens each",
        f"- {recipe.epochs:g} epochs, {recipe.batch_size} rows a step"
        + (", several dialogues in a row, apart" if recipe.packing else "")
        + f", learning rate {recipe.scaled_learning_rate():g}, seed {recipe.seed}, loss on {recipe.loss_on}"
        + (f", NEFTune {recipe.neftune_alpha:g}" if recipe.neftune_alpha else ""),
        f"- versions: {versions()}",
        "",
        "![curves](curves.png)",
        "",
        f"## On {before['documents']:,} held-out dialogues",
        "",
        "Bits per byte of the assistant's text (lower is better) can be compared between bases with "
        "different tokenizers; perplexity cannot.",
        "",
        "| | before | after |",
        "|---|---:|---:|",
        f"| bits per byte of the answers | {before['bits_per_byte']:.4f} | {after['bits_per_byte']:.4f} |",
        f"| perplexity (vocabulary {before['vocab_size']:,}) | {before['perplexity']:.2f} | "
        f"{after['perplexity']:.2f} |",
        f"| accuracy of the next token | {before['accuracy']:.1%} | {after['accuracy']:.1%} |",
        "",
        *_beside(result),
        *_answers(result),
        *use_section(run, recipe),
    ]
    path = run.path / CARD
    atomic_write_text(path, "\n".join(lines) + "\n")
    return path


def verdict(result: dict) -> str:
    """One sentence: whether the base became better at the answers of dialogues it had never seen."""
    before, after = result["before"]["bits_per_byte"], result["after"]["bits_per_byte"]
    gain = (before - after) / before
    if gain > _LEAST:
        return (
            f"Held-out answers cost {100 * gain:.1f} % fewer bits than before ({before:.4f} → {after:.4f})."
        )
    longer = result.get("longer", "--epochs")  # no key: a version before this one
    advice = "lower --learning_rate" if after > before else f"raise --learning_rate or {longer}"
    return f"No clear gain on held-out answers ({before:.4f} → {after:.4f} bits per byte): {advice}."


def _beside(result: dict) -> list[str]:
    if not result["beside"]:
        return []
    rows = [f"| {markdown_cell(name)} | {value:.4f} |" for name, value in result["beside"]]
    return ["Other runs here, on the same answers:", "", "| run | bits per byte |", "|---|---:|", *rows, ""]


def _answers(result: dict) -> list[str]:
    if not result["samples"]:  # --sample_tokens 0
        return []
    before, after = result["samples"][0], result["samples"][-1]
    lines = ["## Answers", "", "The most probable ones, cut at a fixed length.", ""]
    lines += ["| prompt | before | after |", "|---|---|---|"]
    columns = zip(after["prompts"], before["answers"], after["answers"], strict=True)
    return lines + [f"| {' | '.join(map(markdown_cell, row))} |" for row in columns] + [""]
