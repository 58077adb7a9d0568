"""From a recipe with `task: grpo` to a finished run: reward, prompts, base, measures, training, the card.

Lock, status and the run's folder are `training.run`'s; resuming, saving and signals `training.trl.run`'s; the
trainer is in `grpo_task`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from newllm_lib import console
from newllm_lib.checkpoints import load_model
from newllm_lib.checkpoints.location import shown_name
from newllm_lib.data.cache import key_hash
from newllm_lib.data.preferences import load_prompts
from newllm_lib.data.preferences.encode import encode_prompt
from newllm_lib.data.preferences.prompts import Prompt
from newllm_lib.data.templates import TemplateRefused
from newllm_lib.device import Device
from newllm_lib.errors import NewLLMError, UsageError
from newllm_lib.evaluation.answers import some_pairs
from newllm_lib.recipe import Recipe
from newllm_lib.runs import Run, atomic_write_text, checkpoint_step
from newllm_lib.training.base_needs import base_hours, check_base_memory
from newllm_lib.training.compile import dtype_of
from newllm_lib.training.grpo.grpo_task import GRPOTask, HeldOutPrompts, in_words
from newllm_lib.training.grpo.reward import load_reward
from newllm_lib.training.timetable import Timetable
from newllm_lib.training.trl.base import Base, check_window
from newllm_lib.training.trl.card import CARD, trained, use_section, versions
from newllm_lib.training.trl.run import begin_run, is_trained, open_run, plan_steps, train_task
from newllm_lib.training.trl.task import TrlRun

RESULT = "preferences.json"  # in the run: the figures and answers before training and after it
_SHOWN = 8  # answers on the card


def train_by_reward(recipe: Recipe, run: Run, device: Device, was_finished: bool) -> None:
    """Train a base by a reward until done; nothing if it was finished before.

    Raises:
        UsageError: no reward, other data, or a base that is not there.
        NewLLMError: prompts that do not fit, a reward that fails, or a loss that is not finite.
    """
    _check(recipe)
    reward = load_reward(recipe.reward, device.torch_device)
    recipe.reward = reward.named
    base = Base(recipe, run, device)
    check_window(recipe, base)
    check_base_memory(recipe, device, base.needs)
    prompts = load_prompts(recipe)
    fingerprint = key_hash({"prompts": prompts.fingerprint, "reward": reward.fingerprint})
    job = open_run(recipe, run, device, fingerprint, "prompts, or the reward,")
    job.rows_a_step = recipe.batch_size // recipe.num_generations
    train, left_out = _that_fit(prompts.train, base.tokenizer, recipe)
    held_out, _ = _that_fit(prompts.evaluation, base.tokenizer, recipe)
    plan_steps(job, len(train), "prompts")
    finished = is_trained(job)
    done = was_finished or (finished and (run.path / RESULT).is_file())
    if job.checkpoint and recipe.resume == "auto" and done:
        console.say(f"{run.name} is finished already ({job.checkpoint.name}): nothing to do.")
        return
    begin_run(job)
    _announce(job, base, reward.name, prompts, left_out)
    base.keep()
    measures = HeldOutPrompts(held_out, base.tokenizer, reward, recipe, dtype_of(recipe, device))
    model = base.model.to(device.torch_device) if recipe.load_in == "full" else base.model
    console.say("Before training: what the base's answers are worth")
    said = measures.answers(model, _SHOWN)
    measures.before = measures.figures(model) | ({"kl": 0.0} if recipe.lora_rank else {})
    console.say(f"  {in_words(measures.before)}, on {len(held_out):,} held-out prompts")
    console.say(f"  {_expected(job, base, measures)}")
    if not finished:  # else it ended while it was measured
        task = GRPOTask(recipe, train, measures, base.needs.checkpointing)
        train_task(job, task, base, base.needs.at_once)
    _finish(job, measures, said, prompts.description())


def _check(recipe: Recipe) -> None:
    """Raise UsageError for what GRPO cannot do, before anything is read."""
    if recipe.batch_size % recipe.num_generations:
        raise UsageError(
            f"--batch_size {recipe.batch_size} counts answers, {recipe.num_generations} to each prompt "
            "(--num_generations): give a multiple of it."
        )
    if recipe.beta and not recipe.lora_rank:
        raise UsageError(
            f"--beta {recipe.beta:g} holds the model near its base, which is at hand only beside adapters: "
            "give --lora_rank 16, or --beta 0."
        )
    if recipe.max_completion_length >= recipe.max_seq_length:
        raise UsageError(
            f"--max_completion_length {recipe.max_completion_length} leaves no room for a prompt in "
            f"--max_seq_length {recipe.max_seq_length}: lower it."
        )


def _that_fit(prompts: Sequence[Prompt], tokenizer, recipe: Recipe) -> tuple[list[Prompt], int]:
    """The prompts that leave room for an answer, and how many do not.

    Raises:
        NewLLMError: none does.
    """
    room, kept = recipe.max_seq_length - recipe.max_completion_length, []
    for prompt in prompts:
        try:
            if len(encode_prompt(tokenizer, prompt.prompt)) <= room:
                kept.append(prompt)
        except TemplateRefused:  # many want user and assistant in turn, or no system message
            continue
    if not kept:
        raise NewLLMError(
            f"No prompt fits into {room} tokens: raise --max_seq_length or lower --max_completion_length."
        )
    return kept, len(prompts) - len(kept)


def _announce(job: TrlRun, base: Base, reward: str, prompts, left_out: int) -> None:
    recipe, device = job.recipe, job.device
    adapted = f"adapters of rank {recipe.lora_rank}" if recipe.lora_rank else "all weights"
    console.say(f"Run {job.run.path}: GRPO on {base.describe()}, training {adapted}, reward {reward}")
    console.say(f"  data: {prompts.description()}")
    for line in prompts.report.lines():
        console.say(f"    {line}")
    prompts.report.save(job.run)
    if left_out:
        console.say(f"  {left_out:,} prompts left out: too long, or the chat template refuses them")
    console.say(
        f"  {job.total_steps:,} steps of {recipe.batch_size} answers ({recipe.num_generations} to a prompt, "
        f"at most {recipe.max_completion_length} tokens), learning rate "
        f"{recipe.scaled_learning_rate():.1e}, beta {recipe.beta:g}, on {device.name} in "
        f"{dtype_of(recipe, device)}; about {base.needs.memory_gib:.1f} GiB (an estimate)"
    )
    if job.checkpoint:
        console.say(f"  Continuing from {job.checkpoint.name}")


def _expected(job: TrlRun, base: Base, measures: HeldOutPrompts) -> str:
    """How long training will take, from how fast the base has just answered the held-out prompts."""
    recipe, done = job.recipe, checkpoint_step(job.checkpoint) if job.checkpoint else 0
    answers = (job.total_steps - done) * recipe.batch_size
    writing = answers * measures.seconds_an_answer
    learning = 3600 * base_hours(recipe, job.device, base.needs, answers * recipe.max_seq_length)
    evaluations = Timetable(recipe, job.steps_per_epoch, job.total_steps).evaluations_from(done + 1)
    whole = writing + learning + evaluations * measures.seconds
    return (
        f"about {console.duration(whole)}, {console.duration(writing)} of it writing {answers:,} answers as "
        "fast as these (an estimate; longer answers take longer)"
    )


def _finish(job: TrlRun, measures: HeldOutPrompts, said: list[str], description: str) -> None:
    """Measure best/ as its user will load it, write result and card."""
    recipe, run = job.recipe, job.run
    model = load_model(run, "best", device=job.device.torch_device).model
    evaluations = [row for row in run.metrics() if "eval_loss" in row]
    best = min(evaluations, key=lambda row: row["eval_loss"])
    after = measures.figures(model) | {"kl": best.get("eval_kl")}
    result = {
        "base": recipe.base,
        "data": description,
        "reward": measures.reward.name,
        "best_step": best["step"],
        "longer": job.longer,
        "before": measures.before,
        "after": after,
        "clearly_better": after["reward_low"] > measures.before["reward_high"],
        "answers": [said, measures.answers(model, _SHOWN)],
    }
    atomic_write_text(run.path / RESULT, json.dumps(result, ensure_ascii=False, indent=1))
    card = _write_card(run, recipe, result, measures)
    console.say(f"Before: {in_words(measures.before)}")
    console.say(f"After:  {in_words(after)} (best/, step {best['step']})")
    console.say(verdict(result))
    console.say(f"  {card}")


def verdict(result: dict) -> str:
    """One sentence: whether answers to prompts that training never saw are worth more."""
    after = result["after"]
    unwell = max(after["empty"], after["repeating"])
    warning = (
        f" {100 * unwell:.0f} % of its answers are empty or repeat: read some before you believe the reward."
        if unwell >= 0.5
        else ""
    )
    if result["clearly_better"]:
        return f"The reward on held-out prompts is above the base's, intervals apart.{warning}"
    return (
        f"No clear gain: the intervals before and after overlap (more {result.get('longer', '--epochs')}, a "
        f"larger --learning_rate, or a reward that tells more answers apart).{warning}"
    )


def _write_card(run: Run, recipe: Recipe, result: dict, measures: HeldOutPrompts) -> Path:
    before, after = result["before"], result["after"]
    rows = [("reward", *(_reward(figures) for figures in (before, after)))]
    rows += [
        (what, shown.format(before[name]), shown.format(after[name]))
        for what, name, shown in (
            ("length of the answers, characters", "length", "{:.0f}"),
            ("empty answers", "empty", "{:.0%}"),
            ("answers that repeat", "repeating", "{:.0%}"),
        )
    ]
    if after.get("kl") is not None:
        rows.append(("distance from the base (KL), nats an answer", "0", f"{after['kl']:.2f}"))
    questions = [prompt.question() for prompt in some_pairs(measures.prompts, _SHOWN)]
    said = [map(console.markdown_cell, row) for row in zip(questions, *result["answers"], strict=True)]
    lines = [
        f"# {run.name}",
        "",
        verdict(result),
        "",
        f"- base: `{shown_name(result['base'])}`",
        f"- trained: {trained(recipe)}",
        f"- data: {result['data']}",
        f"- reward: {console.markdown_cell(result['reward'])}",
        f"- GRPO: {recipe.epochs:g} epochs, {recipe.batch_size} answers a step, {recipe.num_generations} to "
        f"a prompt, learning rate {recipe.learning_rate:g}, beta {recipe.beta:g}, at most "
        f"{recipe.max_completion_length} tokens an answer, seed {recipe.seed}",
        f"- versions: {versions()}",
        "",
        "![curves](curves.png)",
        "",
        f"## On {before['prompts']:,} held-out prompts",
        "",
        "The reward is the mean over one sampled answer to each prompt (temperature 1); in brackets its 95 % "
        "interval, by resampling prompts. What people would think of the answers is not measured.",
        "",
        "| | before | after |",
        "|---|---:|---:|",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
        "## Answers",
        "",
        "The most probable ones, to held-out prompts.",
        "",
        "| prompt | before | after |",
        "|---|---|---|",
        *(f"| {' | '.join(row)} |" for row in said),
        "",
        *use_section(run, recipe),
    ]
    path = run.path / CARD
    atomic_write_text(path, "\n".join(lines) + "\n")
    return path


def _reward(figures: dict) -> str:
    return f"{figures['reward']:+.4f} ({figures['reward_low']:+.4f} to {figures['reward_high']:+.4f})"
