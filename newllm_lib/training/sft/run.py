"""From a recipe with `task: sft` to a finished run: base, dialogues, measures, training, the card.

Lock, status and the run's folder are `training.run`'s; resuming, saving and signals `training.trl.run`'s;
the trainer is in `sft_task`.
"""

from __future__ import annotations

import json

from newllm_lib import console
from newllm_lib.checkpoints import load_model
from newllm_lib.data import prepare_dialogues
from newllm_lib.device import Device
from newllm_lib.errors import UsageError
from newllm_lib.recipe import Recipe
from newllm_lib.runs import Run, atomic_write_text
from newllm_lib.training import report
from newllm_lib.training.base_needs import base_hours, check_base_memory
from newllm_lib.training.compile import dtype_of
from newllm_lib.training.memory.peak import release_memory
from newllm_lib.training.samples import Samples, rows_of
from newllm_lib.training.sft.card import verdict, write_card
from newllm_lib.training.sft.rows import DialogueRows
from newllm_lib.training.sft.sft_task import HeldOut, SFTTask, keeps_documents_apart
from newllm_lib.training.trl.base import Base, check_window
from newllm_lib.training.trl.run import begin_run, is_trained, open_run, plan_steps, train_task
from newllm_lib.training.trl.task import TrlRun

RESULT = "answers.json"  # in the run: the figures before training and after it


def train_answers(recipe: Recipe, run: Run, device: Device, was_finished: bool) -> None:
    """Train a base on dialogues until done; nothing if it was finished before.

    Raises:
        UsageError: other data, or a base that is not there.
        NewLLMError: data that do not fit, or a loss that is not finite.
    """
    base = Base(recipe, run, device)
    check_window(recipe, base)
    check_base_memory(recipe, device, base.needs)
    data = prepare_dialogues(recipe, base.tokenizer)
    job = open_run(recipe, run, device, data.fingerprint, "dialogues")
    rows = DialogueRows(data.train, recipe.max_seq_length, recipe.packing)
    plan_steps(job, len(rows), "rows" if recipe.packing else "dialogues")
    trained = is_trained(job)
    done = was_finished or (trained and (run.path / RESULT).is_file())
    if job.checkpoint and recipe.resume == "auto" and done:
        console.say(f"{run.name} is finished already ({job.checkpoint.name}): nothing to do.")
        return
    begin_run(job)
    _announce(job, data.description, rows, base)
    base.keep()
    samples = Samples(run, data, base.tokenizer, recipe.sample_tokens)
    held_out = HeldOut(data.validation, base.tokenizer, samples, dtype_of(recipe, device))
    if not trained:  # else it ended while it was measured
        _prepare_model(job, base, held_out)
        train_task(job, SFTTask(recipe, rows, held_out, base.needs.checkpointing), base, base.needs.at_once)
    _finish(job, base, held_out, data.description)


def _prepare_model(job: TrlRun, base: Base, held_out: HeldOut) -> None:
    """Download and read the base, and measure it before the first step.

    Raises:
        UsageError: it cannot tell apart the dialogues in one row.
    """
    if job.recipe.packing and not keeps_documents_apart(base.model):
        raise UsageError(
            f"--packing true: {job.recipe.base} would see the other dialogues of its row. Leave it out."
        )
    if job.checkpoint is None:
        if job.recipe.load_in == "full":
            base.model.to(job.device.torch_device)
        console.say("Before training: what the base makes of the held-out answers")
        held_out.before = held_out.figures(base.model)


def _announce(job: TrlRun, description: str, rows: DialogueRows, base: Base) -> None:
    recipe, device, need = job.recipe, job.device, base.needs
    trained = f"adapters of rank {recipe.lora_rank}" if recipe.lora_rank else "all weights"
    held = f" beside a base in {recipe.load_in}" if recipe.load_in != "full" else ""
    console.say(f"Run {job.run.path}: SFT on {base.describe()}, training {trained}{held}")
    console.say(f"  data: {description}")
    if rows.summary():
        console.say(f"  in {recipe.max_seq_length} tokens: {rows.summary()}")
    if recipe.packing:
        console.say(f"  packed into {len(rows):,} rows, apart from each other")
    tokens = job.epochs * rows.tokens
    hours = base_hours(recipe, device, need, tokens)
    recompute = ", activations computed twice" if need.checkpointing else ""
    console.say(
        f"  {job.total_steps:,} steps of {recipe.batch_size} {'rows' if recipe.packing else 'dialogues'} "
        f"({console.count(tokens)} tokens), learning rate {recipe.scaled_learning_rate():.1e}"
    )
    console.say(
        f"  on {device.name}, {dtype_of(recipe, device)}{recompute}; about {console.duration(3600 * hours)} "
        f"and {need.memory_gib:.1f} GiB (an estimate; the log soon knows better)"
    )
    if job.checkpoint:
        console.say(f"  Continuing from {job.checkpoint.name}")


def _finish(job: TrlRun, base: Base, held_out: HeldOut, description: str) -> None:
    """Measure best/ as its user will load it, write result and card, and judge."""
    recipe, run = job.recipe, job.run
    base.forget_model()
    release_memory()
    model = load_model(run, "best", device=job.device.torch_device).model
    evaluations = [row for row in run.metrics() if "eval_loss" in row]
    before = {name.removeprefix("eval_"): value for name, value in evaluations[0].items()}
    best = min(evaluations, key=lambda row: row["eval_loss"])
    result = {
        "base": recipe.base,
        "licence": base.outline.licence,
        "data": description,
        "best_step": best["step"],
        "longer": job.longer,
        "before": before,
        "after": held_out.figures(model),
        "samples": rows_of(run),
        "beside": report.runs_on_the_same_text(run, best),
    }
    atomic_write_text(run.path / RESULT, json.dumps(result, ensure_ascii=False, indent=1))
    card = write_card(run, recipe, result)
    console.say(f"{verdict(result)} (best/, step {best['step']})")
    for name, value in result["beside"]:
        console.say(f"  {value:.4f}  {name}")
    console.say(f"  {card}")
