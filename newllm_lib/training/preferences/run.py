"""From a recipe that learns from pairs to a finished run: pairs, base, measures, training, the card.

Lock, status and the run's folder are `training.run`'s; resuming, saving and signals `training.trl.run`'s;
the trainers are in `dpo_task`, `orpo_task`, `kto_task` and `reward_task`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from newllm_lib import console
from newllm_lib.data.preferences import EncodedPairs, encode_pairs, load_preferences, shortcuts
from newllm_lib.device import Device
from newllm_lib.errors import NewLLMError, UsageError
from newllm_lib.evaluation.answers import health
from newllm_lib.evaluation.preferences import clearly_better
from newllm_lib.recipe import Recipe
from newllm_lib.runs import Run, atomic_write_text
from newllm_lib.training.base_needs import check_base_memory
from newllm_lib.training.compile import dtype_of
from newllm_lib.training.preferences.card import write_card
from newllm_lib.training.preferences.dpo_task import DPOTask
from newllm_lib.training.preferences.kto_task import KTOTask
from newllm_lib.training.preferences.log import say_result
from newllm_lib.training.preferences.orpo_task import ORPOTask
from newllm_lib.training.preferences.preference_task import PreferenceTask, PreparedPairs, prepare_pairs
from newllm_lib.training.preferences.reward_task import RewardTask
from newllm_lib.training.preferences.warm_start import warm_start
from newllm_lib.training.trl.base import Base, check_window
from newllm_lib.training.trl.run import begin_run, is_trained, open_run, plan_steps, train_task
from newllm_lib.training.trl.task import TrlRun

RESULT = "preferences.json"  # in the run: the figures and answers before training and after it
TASKS: dict[str, type[PreferenceTask]] = {
    "dpo": DPOTask,
    "orpo": ORPOTask,
    "kto": KTOTask,
    "reward": RewardTask,
}


def train_preferences(recipe: Recipe, run: Run, device: Device, was_finished: bool) -> None:
    """Train a preference run until done; nothing if it was finished before.

    Raises:
        UsageError: other data, or a base that is not there.
        NewLLMError: pairs that do not fit, a loss that is not finite, or answers that became empty or repeat
            themselves.
    """
    task = TASKS[recipe.task]
    if not recipe.beta and recipe.depends_on("beta"):
        raise UsageError(f"--beta 0: {task.title} would learn nothing; give 0.1.")
    task.check(recipe)
    if recipe.from_run is not None:
        raise UsageError("from_run is for task train: name the model with --base.")
    base = task.base(recipe, run, device)
    check_window(recipe, base)
    check_base_memory(recipe, device, base.needs)
    pairs = load_preferences(recipe)
    job = open_run(recipe, run, device, pairs.fingerprint, "pairs")
    encoded = [
        encode_pairs(split, base.tokenizer, recipe.max_seq_length)
        for split in (pairs.train, pairs.evaluation)
    ]
    plan_steps(job, task.count(encoded[0].rows), task.unit)
    trained = is_trained(job)
    if (
        job.checkpoint
        and recipe.resume == "auto"
        and (was_finished or trained and (run.path / RESULT).is_file())
    ):
        console.say(f"{run.name} is finished already ({job.checkpoint.name}): nothing to do.")
        return
    begin_run(job)
    _announce(job, pairs, encoded, base, task)
    warm_start(base, encoded[0].rows)
    data = prepare_pairs(recipe, device, encoded, base, task)
    if not trained:  # else it ended while it was measured
        train_task(job, task(recipe, data, base.needs.checkpointing), base, base.needs.at_once)
    _finish(job, data, pairs.description())


def _announce(
    job: TrlRun, pairs, encoded: Sequence[EncodedPairs], base: Base, task: type[PreferenceTask]
) -> None:
    recipe, device = job.recipe, job.device
    trained = f"adapters of rank {recipe.lora_rank}" if recipe.lora_rank else "all weights"
    console.say(f"Run {job.run.path}: {task.title} on {base.describe()}, training {trained}")
    console.say(f"  data: {pairs.description()}")
    for line in pairs.report.lines():
        console.say(f"    {line}")
    pairs.report.save(job.run)
    for split, name in zip(encoded, ("to train on", "held out"), strict=True):
        if split.summary():
            console.say(f"  {name}, in {recipe.max_seq_length} tokens: {split.summary()}")
    beta = f", beta {recipe.beta:g}" if recipe.depends_on("beta") else ""
    console.say(
        f"  {job.total_steps:,} steps of {recipe.batch_size} {task.unit}, learning rate "
        f"{recipe.scaled_learning_rate():.1e}{beta}, on {device.name} in "
        f"{dtype_of(recipe, device)}; about {base.needs.memory_gib:.1f} GiB (an estimate)"
    )
    if job.checkpoint:
        console.say(f"  Continuing from {job.checkpoint.name}")


def _finish(job: TrlRun, data: PreparedPairs, description: str) -> None:
    """Measure best/ as its user will load it, write result and card, and judge.

    Raises:
        NewLLMError: the answers of what was kept are empty or repeat themselves.
    """
    recipe, run = job.recipe, job.run
    model = data.task.load(run, "best", device=job.device.torch_device).model
    figures, said = data.figures(model), data.answers(model)
    evaluations = [row for row in run.metrics() if "eval_loss" in row]
    best = min(evaluations, key=lambda row: row["eval_loss"])
    after = {"figures": figures | health(said) | {"kl": best.get("eval_kl")}, "answers": said}
    before, last = data.before["figures"], {k.removeprefix("eval_"): v for k, v in evaluations[-1].items()}
    problem = data.problem(after["figures"]) or data.problem(last) or None
    watched = data.watched() if data.task.speaks else []
    result = {
        "base": recipe.base,
        "data": description,
        "best_step": best["step"],
        "longer": job.longer,
        "before": data.before,
        "after": after,
        "clearly_better": clearly_better(before, after["figures"]),
        "problem": problem,
        "unit": data.task.margin_unit,
        "questions": [pair.question() for pair in watched],
        "preferred": [pair.chosen for pair in watched],
        "shortcuts": shortcuts(data.train.pairs, data.evaluation.pairs),
    }
    atomic_write_text(run.path / RESULT, json.dumps(result, ensure_ascii=False, indent=1))
    card = write_card(run, recipe, result)
    say_result(result, card)
    if problem:
        raise NewLLMError(f"Not a success: {problem}. {data.task.advice} (what was measured: {card}).")
