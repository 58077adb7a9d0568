"""From a recipe to a finished run folder: prepare, resume, train, and survive what goes wrong on the way."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import torch
from transformers import set_seed
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from newllm_lib import console
from newllm_lib.checkpoints.weights import check_weights
from newllm_lib.data import prepare
from newllm_lib.device import Device, probe
from newllm_lib.errors import Interrupted, NewLLMError, UsageError
from newllm_lib.models import parameters
from newllm_lib.ops import ahead
from newllm_lib.ops.common.dispatch import kernels
from newllm_lib.recipe import Recipe
from newllm_lib.runs import (
    BACKGROUND,
    Run,
    RunLock,
    atomic_write_text,
    check_folder,
    check_shared,
    checkpoint_step,
    gpu_for,
    link_log,
    read_status_file,
    write_status,
)  # fmt: skip
from newllm_lib.training import hosts, ranks
from newllm_lib.training.adapters import BASE, add_adapters, keep_base
from newllm_lib.training.agreement import Agreement
from newllm_lib.training.arguments import training_arguments
from newllm_lib.training.callbacks import Heartbeat, LogBlock, SaveRequests, Signals, StepLog, Timetable
from newllm_lib.training.compiling import compilation, dtype_of
from newllm_lib.training.curvature import CurvatureSchedule, has_curvature_schedule
from newllm_lib.training.curves import plot_curves, write_training_log
from newllm_lib.training.determinism import deterministic
from newllm_lib.training.distill import refuse_distillation
from newllm_lib.training.estimate import check_memory, estimate, micro_batch_size
from newllm_lib.training.keeping import Kept, MirrorNews, continue_from_copy, copy_of, only_data_is_read
from newllm_lib.training.lowmem.graphs import StepGraph
from newllm_lib.training.lowmem.plan import make_model, prepare_blocks, refuse
from newllm_lib.training.model_config import build_model, count_parameters, load_model, model_config
from newllm_lib.training.progress import Progress
from newllm_lib.training.report import report
from newllm_lib.training.resuming import checkpoint_to_resume, forget_rows_after, free_name, set_aside_after, settle
from newllm_lib.training.several import in_words, is_cut, parts, processes, refuse_several
from newllm_lib.training.sharding import cut
from newllm_lib.training.start import Start, find_start, start_to_resume, tokenizer_for
from newllm_lib.training.trainer import RunTrainer

Job = Callable[[Recipe, Run, Device, bool], None]


def train(recipe: Recipe, job: Job | None = None, was_finished: bool | None = None) -> Run:
    """Train what `recipe` describes in its run folder; an unfinished run continues where it was saved last.

    Args:
        job: prepares and trains, called with the recipe, the run (locked), the device and whether the run was finished before.
            Default: learn to predict the next token.
        was_finished: that, where a launcher of ours knows it and holds the run.
    Raises:
        UsageError: the folder holds another run (names the keys that differ), or the device asked for is not there.
        NewLLMError: data, disk, memory or a loss that is no number; what was saved is kept.
        Interrupted: stopped by a signal, after saving.
    """
    console.quiet_libraries()
    console.mute(not ranks.is_first())
    with ranks.reporting():
        recipe, run, copy, device = _settled(recipe, job)
        count = processes(recipe, device)
        if ranks.several():
            ranks.join(device.torch_device)
            work = partial(_train_among_others, job)
        elif count > 1:
            work = partial(_launch, count)
        else:
            work = job or _train_locked
        if ranks.holds_the_run():
            gpu = nullcontext() if ranks.several() or count > 1 else _gpu(recipe, run, device)  # else each process has its own
            _hold_and_train(recipe, run, copy, device, gpu, work)
        else:
            work(recipe, run, device, was_finished)
    return run


def _settled(recipe: Recipe, job: Job | None) -> tuple[Recipe, Run, Run | None, Device]:
    """The recipe as the run records it, the run, its copy and the device; what cannot be is refused before anything is made."""
    device = probe()
    if device.torch_device == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"NEWLLM_DEVICE={device.kind} needs a GPU, and torch sees none here: unset it to train on the CPU.")
    run = Run(recipe.run_path())
    check_shared(run.path, "run", "--output_dir")
    copy = copy_of(recipe, run)
    for home in (run, copy):
        recipe = settle(recipe, home) if home is not None else recipe
    refuse(recipe, device)
    refuse_distillation(recipe)
    dtype_of(recipe, device)  # refuses what the device cannot do
    count = processes(recipe, device)
    refuse_several(recipe, device, count)
    if recipe.carry_state and recipe.model == "tiny_gpt2":
        raise UsageError(f"carry_state needs a model with a state, and {recipe.model} has none: leave it out, or use another.")
    if job is None and recipe.lora_rank and recipe.from_run is None:
        raise UsageError("--lora_rank trains adapters beside weights that have learned something: name their run with --from.")
    if job is None:
        check_memory(recipe, device, parts(recipe, device))
    if not run.checkpoints() and not (copy and copy.checkpoints()):
        find_start(recipe)  # refuses what is not there
    return recipe, run, copy, device


def _hold_and_train(recipe: Recipe, run: Run, copy: Run | None, device: Device, gpu, work: Job) -> None:
    """Do the work with the run's lock, mirror and log in hand, and keep its status true."""
    with Kept(recipe, run) as kept, RunLock(run), gpu:
        if not os.environ.get(BACKGROUND):  # a background run's output is the log already
            console.also_to(run.log)
        link_log(run)
        before = read_status_file(run)
        try:
            if continue_from_copy(copy, recipe, run):
                before = read_status_file(run)
            kept.begin()
            write_status(run, state="running", message="preparing")
            with kernels(recipe.kernels != "off"), deterministic(recipe.deterministic):
                work(recipe, run, device, before["state"] == "done")
            write_status(run, state="done", message="finished")
        except (Interrupted, KeyboardInterrupt) as stop:
            write_status(run, state="interrupted", message=str(stop) or "interrupted; what came after the last save is lost")
            raise
        except UsageError as error:  # nothing was changed: the run is what it was
            known = before["state"] in ("done", "failed", "interrupted")
            write_status(run, state=before["state"] if known else "failed", message=before["message"] if known else str(error))
            raise
        except BaseException as error:
            write_status(run, state="failed", message=str(error).splitlines()[0] if str(error) else type(error).__name__)
            raise
        finally:
            console.also_to(None)


