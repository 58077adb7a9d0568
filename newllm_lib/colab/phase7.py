"""What notebook 5 says first: whether the kernels work here, which preset fits, and what hours buy."""

from __future__ import annotations

from dataclasses import dataclass

from newllm_lib.colab import curves
from newllm_lib.colab.environment import shell
from newllm_lib.colab.forms import Settings
from newllm_lib.console import count, say
from newllm_lib.device import Device, known_gpu, probe
from newllm_lib.recipe import Recipe, load_recipe

PRESETS = ("phase7_small", "phase7_100m", "phase7_0.7b", "phase7_1.5b")
GPUS = ("t4", "l4", "a100", "h100")  # Colab's
# tokens a parameter that a given cost is best spent on (Hoffmann et al., 2022, arXiv 2203.15556)
ENOUGH = 20


@dataclass(frozen=True)
class Outlook:
    """What a preset needs on a device, and how fast it trains there."""

    preset: str
    parameters: int
    gib: float  # with one sequence at a time
    fits: bool
    tokens_an_hour: float
    measured: bool

    def tokens(self, hours: float) -> float:
        return hours * self.tokens_an_hour

    def steps(self, hours: float, recipe: Recipe) -> int:
        return int(self.tokens(hours) / (recipe.batch_size * recipe.max_seq_length))

    def hours_for_enough(self) -> float:
        return ENOUGH * self.parameters / self.tokens_an_hour

    def expected_loss(self, hours: float) -> float:
        """Nats a token above the least that is possible, by the law fitted in the same paper: other text than
        ours, so only for the order of presets."""
        return 406.4 / self.parameters**0.34 + 410.7 / self.tokens(hours) ** 0.28


def outlook(recipe: Recipe, device: Device, preset: str = "") -> Outlook:
    from newllm_lib.training.estimate import estimate, least_memory_gib, tokens_per_second

    parameters = estimate(recipe, device)["parameters"]
    need = least_memory_gib(recipe, device, parameters)
    speed, measured = tokens_per_second(recipe, device, parameters)
    return Outlook(
        preset or recipe.recipe, parameters, need, need <= device.memory_gib, 3600 * speed, measured
    )


def outlooks(device: Device) -> list[Outlook]:
    """All presets on this device."""
    return [outlook(load_recipe(name, device_kind=device.kind), device, name) for name in PRESETS]


def best(found: list[Outlook], hours: float) -> Outlook:
    """The preset that makes the most of so many hours, of those that fit (of all, if none does)."""
    return min([o for o in found if o.fits] or found, key=lambda o: o.expected_loss(max(hours, 0.01)))


def for_this_machine(values: dict) -> str:
    """The form's "auto": the preset that makes the most of its hours here."""
    return best(outlooks(probe()), values["hours"]).preset


def check() -> None:
    """This machine, and on a GPU each kernel once against its plain reference.

    Raises:
        NewLLMError: a kernel computes something else than its reference.
    """
    curves.warm_up()
    device = probe()
    say(f"{device.name}: {device.memory_gib:.1f} GiB memory, {device.cores} cores")
    for choice, reason in device.reasons.items():
        say(f"  {choice:<10} {reason}")
    if device.torch_device == "cpu" or device.kernels != "triton":
        say("No kernels to check: everything runs in plain torch here, at a small size.")
        return
    import torch

    from newllm_lib.ops.self_check import check_kernels, refuse_mismatch

    found = check_kernels(torch.device("cuda"), torch.float16 if device.dtype == "fp16" else torch.bfloat16)
    for one in found:
        say(
            f"  {'✓' if one.passed else '✗'} {one.name:<21} off by {one.error:.1e} (allowed "
            f"{one.tolerance:.0e})"
        )
    refuse_mismatch(found)


