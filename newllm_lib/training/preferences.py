"""From a recipe with `task: dpo` to a finished run: pairs, base, what it prefers before, training, and after, the card.

Lock, status, resuming, signals and the run's folder are `run`'s; the trainer is in `dpo`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import set_seed
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from newllm_lib import console
from newllm_lib.checkpoints import load_model
from newllm_lib.data.preferences import EncodedPairs, Pair, encode_pairs, load_preferences, shortcuts
from newllm_lib.device import Device
from newllm_lib.errors import Interrupted, NewLLMError, UsageError
from newllm_lib.evaluation.answers import answers, collapsed, health, kl_from_base, some_pairs
from newllm_lib.evaluation.carry import window
from newllm_lib.evaluation.preferences import clearly_better, in_words, pair_log_probs, preference_metrics
from newllm_lib.models.lora import lora_config, without_dropout
from newllm_lib.recipe import Recipe
from newllm_lib.runs import Run, atomic_write_text, check_folder, checkpoint_step, write_status
from newllm_lib.training.arguments import argument_values
from newllm_lib.training.base import PreparedBase, prepare_base
from newllm_lib.training.callbacks import Heartbeat, MirrorNews, SaveRequests, Signals, Timetable
from newllm_lib.training.card import write_card
from newllm_lib.training.compiling import dtype_of
from newllm_lib.training.estimate import preference_needs
from newllm_lib.training.keeping import only_data_is_read
from newllm_lib.training.memory import count_from_here, with_smaller_micro_batches
from newllm_lib.training.preference_curves import plot_preferences
from newllm_lib.training.preference_log import LogBeforeSaving, PreferenceLog, say_result
from newllm_lib.training.progress import Progress
from newllm_lib.training.resuming import checkpoint_to_resume, forget_rows_after, free_name, set_aside_after

RESULT = "preferences.json"  # in the run: the figures and answers before training and after it
_WATCHED = 12  # prompts that are answered at each evaluation


@dataclass
class PreparedPairs:
    """All that training knows of its pairs; log-probabilities of the base model are (pairs, 2)."""

    tokenizer: object
    train: EncodedPairs
    evaluation: EncodedPairs
    train_reference: torch.Tensor
    evaluation_reference: torch.Tensor
    before: dict  # figures and answers of the base

    @staticmethod
    def state() -> None:
        """Nothing: the order of the pairs comes from the seed and the epoch alone."""

    def watched(self) -> list[Pair]:
        return some_pairs(self.evaluation.pairs, _WATCHED)

    def watch(self, model, dtype) -> dict:
        """The health of a model's answers and its distance from the base."""
        said = answers(model, self.tokenizer, self.watched(), self.before["answer_tokens"])
        kl = kl_from_base(model, self.tokenizer, self.watched(), self.before["answer_tokens"], dtype=dtype)
        return health(said) | ({} if kl is None else {"kl": kl})

    def problem(self, found: dict) -> str | None:
        """What has gone wrong with the answers since training began."""
        return collapsed(found, self.before["figures"])


def train_preferences(recipe: Recipe, run: Run, device: Device, was_finished: bool) -> None:
    """Train a preference run until done; nothing if it was finished before.

    Raises:
        UsageError: other data, or a base that is not there. NewLLMError: pairs that do not fit, a loss that is no number, or
            answers that became empty or repeat themselves.
    """
    _refuse(recipe)
    count_from_here()
    checkpoint = checkpoint_to_resume(recipe, run)
    pairs = load_preferences(recipe)
    if checkpoint:
        check_folder(checkpoint)
    progress = Progress.load(checkpoint) if checkpoint else Progress()
    if progress.data_fingerprint not in ("", pairs.fingerprint):
        raise UsageError(
            f"The pairs are not what {run.path} was started with: bring those back, or start a new run with --output_dir "
            f"{free_name(run)}."
        )
    progress.data_fingerprint = pairs.fingerprint
    base = prepare_base(recipe, run)
    _check_window(recipe, base.model)
    encoded = [encode_pairs(split, base.tokenizer, recipe.max_seq_length) for split in (pairs.train, pairs.evaluation)]
    steps_per_epoch, total = _steps(recipe, len(encoded[0].rows))
    trained = checkpoint is not None and recipe.resume == "auto" and checkpoint_step(checkpoint) >= total
    if checkpoint and recipe.resume == "auto" and (was_finished or trained and (run.path / RESULT).is_file()):
        console.say(f"{run.name} is finished already ({checkpoint.name}): nothing to do.")
        return
    atomic_write_text(run.recipe_path, recipe.to_yaml())
    forget_rows_after(run, checkpoint)
    set_aside_after(run, checkpoint)
    _announce(recipe, run, device, pairs, encoded, base, total, checkpoint)
    base.warm_start(recipe, run, device, encoded[0].rows)
    data = _prepare(recipe, run, device, encoded, base)
    if not trained:  # else it ended while it was measured
        _train_with_memory_left(recipe, run, device, data, base, progress, steps_per_epoch, total, checkpoint)
    _finish(recipe, run, device, data, pairs.description())


