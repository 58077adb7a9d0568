"""A recipe's values: their types, ranges and choices, and how text is read as them."""

from __future__ import annotations

import types

from newllm_lib.errors import UsageError

_TYPE_NAMES = {
    types.NoneType: "none",
    str: "text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
}


_PLAIN = {"str": str, "int": int, "float": float, "bool": bool, "None": types.NoneType}


def value_types(f) -> tuple[type, ...]:
    """The plain types a recipe field accepts, e.g. (int, NoneType) for `int | None`."""
    return tuple(_PLAIN[part.strip()] for part in f.type.split("|"))


def checked(f, value):
    """`value` as the field's type; text such as "8e-4", "true" or "none" is understood.

    Raises:
        UsageError: wrong type, not one of the choices, or below the minimum.
    """
    accepted = value_types(f)
    if isinstance(value, str):
        value = _from_text(value, accepted)
    if isinstance(value, int) and not isinstance(value, bool) and float in accepted:
        value = float(value) if abs(value) < 2**1000 else float("inf")
    if isinstance(value, float) and int in accepted and float not in accepted and value.is_integer():
        value = int(value)
    choices, minimum = f.metadata["choices"], f.metadata["minimum"]
    if "on" in choices and "off" in choices:  # YAML 1.1 reads on/off as booleans
        value = "on" if value in (True, "true") else "off" if value in (False, "false") else value
    number_or_auto = accepted == (int, str)  # the only text such a key takes is "auto"
    if type(value) not in accepted or (number_or_auto and isinstance(value, str) and value != "auto"):
        kinds = "a whole number or auto" if number_or_auto else " or ".join(_TYPE_NAMES[t] for t in accepted)
        raise UsageError(f"{f.name} must be {kinds}, not {value!r}.")
    if choices and value not in choices:
        raise UsageError(f"{f.name} must be one of {', '.join(map(str, choices))}, not {value!r}.")
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if number and (value != value or value in (float("inf"), float("-inf"))):
        raise UsageError(f"{f.name} must be a finite number, not {value}.")
    if minimum is not None and number and value < minimum:
        raise UsageError(f"{f.name} must be at least {minimum:g}, not {value}.")
    if f.metadata["maximum"] is not None and number and value > f.metadata["maximum"]:
        raise UsageError(f"{f.name} must be at most {f.metadata['maximum']:,}, not {value}.")
    return value


def _from_text(value: str, accepted: tuple[type, ...]):
    word = value.strip().lower()
    if types.NoneType in accepted and word in ("none", "null", ""):
        return None
    if bool in accepted and word in ("true", "yes", "on", "1", "false", "no", "off", "0"):
        return word in ("true", "yes", "on", "1")
    for number in (int, float):
        if number in accepted:
            try:
                return number(value.replace(",", "").replace("_", ""))
            except ValueError:
                continue
    if int in accepted:
        try:
            as_float = float(value)
        except ValueError:
            return value
        return int(as_float) if as_float.is_integer() else value
    return value