def _train_among_others(job: Job | None, recipe: Recipe, run: Run, device: Device, was_finished: bool | None) -> None:
    """One of several processes: the first knows whether the run was finished."""
    if ranks.is_first() and not ranks.holds_the_run() and not os.environ.get(BACKGROUND):
        console.also_to(run.log)
    try:
        hosts.check_that_all_plan_the_same(recipe, device)
        with _gpu(recipe, run, device), kernels(recipe.kernels != "off"):
            (job or _train_locked)(recipe, run, device, ranks.as_the_first_says(was_finished))
    except Interrupted as stop:
        if int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)):  # an exit code that is not 0 would start it again at once
            console.say(str(stop))
            raise SystemExit(0) from stop
        raise
    finally:
        if not ranks.holds_the_run():
            console.also_to(None)


def _launch(count: int, recipe: Recipe, run: Run, device: Device, was_finished: bool) -> None:
    from newllm_lib.training.launch import launch

    console.also_to(None)  # the first of the processes writes the log
    launch(recipe, device, count, was_finished)


def _gpu(recipe: Recipe, run: Run, device: Device):
    """The GPU that this process trains on, held for this run (nothing to hold on a CPU)."""
    if device.torch_device != "cuda":
        return nullcontext()
    return gpu_for(run, ranks.local_rank(), recipe.force)


def _train_locked(recipe: Recipe, run: Run, device: Device, was_finished: bool) -> None:
    """Prepare the data and train until done."""
    checkpoint = checkpoint_to_resume(recipe, run)
    hosts.check_that_all_see(run, checkpoint)
    if checkpoint:
        check_folder(checkpoint)
    progress = Progress.load(checkpoint) if checkpoint else Progress()
    start = _start(recipe, run, checkpoint, progress)
    tokenizer = tokenizer_for(recipe, start, checkpoint)
    leads = ranks.local_rank() == 0  # what it puts into its host's cache the others read
    with ranks.one_before_the_rest(leads):
        data = prepare(recipe, tokenizer=tokenizer, saved=progress.data_state, leads=leads)
    with contextlib.closing(data):
        _train_on(data, recipe, run, device, progress, checkpoint, start, was_finished)


def _train_on(data, recipe, run, device, progress, checkpoint, start, was_finished) -> None:
    """Train on prepared data until done, and say what came out; nothing if the run was finished before."""
    if progress.data_fingerprint not in ("", data.fingerprint):
        raise UsageError(
            f"The training data is not what {run.path} was started with: bring that back, or start a new run with "
            f"--output_dir {free_name(run)}."
        )
    progress.data_fingerprint = data.fingerprint
    if ranks.is_first():
        atomic_write_text(run.recipe_path, recipe.to_yaml())
    steps_per_epoch, total = _steps(recipe, data)
    if checkpoint and recipe.resume == "auto" and (was_finished or checkpoint_step(checkpoint) >= total):
        console.say(f"{run.name} is finished already ({checkpoint.name}): nothing to do.")
        return
    if ranks.is_first():
        forget_rows_after(run, checkpoint)
        set_aside_after(run, checkpoint)
    _announce(recipe, run, device, data, total, steps_per_epoch, checkpoint, start)
    _train_with_memory_left(recipe, run, device, data, progress, steps_per_epoch, total, checkpoint, start)
    if not ranks.is_first():
        return
    write_status(run, state="done", message="finished")  # a report that is cut off must not make it train again
    _say_finished(run)
    report(recipe, run, data)


