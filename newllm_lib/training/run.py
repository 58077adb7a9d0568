"""The order of a run, from a recipe to a finished folder, read from top to bottom.

Settle what is asked for and refuse what cannot be; hold the folder; prepare the data; say what will be done;
train (`loop`), with less memory at a time if there is too little; report.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from newllm_lib import console, training
from newllm_lib.data import DataReport, PreparedData, prepare, training_blocks
from newllm_lib.device import Device, keep_freed_memory, probe
from newllm_lib.errors import Interrupted, NewLLMError, UsageError
from newllm_lib.ops.common.dispatch import kernels
from newllm_lib.recipe import Recipe
from newllm_lib.runs import (
    BACKGROUND,
    Run,
    RunLock,
    atomic_write_text,
    check_checkpoint_dir,
    check_shared,
    checkpoint_step,
    gpu_for,
    link_log,
    read_status_file,
    timing_in_words,
    write_status,
)
from newllm_lib.training import distributed
from newllm_lib.training.compile import dtype_of
from newllm_lib.training.context import RunContext
from newllm_lib.training.determinism import deterministic
from newllm_lib.training.distributed import preflight, process_group
from newllm_lib.training.distributed.strategy import check_distributed, describe, num_processes, num_shards
from newllm_lib.training.estimate import check_memory, estimate, micro_batch_size
from newllm_lib.training.initial_model import InitialModel, load_initial_model, start_to_resume, tokenizer_for
from newllm_lib.training.log import refuse_trackers
from newllm_lib.training.loop import TrainingLoop
from newllm_lib.training.losses import refuse_distillation
from newllm_lib.training.memory.peak import with_smaller_micro_batches
from newllm_lib.training.memory.plan import refuse
from newllm_lib.training.mirror_callbacks import MirroredRun, continue_from_copy, mirror_of
from newllm_lib.training.progress import Progress
from newllm_lib.training.resume import (
    checkpoint_to_resume,
    free_name,
    match_recorded_recipe,
    retire_newer_checkpoints,
    truncate_metrics,
)
from newllm_lib.training.timetable import begin_timing, timing

Job = Callable[[Recipe, Run, Device, bool], None]


def train(recipe: Recipe, job: Job | None = None, was_finished: bool | None = None) -> Run:
    """Train what `recipe` describes in its run folder; an unfinished run continues where it was saved last.

    Args:
        job: prepares and trains; called with the recipe, the run (locked), the device and whether the run was
            finished before. Default: learn to predict the next token.
        was_finished: that, where a launcher of ours knows it and holds the run.

    Raises:
        UsageError: the folder holds another run (names the keys that differ), or the device asked for is not
            there.
        NewLLMError: data, disk or memory fail, or the loss is not finite; what was saved is kept.
        Interrupted: stopped by a signal, after saving.
    """
    begin_timing()
    console.quiet_libraries()
    console.mute(not process_group.is_main_process())
    with process_group.reporting():
        recipe, run, copy, device = _settled(recipe, job)
        if device.torch_device == "cpu":
            keep_freed_memory()
        count = num_processes(recipe, device)
        if process_group.is_distributed():
            process_group.init_process_group(device.torch_device)
            work = partial(_train_among_others, job)
        elif count > 1:
            work = partial(_launch, count)
        else:
            work = job or _train_locked
        if process_group.owns_run():
            shared = process_group.is_distributed() or count > 1  # then each process holds a GPU of its own
            _hold_and_train(
                recipe, run, copy, device, nullcontext() if shared else _gpu(recipe, run, device), work
            )
        else:
            work(recipe, run, device, was_finished)
    return run


def _settled(recipe: Recipe, job: Job | None) -> tuple[Recipe, Run, Run | None, Device]:
    """The recorded recipe, the run, its copy and the device. Nothing is made before this returns.

    Raises:
        UsageError: what was asked for is impossible.
    """
    device = probe()
    if device.torch_device == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            f"NEWLLM_DEVICE={device.kind} needs a GPU, and torch sees none here: unset it to train on the "
            "CPU."
        )
    run = Run(recipe.run_path())
    check_shared(run.path, "run", "--output_dir")
    copy = mirror_of(recipe, run)
    for home in (run, copy):
        recipe = match_recorded_recipe(recipe, home) if home is not None else recipe
    refuse(recipe, device)
    refuse_distillation(recipe)
    refuse_trackers(recipe)
    dtype_of(recipe, device)  # refuses what the device cannot do
    count = num_processes(recipe, device)
    check_distributed(recipe, device, count)
    if recipe.carry_state and recipe.model == "tiny_gpt2":
        raise UsageError(
            f"carry_state needs a model with a state, and {recipe.model} has none: leave it out, or use "
            "another."
        )
    if job is None and recipe.lora_rank and recipe.from_run is None:
        raise UsageError(
            "--lora_rank trains adapters beside weights that have learned something: name their run with "
            "--from."
        )
    if job is None:
        check_memory(recipe, device, num_shards(recipe, device))
    if not run.checkpoints() and not (copy and copy.checkpoints()):
        load_initial_model(recipe)  # refuses what is not there
    return recipe, run, copy, device


def _hold_and_train(recipe: Recipe, run: Run, copy: Run | None, device: Device, gpu, work: Job) -> None:
    """Do the work with the run's lock, mirror and log in hand, and keep its status true."""
    with MirroredRun(recipe, run) as kept, RunLock(run), gpu:
        if not os.environ.get(BACKGROUND):  # a background run's output is the log already
            console.also_to(run.log)
        link_log(run)
        before = read_status_file(run)
        try:
            if continue_from_copy(copy, recipe, run):
                before = read_status_file(run)
            kept.begin()
            write_status(run, state="running", message="preparing")
            with kernels(recipe.kernels != "off"), deterministic(recipe.deterministic), _time_told(run):
                work(recipe, run, device, before["state"] == "done")
            write_status(run, state="done", message="finished")
        except (Interrupted, KeyboardInterrupt) as stop:
            write_status(
                run,
                state="interrupted",
                message=str(stop) or "interrupted; what came after the last save is lost",
            )
            raise
        except UsageError as error:  # nothing was changed: the run is what it was
            known = before["state"] in ("done", "failed", "interrupted")
            write_status(
                run,
                state=before["state"] if known else "failed",
                message=before["message"] if known else str(error),
            )
            raise
        except BaseException as error:
            write_status(
                run,
                state="failed",
                message=str(error).splitlines()[0] if str(error) else type(error).__name__,
            )
            raise
        finally:
            console.also_to(None)