def plan(settings: Settings) -> Outlook:
    """Show which preset fits which GPU and what the form's hours buy; returns the chosen outlook."""
    hours, device, recipe = settings.extra["hours"], probe(), settings.recipe()
    found, chosen = outlooks(device), outlook(recipe, device, settings.name)
    _show(_by_gpu(), "Which preset fits which GPU, and how many tokens it reads there in an hour")
    _show(_here(found, hours), f"{device.name}, {device.memory_gib:.1f} GiB")
    size = f"{settings.name} as sized for {recipe.sized_for}: {chosen.parameters:,} parameters"
    say(f"{size}. {reach(chosen, hours)}")
    if not chosen.fits:
        say(
            f"It needs {chosen.gib:.1f} GiB even with one sequence at a time: choose "
            f"{best(found, hours).preset}."
        )
    if recipe.max_steps is None:
        steps = max(1, chosen.steps(hours, recipe))
        say(
            f"All {recipe.epochs:g} epochs are trained; max_steps = {steps:,} would end in about {hours:g} h."
        )
    return chosen


def reach(chosen: Outlook, hours: float) -> str:
    """What so many hours of training will do, and what they will not."""
    tokens = chosen.tokens(hours)
    share = tokens / chosen.parameters
    seen = f"{hours:g} h read {count(tokens)} tokens, {plain(share)} for each parameter"
    if share >= ENOUGH:
        return f"{seen}: as much as this size puts to good use; more data or a larger preset comes next."
    if share >= 1:
        full = count(ENOUGH * chosen.parameters)
        return f"{seen}: fluent sentences of the kind it read; {full} tokens would make full use of it."
    if share >= 0.1:
        return (
            f"{seen}: frequent turns, and more than the last word counts (phase7_small was well below the "
            "bigram table after 0.3 tokens for each parameter). Facts and reasoning: no."
        )
    return (
        f"{seen}: the loss falls and everything can be tried, but a smaller preset learns more in this "
        "time. Sense: no."
    )


def plain(number: float) -> str:
    """A number as people write it: `0.0031`, `2.4`, `370`, `12,000`."""
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}" if number >= 1e-4 else f"{number:.5f}"


def _by_gpu() -> list[str]:
    gpus = {kind: known_gpu(kind) for kind in GPUS}
    columns = [outlooks(gpu) for gpu in gpus.values()]
    heads = " | ".join(f"{kind.upper()}, {gpu.memory_gib:.0f} GiB" for kind, gpu in gpus.items())
    return [f"| preset | parameters | {heads} |", "|---|---:|" + "---|" * len(GPUS)] + [
        f"| {row[0].preset} | {row[-1].parameters:,} | " + " | ".join(map(_cell, row)) + " |"
        for row in zip(*columns, strict=True)
    ]


def _cell(o: Outlook) -> str:
    return f"{_speed(o)} ({o.gib:.1f} GiB)" if o.fits else f"no: {o.gib:.1f} GiB"


def _speed(o: Outlook) -> str:
    return f"{count(o.tokens_an_hour)} {'measured' if o.measured else 'computed'}"


def _here(found: list[Outlook], hours: float) -> list[str]:
    marked = best(found, hours)
    head = (
        f"| preset, as sized here | parameters | needs | tokens an hour | in {hours:g} h | tokens a "
        "parameter | "
        f"hours to {ENOUGH} a parameter | |"
    )
    return [head, "|---|---:|---:|---:|---:|---:|---:|---|"] + [
        f"| {o.preset} | {o.parameters:,} | {o.gib:.1f} GiB{'' if o.fits else ', too much'} | {_speed(o)} | "
        f"{count(o.tokens(hours))} | {plain(o.tokens(hours) / o.parameters)} | "
        f"{plain(o.hours_for_enough())} | " + (f"makes the most of {hours:g} h |" if o is marked else "|")
        for o in found
    ]


def _show(lines: list[str], title: str) -> None:
    if shell() is None:
        say("\n".join([f"{title}:", *lines]))
        return
    from IPython.display import Markdown, display

    display(Markdown("\n".join([f"**{title}**", "", *lines])))