def _start(recipe: Recipe, run: Run, checkpoint, progress: Progress) -> Start | None:
    """What this run starts, or was started, from; None: from scratch, or gone by now and not needed any more.

    Raises:
        UsageError: it is not what the run was started from.
    """
    if checkpoint is not None:
        return start_to_resume(recipe, run, progress.start_fingerprint) if recipe.from_run else None
    start = find_start(recipe)
    progress.start_fingerprint = start.fingerprint if start else ""
    return start


def _steps(recipe: Recipe, data) -> tuple[int, int]:
    """Optimizer steps in an epoch, and in all."""
    from newllm_lib.data.blocks import training_blocks

    _, sampler = training_blocks(data.train, recipe)
    per_epoch = len(sampler) // recipe.batch_size
    total = max(1, round(recipe.epochs * per_epoch))
    return per_epoch, min(total, recipe.max_steps) if recipe.max_steps else total


def _announce(recipe, run, device, data, total, steps_per_epoch, checkpoint, start) -> None:
    count = processes(recipe, device)
    need = estimate(recipe, device, data.train.tokens, count, parts(recipe, device))
    tokens = total * recipe.batch_size * recipe.max_seq_length
    console.say(f"Run {run.path}: {recipe.model} ({need['parameters']:,} parameters, preset for {recipe.sized_for})")
    if start:
        console.say(f"  starts from {start.name}: its best weights ({start.folder}, {start.fingerprint}) and its tokenizer")
    console.say(f"  data: {data.description}")
    console.say(
        f"  {total:,} steps of {recipe.batch_size} x {recipe.max_seq_length} tokens ({console.count(tokens)}, "
        f"{total / steps_per_epoch:.3g} epochs), learning rate {recipe.scaled_learning_rate():.2e}"
        + (
            f" (square-root scaling from {recipe.learning_rate:.2e} at batch {recipe.learning_rate_batch_size})"
            if recipe.learning_rate_batch_size not in (None, recipe.batch_size) else ""
        )
    )  # fmt: skip
    console.say(
        f"  on {device.name}, {dtype_of(recipe, device)}; about {console.duration(3600 * need['hours_estimate'])} and "
        f"{need['memory_estimate_gib']:.1f} GiB{' each' if count > 1 else ''} (an estimate; the log soon knows better)"
    )
    if ranks.several():
        console.say(f"  {in_words(recipe, device, count)}")
    if checkpoint:
        console.say(f"  Continuing from {checkpoint.name}")