@contextlib.contextmanager
def _time_told(run: Run) -> Iterator[None]:
    """At the block's end, or where it is interrupted, a line says where the time went, if a step was made."""
    try:
        yield
    finally:
        if timing().first_step is not None:
            console.say(timing_in_words(timing().write(run)))


def _train_among_others(
    job: Job | None, recipe: Recipe, run: Run, device: Device, was_finished: bool | None
) -> None:
    """One of several processes: the first knows whether the run was finished."""
    tells = process_group.is_main_process() and not process_group.owns_run()
    if process_group.is_main_process() and not process_group.owns_run() and not os.environ.get(BACKGROUND):
        console.also_to(run.log)
    try:
        preflight.check_same_plan(recipe, device)
        with _gpu(recipe, run, device), kernels(recipe.kernels != "off"):
            with _time_told(run) if tells else nullcontext():
                (job or _train_locked)(recipe, run, device, process_group.broadcast_object(was_finished))
    except Interrupted as stop:
        # an exit code that is not 0 would start it again at once
        if int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)):
            console.say(str(stop))
            raise SystemExit(0) from stop
        raise
    finally:
        if not process_group.owns_run():
            console.also_to(None)


def _launch(count: int, recipe: Recipe, run: Run, device: Device, was_finished: bool) -> None:
    console.also_to(None)  # the first of the processes writes the log
    distributed.launch.launch(recipe, device, count, was_finished)


