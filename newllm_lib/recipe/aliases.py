"""Other names of the keys: the Phase 7 guide's, and those of older versions. They are read wherever ours are,
and recorded as ours. Keys that are gone are read too, as long as they do nothing."""

from __future__ import annotations

from newllm_lib.errors import UsageError
from newllm_lib.removed import RECIPE_KEYS, without_removed

_RENAMED = {"step_in_backward": "optimizer_in_backward"}  # a key's name in version 0.1.0: today's
_SAME = {
    "d_model": "hidden_size",
    "n_layers": "num_layers",
    "n_heads": "num_heads",
    "n_seq": "max_seq_length",
}
_SWITCHES = {  # guide's name: our key, its value for true, for false
    "use_mixed_precision": ("dtype", "auto", "fp32"),
    "use_gradient_checkpointing": ("gradient_checkpointing", "on", "off"),
    "use_flash_attention": ("flash_attention", True, False),
    "use_fused_optimizer": ("fused_optimizer", True, False),
    "use_compile": ("compile", "auto", "off"),
    "use_triton": ("kernels", "auto", "off"),
    "use_htt": ("embedding", "htt", "dense"),
    "use_ar_ssm": ("ar_ssm", True, False),
    "use_curvature_scheduler": ("curvature_schedule", "linear", "off"),
}
GUIDES_KEYS = {
    **{name: f"as --{ours}" for name, ours in _SAME.items()},
    **{name: f"true: --{ours} {on}; false: {off}".lower() for name, (ours, on, off) in _SWITCHES.items()},
    "gradient_accumulation_steps": "with it, batch_size is the sequences at a time (--micro_batch_size); "
    "ours is their product",
}


def resolve_keys(values: dict, where: str, at_a_time: int | str | None = None) -> dict:
    """`values` with the guide's names and older ones replaced by ours, without keys that are gone.

    Args:
        where: what holds them, for errors.
        at_a_time: the micro-batch that `gradient_accumulation_steps` counts where no batch_size stands beside
            it.

    Raises:
        UsageError: no `key: value` lines, a key under both names, a switch that is neither true nor false, or
            a key that is gone and did something.
    """
    if not isinstance(values, dict):
        raise UsageError(f"{where} must hold `key: value` lines.")
    values = without_removed(values, RECIPE_KEYS, where, UsageError)
    steps = values.pop("gradient_accumulation_steps", None)
    if steps is not None:
        values |= _batch(values, steps, at_a_time, where)
    same = _SAME | _RENAMED
    for name in [*same, *_SWITCHES]:
        if name not in values:
            continue
        ours = same.get(name) or _SWITCHES[name][0]
        if ours in values:
            raise UsageError(f"{where} has both {name} and {ours}, which are one key: leave one of them out.")
        value = values.pop(name)
        values[ours] = value if name in same else _SWITCHES[name][1 if _truth(value, name) else 2]
    return values


def older_names() -> list[str]:
    """The names that today's keys had in older versions."""
    return list(_RENAMED)


def _batch(values: dict, steps, at_a_time, where: str) -> dict:
    """Our batch_size and micro_batch_size from the guide's two."""
    if "micro_batch_size" in values:
        raise UsageError(
            f"{where} has gradient_accumulation_steps and micro_batch_size, which say the same: leave one "
            "out."
        )
    at_a_time = values.get("batch_size", at_a_time)
    sizes = [
        _count(at_a_time, "batch_size beside gradient_accumulation_steps"),
        _count(steps, "gradient_accumulation_steps"),
    ]
    return {"micro_batch_size": sizes[0], "batch_size": sizes[0] * sizes[1]}


def _count(value, name: str) -> int:
    if isinstance(value, bool) or not str(value).isdecimal() or int(value) < 1:
        raise UsageError(f"{name} must be a whole number from 1 on, not {value!r}.")
    return int(value)


def _truth(value, name: str) -> bool:
    known = {
        "true": True,
        "yes": True,
        "on": True,
        "1": True,
        "false": False,
        "no": False,
        "off": False,
        "0": False,
    }
    word = str(value).strip().lower()
    if word not in known:
        raise UsageError(f"{name} must be true or false, not {value!r}.")
    return known[word]