def _train_with_memory_left(recipe, run, device, data, progress, steps_per_epoch, total, checkpoint, start) -> None:
    """Train; when the GPU's memory is short, halve the micro-batch (not the batch) and go on from the last save."""
    micro = micro_batch_size(recipe, device, ranks.world())
    while True:
        try:
            return _fit(recipe, run, device, data, progress, steps_per_epoch, total, checkpoint, start, micro)
        except torch.OutOfMemoryError as error:
            if micro == 1:
                raise NewLLMError(
                    "The GPU's memory is too small even for one sequence at a time: lower --max_seq_length, --hidden_size or "
                    "--num_layers (`newllm doctor --recipe` estimates)."
                ) from error
            if ranks.several():  # the others know nothing of it, and wait
                raise NewLLMError(
                    f"The GPU's memory is too small for {micro} sequences at a time: --micro_batch_size {micro // 2} (the batch "
                    "stays what it is). The same command with it continues from the last save."
                ) from error
        micro = next(n for n in range(micro // 2, 0, -1) if recipe.batch_size % n == 0)
        console.say(f"  Out of GPU memory: going on with {micro} sequences at a time (the batch stays {recipe.batch_size})")
        torch.cuda.empty_cache()
        checkpoint = run.latest_checkpoint()
        fresh = Progress(data_fingerprint=progress.data_fingerprint, start_fingerprint=progress.start_fingerprint)
        progress = Progress.load(checkpoint) if checkpoint else fresh
        forget_rows_after(run, checkpoint)


def _fit(recipe, run, device, data, progress, steps_per_epoch, total, checkpoint, start, micro) -> None:
    set_seed(recipe.seed)
    model = make_model(recipe, torch.device(device.torch_device), lambda: _model(recipe, run, data, checkpoint, start, device))
    if checkpoint:
        check_weights(checkpoint, model)
    how = compilation(recipe, device)
    if how == "replay" and is_cut(recipe, device):
        how = "off"  # what processes send each other in a pass is not recorded
    blocks = prepare_blocks(model, recipe, micro, how)
    compiled = how in ("on", "graphs") and blocks is None
    if blocks is None and not recipe.teacher and device.torch_device == "cuda" and not ranks.several():
        ahead.rehearse(model.to(device.torch_device), partial(_loss_of_a_batch, model, recipe, device, micro))
    if is_cut(recipe, device):
        cut(model, torch.device(device.torch_device), parts(recipe, device), compiled=compiled)
    elif compiled:
        torch._dynamo.config.optimize_ddp = False  # it would cut the graph where gradients are sent, which takes little time here
        body = model.model if recipe.teacher else model  # a distilled student's loss is computed outside the model
        body.compile(mode="reduce-overhead" if how == "graphs" else None)
    timetable, signals, requests = Timetable(recipe, steps_per_epoch), Signals(), SaveRequests(run)
    log = _log(recipe, total / steps_per_epoch, steps_per_epoch)
    callbacks = [timetable, signals, log, MirrorNews(run), Heartbeat(run), requests]
    if has_curvature_schedule(recipe):
        callbacks.append(CurvatureSchedule(recipe))
    agreement = Agreement(signals, timetable, requests) if ranks.several() else None
    callbacks += [agreement] if agreement else []
    trainer = RunTrainer(
        model=model, args=training_arguments(recipe, run, device, total, micro), recipe=recipe, run=run, data=data,
        progress=progress, log=log, checkpoint=checkpoint, blocks=blocks, callbacks=callbacks,
    )  # fmt: skip
    trainer.eval_dtype = dtype_of(recipe, device)
    if how == "replay" and blocks is None:
        dtype = torch.bfloat16 if trainer.eval_dtype == "bf16" else None
        trainer.replay(StepGraph(model, trainer.args.device, dtype, together=ranks.several()))
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    if ranks.is_first():
        write_status(run, total_steps=total, message=f"training {parameters(model):,} parameters")
    if start and not checkpoint:
        console.say(f"Before training: {start.name} on this data")
        trainer.evaluate()
    if ranks.rank():  # other dropout than the first process's
        ranks.own_random_numbers(recipe.seed, 0)
    try:
        with only_data_is_read(checkpoint):
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        signals.restore()
        if ranks.is_first():
            write_training_log(run)
    if ranks.is_first():
        plot_curves(run)
    if agreement.stopped if agreement else signals.received is not None:
        raise Interrupted(f"Stopped at step {trainer.state.global_step} of {total}, saved: the same command continues.")


def _loss_of_a_batch(model, recipe, device, micro: int) -> torch.Tensor:
    """The loss of a batch of nothing, computed as a training step will."""
    ids = torch.ones(micro, recipe.max_seq_length, dtype=torch.long, device=device.torch_device)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(dtype_of(recipe, device))
    state = {"use_cache": True} if recipe.carry_state else {}
    with torch.autocast(device.torch_device, dtype, enabled=dtype is not None):
        return model.train()(input_ids=ids, shift_labels=ids, **state).loss


_LARGE = 200_000_000  # parameters from which on a model is made on its GPU: a small machine's host could not hold it


def _log(recipe: Recipe, epochs: float, steps_per_epoch: int) -> LogBlock:
    if recipe.log_style == "epochs":
        return LogBlock(epochs, steps_per_epoch)
    return StepLog(epochs, steps_per_epoch, recipe.batch_size * recipe.max_seq_length)


def _model(recipe: Recipe, run: Run, data, checkpoint, start: Start | None, device: Device):
    """The model to train: fresh, the start's, or (to be filled by the Trainer) of the sizes that the checkpoint has."""
    if recipe.from_run is None:
        large = count_parameters(model_config(recipe, len(data.tokenizer))) > _LARGE
        return build_model(recipe, len(data.tokenizer), data.tokenizer, device.torch_device if large else None)
    if not recipe.lora_rank:
        return load_model(checkpoint or start.folder, recipe)
    if not checkpoint:
        with ranks.one_before_the_rest(ranks.is_first()):
            keep_base(run, start.folder)
    return add_adapters(load_model(run.path / BASE, recipe), recipe, run.path / BASE)


def _say_finished(run: Run) -> None:
    best = min((r for r in run.metrics() if "eval_bits_per_byte" in r), key=lambda r: r["eval_bits_per_byte"], default=None)
    if best:
        score = f"{best['eval_bits_per_byte']:.4f} bits per byte at step {best['step']}"
        console.say(f"Finished. Best validation: {score} ({run.best})")