def _gpu(recipe: Recipe, run: Run, device: Device):
    """The GPU that this process trains on, held for this run (nothing to hold on a CPU)."""
    if device.torch_device != "cuda":
        return nullcontext()
    return gpu_for(run, process_group.local_rank(), recipe.force)


def _train_locked(recipe: Recipe, run: Run, device: Device, was_finished: bool) -> None:
    """Prepare the data, train until done, and say what came out; nothing if the run was finished before."""
    checkpoint = checkpoint_to_resume(recipe, run)
    preflight.check_shared_filesystem(run, checkpoint)
    if checkpoint:
        check_checkpoint_dir(checkpoint)
    progress = Progress.load(checkpoint) if checkpoint else Progress()
    start = _start(recipe, run, checkpoint, progress)
    timing().enter("data")
    tokenizer = tokenizer_for(recipe, start, checkpoint)
    leads = process_group.local_rank() == 0  # what it puts into its host's cache the others read
    with process_group.main_process_first(leads):
        data = prepare(recipe, tokenizer=tokenizer, saved=progress.data_state, leads=leads)
    with contextlib.closing(data):
        micro = micro_batch_size(recipe, device, process_group.world_size())
        per_epoch, total = steps(recipe, data)
        context = RunContext(recipe, run, device, data, start, checkpoint, progress, per_epoch, total, micro)
        _record(context)
        trained = checkpoint is not None and (was_finished or checkpoint_step(checkpoint) >= total)
        if trained and recipe.resume == "auto":
            console.say(f"{run.name} is finished already ({checkpoint.name}): nothing to do.")
            return
        if process_group.is_main_process():
            truncate_metrics(run, checkpoint)
            retire_newer_checkpoints(run, checkpoint)
        _announce(context)
        timing().enter("model")
        _train_with_memory_left(context)
        if process_group.is_main_process():
            timing().enter("report")
            # were the report cut off, it must not train again
            write_status(run, state="done", message="finished")
            _say_finished(run)
            training.report.report(recipe, run, data)


def _start(recipe: Recipe, run: Run, checkpoint: Path | None, progress: Progress) -> InitialModel | None:
    """What this run starts, or was started, from; None: from scratch, or gone by now and not needed any more.

    Raises:
        UsageError: it is not what the run was started from.
    """
    if checkpoint is not None:
        return start_to_resume(recipe, run, progress.start_fingerprint) if recipe.from_run else None
    start = load_initial_model(recipe)
    progress.start_fingerprint = start.fingerprint if start else ""
    return start


def _record(context: RunContext) -> None:
    """Write the recipe into the run's folder, and the data's fingerprint into its progress.

    Raises:
        UsageError: the data are not those that the run was started with.
    """
    run, progress, fingerprint = context.run, context.progress, context.data.fingerprint
    if progress.data_fingerprint not in ("", fingerprint):
        raise UsageError(
            f"The training data is not what {run.path} was started with{_changes(context)}: bring that back, "
            f"or start a new run with --output_dir {free_name(run)} (and --from {run.name}, to begin with "
            "what it has learned)."
        )
    progress.data_fingerprint = fingerprint
    if process_group.is_main_process():
        atomic_write_text(run.recipe_path, context.recipe.to_yaml())
        context.data.report.save(run)


def _changes(context: RunContext) -> str:
    """What the data's report says otherwise than the run's, in brackets."""
    try:
        older = (context.run.path / DataReport.FILE).read_text(encoding="utf-8")
        changes = context.data.report.changes(DataReport.of(json.loads(older)))
    # an older version's run has none, and one from elsewhere anything
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return ""
    return f" ({changes})" if changes else ""


