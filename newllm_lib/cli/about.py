"""`newllm doctor`, `recipes` and `runs`: what is there, and what would happen."""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from dataclasses import asdict, fields
from importlib import metadata
from pathlib import Path

from newllm_lib import runs
from newllm_lib.cli.hints import command, word_for
from newllm_lib.console import duration, go_on_without_reader, printable, say
from newllm_lib.device import Device, probe, stale_packages
from newllm_lib.errors import NewLLMError, UsageError
from newllm_lib.recipe import Recipe, load_recipe, overrides, refuse_without_effect, shipped_recipes

PACKAGES = (
    "torch",
    "triton",
    "transformers",
    "datasets",
    "accelerate",
    "peft",
    "trl",
    "safetensors",
    "numpy",
    "matplotlib",
    "ipywidgets",
    "chitchat-dataset",
    "liger-kernel",
    "flash-linear-attention",
    "torchao",
    "bitsandbytes",
)


def doctor(arguments: argparse.Namespace) -> dict | int:
    """This machine, what will be used on it and why; with --recipe also what that recipe needs."""
    chosen = overrides(arguments)
    if chosen and not arguments.name:
        raise UsageError(
            f"--{next(iter(chosen))} changes a recipe: name one, as in `newllm doctor --recipe demo`."
        )
    device = probe()
    report = {
        **asdict(device),
        "device": device.kind,
        "versions": _versions(),
        "disk_free_gib": _disk_free_gib(),
    }
    disk = f"{report['disk_free_gib']:.1f} GiB free disk here"
    say(f"{device.name}: {device.memory_gib:.1f} GiB memory, {device.cores} cores, {disk}")
    for topic, reason in device.reasons.items():
        say(f"  {topic:<10} {reason}")
    report["stale_packages"] = stale_packages()
    for line in report["stale_packages"]:
        say(f"  {line}")
    say(
        "  "
        + ", ".join(f"{name} {version or '(not installed)'}" for name, version in report["versions"].items())
    )
    if arguments.kernels is not None:
        report["kernels_checked"] = _check_kernels(device, arguments.kernels)
    if arguments.name:
        recipe = load_recipe(arguments.name, chosen)
        refuse_without_effect(recipe.origin[1], recipe)
        report |= {"recipe": arguments.name, "run": recipe.run_name, **_needs(recipe, device)}
        say(f"Next: {command('train', arguments.name)}")
    else:
        say(f"Next: {command('doctor', '--recipe', 'demo')}   or   {command('demo')}")
    return report if arguments.json else 0


def _check_kernels(device: Device, names: list[str]) -> dict[str, float]:
    """Run each operation once on the GPU against its plain reference; the relative errors by name.

    Raises:
        NewLLMError: no GPU, no kernels for it, or one that computes something else.
    """
    if device.torch_device == "cpu" or device.kernels != "triton":
        raise NewLLMError(
            f"No kernels to check here ({device.reasons['kernels']}): training runs in plain torch."
        )
    import torch

    from newllm_lib.ops.self_check import check_kernels, refuse_mismatch

    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[device.dtype]
    found = check_kernels(torch.device(device.torch_device), dtype, names)
    for one in found:
        say(
            f"  {'✓' if one.passed else '✗'} {one.name:<21} {device.dtype}, off by {one.error:.1e} (allowed "
            f"{one.tolerance:.0e})"
        )
    refuse_mismatch(found)
    return {one.name: one.error for one in found}


def _needs(recipe: Recipe, device: Device) -> dict:
    from newllm_lib.training.estimate import estimate

    need = estimate(recipe, device)
    hours = need["hours_estimate"]
    time_needed = (
        f"about {duration(3600 * hours)}" if hours is not None else "time unknown until the data is read"
    )
    if need["parameters"] is None:
        say(
            f"Recipe {recipe.recipe}: what it needs is known when its base {recipe.base} has been asked of "
            "the hub"
        )
        return need
    what = recipe.base if recipe.task != "train" else recipe.model
    say(
        f"Recipe {recipe.recipe} ({what}): {need['parameters']:,} parameters stored and trainable, "
        f"about {need['memory_estimate_gib']:.1f} GiB while training, {time_needed} (estimates)"
    )
    return need


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": sys.version.split()[0]}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def _disk_free_gib() -> float:
    return round(shutil.disk_usage(Path.cwd()).free / 2**30, 2)


def list_recipes(arguments: argparse.Namespace) -> dict | int:
    """The shipped recipes, a line each."""
    recipes = shipped_recipes()
    for name, description in recipes.items():
        say(f"{name:<12} {description}")
    say(f"Next: {command('recipes', 'show', 'demo')}   or   {command('train', 'demo')}")
    return recipes if arguments.json else 0


def show_recipe(arguments: argparse.Namespace) -> dict | int:
    """A recipe as YAML that can be saved, changed and trained; each key with its meaning."""
    recipe = load_recipe(arguments.name, resolve_start=False)
    values = asdict(recipe) | {"run_name": "auto"}  # a changed copy gets a name of its own
    if not arguments.json:
        import yaml

        say(
            f"# {arguments.name}, as resolved for {recipe.sized_for}. Save it, change it, and train the file:"
        )
        say(f"# {command('train', 'FILE.yaml')}")
        for f in fields(Recipe):
            line = yaml.safe_dump({f.name: values[f.name]}, allow_unicode=True).strip()
            say(f"{line:<34} # {f.metadata['help']}")
    return values if arguments.json else 0


