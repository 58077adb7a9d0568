"""What this machine is, what will be used on it and why, and what the chosen training will need."""

from __future__ import annotations

from newllm_lib.colab import curves
from newllm_lib.colab.forms import Settings
from newllm_lib.console import duration, say
from newllm_lib.device import Device, probe

LONG = 3.0  # hours: a free Colab session may not last much longer


def machine(settings: Settings, models: tuple[str, ...] = ("new_llm", "tiny_gpt2")) -> Device:
    """Print the device report and the estimate of training `models` in turn; returns the device."""
    from newllm_lib.training.estimate import estimate

    curves.warm_up()
    device = probe()
    say(f"{device.name}: {device.memory_gib:.1f} GiB memory, {device.cores} cores")
    for choice, reason in device.reasons.items():
        say(f"  {choice:<10} {reason}")
    needs = {}
    for recipe in (settings.recipe(model=model) for model in models):
        name = recipe.model if recipe.task == "train" else recipe.base
        need = needs[name] = estimate(recipe, device)
        if need["parameters"] is None:
            say(f"{name}: what it needs is said when training begins, before anything large is downloaded.")
            return device
        say(
            f"{name}: {need['parameters']:,} parameters, about {need['memory_estimate_gib']:.1f} GiB while "
            "training"
        )
    hours = [need["hours_estimate"] for need in needs.values()]
    if None in hours:
        say("How long it takes is known when the data has been read.")
        return device
    say(
        f"All epochs would take about {duration(3600 * sum(hours))} (an estimate; the live view soon knows "
        "better)."
    )
    if sum(hours) > LONG:
        say(
            "That is long: choose a GPU (Runtime → Change runtime type), less or smaller data, a smaller "
            "model, or fewer epochs."
        )
    return device