def _refuse(recipe: Recipe) -> None:
    """Raises:
    UsageError: a key or a loss that preference training does not know.
    """
    from newllm_lib.training.dpo import losses

    losses(recipe.loss_type)
    for key, default in (("from_run", None), ("weights_dtype", "fp32"), ("step_in_backward", False), ("carry_state", False)):
        if getattr(recipe, key) != default:
            instead = "name the model with --base" if key == "from_run" else "leave it out"
            raise UsageError(f"{key} is not for preference training: {instead}.")


def _check_window(recipe: Recipe, model) -> None:
    size = window(model)
    if size is not None and recipe.max_seq_length > size:
        raise UsageError(f"--max_seq_length {recipe.max_seq_length}: {recipe.base} reads at most {size} tokens at once.")


def _steps(recipe: Recipe, pairs: int) -> tuple[int, int]:
    """Optimizer steps in an epoch, and in all."""
    per_epoch = pairs // recipe.batch_size
    if not per_epoch:
        raise NewLLMError(f"{pairs} pairs to train on are fewer than one batch of {recipe.batch_size}: lower --batch_size.")
    total = max(1, round(recipe.epochs * per_epoch))
    return per_epoch, min(total, recipe.max_steps) if recipe.max_steps else total


def _announce(recipe, run, device, pairs, encoded, base: PreparedBase, total, checkpoint) -> None:
    need = preference_needs(recipe, device, base.model.config, base.parameters)
    trained = f"adapters of rank {recipe.lora_rank}" if recipe.lora_rank else "all weights"
    console.say(f"Run {run.path}: DPO on {base.name} ({need['parameters']:,} parameters), training {trained}")
    console.say(f"  data: {pairs.description()}")
    for split, name in zip(encoded, ("to train on", "held out"), strict=True):
        if split.summary():
            console.say(f"  {name}, in {recipe.max_seq_length} tokens: {split.summary()}")
    console.say(
        f"  {total:,} steps of {recipe.batch_size} pairs, learning rate {recipe.scaled_learning_rate():.1e}, "
        f"beta {recipe.beta:g}, on {device.name} in {dtype_of(recipe, device)}; about "
        f"{need['memory_estimate_gib']:.1f} GiB (an estimate)"
    )
    if checkpoint:
        console.say(f"  Continuing from {checkpoint.name}")