def steps(recipe: Recipe, data: PreparedData) -> tuple[int, int]:
    """Optimizer steps in an epoch, and in all."""
    _, sampler = training_blocks(data.train, recipe)
    per_epoch = len(sampler) // recipe.batch_size
    total = max(1, round(recipe.epochs * per_epoch))
    return per_epoch, min(total, recipe.max_steps) if recipe.max_steps else total


def _announce(context: RunContext) -> None:
    recipe, device, data, total = context.recipe, context.device, context.data, context.total_steps
    count = num_processes(recipe, device)
    need = estimate(recipe, device, data.train.tokens, count, num_shards(recipe, device))
    tokens = console.count(total * recipe.batch_size * recipe.max_seq_length)
    rate = f"learning rate {recipe.scaled_learning_rate():.2e}"
    if recipe.learning_rate_batch_size not in (None, recipe.batch_size):
        rate += (
            f" (square-root scaling from {recipe.learning_rate:.2e} at batch "
            f"{recipe.learning_rate_batch_size})"
        )
    hours, gib = console.duration(3600 * need["hours_estimate"]), need["memory_estimate_gib"]
    console.say(
        f"Run {context.run.path}: {recipe.model} ({need['parameters']:,} parameters, preset for "
        f"{recipe.sized_for})"
    )
    if context.start:
        start = context.start
        console.say(
            f"  starts from {start.name}: its best weights ({start.folder}, {start.fingerprint}) and its "
            "tokenizer"
        )
    console.say(f"  data: {data.description}")
    for line in data.report.lines():
        console.say(f"    {line}")
    console.say(
        f"  {total:,} steps of {recipe.batch_size} x {recipe.max_seq_length} tokens ({tokens}, "
        f"{total / context.steps_per_epoch:.3g} epochs), {rate}"
    )
    console.say(
        f"  on {device.name}, {context.dtype}; about {hours} and {gib:.1f} GiB{' each' if count > 1 else ''} "
        "(an estimate; the log soon knows better)"
    )
    if process_group.is_distributed():
        console.say(f"  {describe(recipe, device, count)}")
    if context.checkpoint:
        console.say(f"  Continuing from {context.checkpoint.name}")


def _train_with_memory_left(context: RunContext) -> None:
    """Train; when GPU memory is short, halve the micro-batch and go on from the last save."""

    def attempt(micro: int, first: bool) -> None:
        try:
            TrainingLoop(context if first else _from_last_save(context, micro)).run()
        except torch.OutOfMemoryError as error:
            if micro == 1 or not process_group.is_distributed():
                raise
            # the other processes know nothing of it, and wait
            raise NewLLMError(
                f"The GPU's memory is too small for {micro} sequences at a time: --micro_batch_size "
                f"{micro // 2} (the batch stays what it is). The same command with it continues from the "
                "last save."
            ) from error

    advice = "lower --max_seq_length, --hidden_size or --num_layers (`newllm doctor --recipe` estimates)"
    with_smaller_micro_batches(context.micro_batch, context.recipe.batch_size, "sequences", advice, attempt)


def _from_last_save(context: RunContext, micro: int) -> RunContext:
    """The run as its last checkpoint has it, or as it began, with another micro-batch."""
    checkpoint, before = context.run.latest_checkpoint(), context.progress
    progress = Progress(data_fingerprint=before.data_fingerprint, start_fingerprint=before.start_fingerprint)
    truncate_metrics(context.run, checkpoint)
    progress = Progress.load(checkpoint) if checkpoint else progress
    return replace(context, checkpoint=checkpoint, progress=progress, micro_batch=micro)


def _say_finished(run: Run) -> None:
    best = run.best_evaluation()
    if best:
        score = f"{best['eval_bits_per_byte']:.4f} bits per byte at step {best['step']}"
        console.say(f"Finished. Best validation: {score} ({run.best})")