def list_runs(arguments: argparse.Namespace) -> dict | int:
    """Every run with its state, a line each."""
    rows = [{"run": run.name, "path": str(run.path), **runs.read_status(run)} for run in runs.list_runs()]
    width = max((len(row["run"]) for row in rows), default=0)
    for row in rows:
        line = f"{row['run']:<{width}}  {row['state']:<11}  {_progress(row):<16}  {_age(row)}".rstrip()
        say(printable(line, keep=""))
    if rows:
        say(
            f"Next: {command('runs', 'status', rows[0]['run'])}   or   "
            f"{command('runs', 'logs', rows[0]['run'])}"
        )
    else:
        say(f"No runs in {runs.roots()[0].absolute()} yet. Next: {command('demo')}")
    return {"runs": rows} if arguments.json else 0


def run_status(arguments: argparse.Namespace) -> dict | int:
    """What one run is doing, checked against the process that should be doing it."""
    run = runs.find_run(arguments.run)
    status = runs.read_status(run)
    say(f"{run.name}: {status['state']}{_pid(status)} {_progress(status)} {_age(status)}".rstrip())
    if status["message"]:
        say(f"  {printable(status['message'], keep='')}")
    if status["state"] in ("running", "done"):
        latest = runs.last_line(run)
        say(f"  log: {latest}" if latest else f"  no log yet ({run.log})")
    timing = runs.read_timing(run)
    if timing is not None:
        say(f"  {runs.timing_in_words(timing)}")
    mirror = runs.mirror_status(run)
    if mirror is not None:
        reached = f"step {mirror['step']}" if mirror["step"] is not None else "no checkpoint yet"
        say(f"  copy in {mirror['folder']}: {reached}, {mirror['state']} {mirror['message']}".rstrip())
    if status["state"] == "running":
        say(f"Next: {command('runs', 'logs', word_for(run), '--follow')}")
    found = {"run": run.name, "path": str(run.path), **status, "mirror": mirror, "timing": timing}
    return found if arguments.json else 0


def run_logs(arguments: argparse.Namespace) -> dict | int:
    """The end of a run's log; with --follow also what comes."""
    run = runs.find_run(arguments.run)
    start = run.log.stat().st_size if run.log.exists() else 0
    lines = runs.tail(run, arguments.lines)
    if not lines and not arguments.follow:
        raise UsageError(f"{run.name} has written no log yet ({run.log}).")
    if arguments.json:
        return {"run": run.name, "lines": lines}
    for line in lines:
        print(printable(line))
    if arguments.follow:
        _follow(run, start)
    return 0


def _follow(run: runs.Run, start: int) -> None:
    """Show what the log gains until the run ends; Ctrl-C is the way to leave earlier."""
    try:
        for text in runs.follow(run, start):
            print(printable(text), end="", flush=True)
        say(f"({run.name}: {runs.read_status(run)['state']})")
    except KeyboardInterrupt:
        say()


def stop_run(arguments: argparse.Namespace) -> dict | int:
    """Ask a run to save and stop; wait until it did."""
    go_on_without_reader()
    run = runs.find_run(arguments.run)
    before = runs.read_status(run)
    if before["state"] == "running":
        say(f"Asking {run.name} (pid {before['pid']}) to save and stop")
        status = runs.stop(run, arguments.timeout)
        say(f"{run.name}: {status['state']}{'; ' + status['message'] if status['message'] else ''}")
    else:
        status = before
        say(f"{run.name} is not running ({before['state']}): nothing to stop")
    return {"run": run.name, **status} if arguments.json else 0


def restore_run(arguments: argparse.Namespace) -> dict | int:
    """Bring a run back from the folder (or Drive) that mirrors it; training can then be continued."""
    go_on_without_reader()
    folder = arguments.source or runs.drive_folder()
    if folder is None:
        raise UsageError(
            "Say where the copy is: --from FOLDER (in Colab, mount Drive in a cell first: it is then found)."
        )
    if arguments.run is None:
        there = runs.saved(folder)
        say(f"In {folder}: {', '.join(there) or 'no run'}")
        return {"folder": str(folder), "runs": there} if arguments.json else 0
    run = runs.restore(arguments.run, folder, arguments.into)
    say(
        f"Next: {command('runs', 'status', word_for(run))}   or   "
        f"{command('train', '…', '--mirror_dir', str(folder))}"
    )
    return {"run": run.name, "path": str(run.path)} if arguments.json else 0


def _progress(status: dict) -> str:
    return f"step {status['step']}/{status['total_steps']}" if status["step"] is not None else ""


def _pid(status: dict) -> str:
    return f" (pid {status['pid']})" if status["state"] == "running" and status["pid"] else ""


def _age(status: dict) -> str:
    return f"{duration(max(0.0, time.time() - status['updated']))} ago" if status["updated"] else ""