def _prepare(recipe: Recipe, run: Run, device: Device, encoded: Sequence[EncodedPairs], base: PreparedBase) -> PreparedPairs:
    """What the base prefers and says: the reference that training is measured against."""
    model = base.model.to(device.torch_device)
    dtype, pad = dtype_of(recipe, device), base.tokenizer.pad_token_id
    console.say("Before training: what the base prefers")
    started = time.monotonic()
    train_reference = pair_log_probs(model, encoded[0].rows, pad, dtype)
    seconds, held_out = time.monotonic() - started, encoded[1]
    reference = pair_log_probs(model, held_out.rows, pad, dtype)
    figures = preference_metrics(reference, reference, held_out.pairs, recipe.beta)
    length = max(len(row[side]) for row in held_out.rows for side in ("chosen_ids", "rejected_ids"))
    tokens = min(length + 8, recipe.max_seq_length // 2)
    said = answers(model, base.tokenizer, some_pairs(held_out.pairs, _WATCHED), tokens)
    before = {"figures": figures | health(said), "answers": said, "answer_tokens": tokens, "reference_seconds": seconds}
    console.say(f"  {in_words(figures)}, on {len(held_out.pairs):,} held-out pairs")
    return PreparedPairs(base.tokenizer, *encoded, train_reference, reference, before)


def _train_with_memory_left(recipe, run, device, data, base, progress, steps_per_epoch, total, checkpoint) -> None:
    """Train; when the GPU's memory is short, take fewer pairs at a time and go on from the last save."""

    def attempt(micro: int, first: bool) -> None:
        latest = checkpoint if first else run.latest_checkpoint()
        if not first:
            forget_rows_after(run, latest)
        known = Progress.load(latest) if latest and not first else progress
        model = base.model if first else prepare_base(recipe, run).model
        _fit(recipe, run, device, data, model, known, steps_per_epoch, total, latest, micro)

    micro = preference_needs(recipe, device, base.model.config, base.parameters)["pairs_at_once"]
    advice = "lower --max_seq_length or --lora_rank, or name a smaller --base"
    with_smaller_micro_batches(micro, recipe.batch_size, "pairs", advice, attempt)


def _fit(recipe, run, device, data, model, progress, steps_per_epoch, total, checkpoint, micro) -> None:
    from newllm_lib.training.dpo import PreferenceTrainer, dpo_config

    set_seed(recipe.seed)
    rank = recipe.lora_rank
    adapters = lora_config(model, rank, recipe.lora_alpha, recipe.lora_dropout) if rank else None
    signals, log = Signals(), PreferenceLog(total / steps_per_epoch, steps_per_epoch)
    trainer = PreferenceTrainer(
        model=without_dropout(model), args=dpo_config(recipe, argument_values(recipe, run, device, total, micro)), recipe=recipe,
        run=run, data=data, peft_config=adapters, progress=progress, log=log, checkpoint=checkpoint,
        callbacks=[Timetable(recipe, steps_per_epoch), signals, log, MirrorNews(run), Heartbeat(run), SaveRequests(run),
                   LogBeforeSaving()],
    )  # fmt: skip
    trainer.eval_dtype = dtype_of(recipe, device)
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    count = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    write_status(run, total_steps=total, message=f"training {count:,} parameters")
    console.say(f"Training {count:,} parameters, {micro} pairs at a time")
    if not checkpoint:
        trainer.record(data.before["figures"] | ({"kl": 0.0} if rank else {}))
    try:
        with only_data_is_read(checkpoint):
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        signals.restore()
    plot_preferences(run)
    if signals.received is not None:
        raise Interrupted(f"Stopped at step {trainer.state.global_step} of {total}, saved: the same command continues.")


def _finish(recipe: Recipe, run: Run, device: Device, data: PreparedPairs, description: str) -> None:
    """Measure what was kept (best/, from the disk, as its user will load it), write result and card, and judge.

    Raises:
        NewLLMError: the answers of what was kept are empty or repeat themselves.
    """
    kept = load_model(run, "best", device=device.torch_device)
    model, tokenizer = kept.model, kept.tokenizer
    dtype, pad = dtype_of(recipe, device), tokenizer.pad_token_id
    log_probs = pair_log_probs(model, data.evaluation.rows, pad, dtype)
    figures = preference_metrics(log_probs, data.evaluation_reference, data.evaluation.pairs, recipe.beta)
    said = answers(model, tokenizer, data.watched(), data.before["answer_tokens"])
    evaluations = [row for row in run.metrics() if "eval_loss" in row]
    best = min(evaluations, key=lambda row: row["eval_loss"])
    after = {"figures": figures | health(said) | {"kl": best.get("eval_kl")}, "answers": said}
    before, last = data.before["figures"], {k.removeprefix("eval_"): v for k, v in evaluations[-1].items()}
    problem = data.problem(after["figures"]) or data.problem(last)
    result = {
        "base": recipe.base, "data": description, "best_step": best["step"], "before": data.before, "after": after,
        "clearly_better": clearly_better(before, after["figures"]), "problem": problem,
        "questions": [pair.question() for pair in data.watched()], "preferred": [pair.chosen for pair in data.watched()],
        "shortcuts": shortcuts(data.train.pairs, data.evaluation.pairs),
    }  # fmt: skip
    atomic_write_text(run.path / RESULT, json.dumps(result, ensure_ascii=False, indent=1))
    card = write_card(run, recipe, result)
    say_result(result, card)
    if problem:
        raise NewLLMError(f"Not a success: {problem}. Lower --learning_rate or raise --beta (what was measured: {card}).")
