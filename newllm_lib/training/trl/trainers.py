"""Where TRL, 0.29.1 to 1.16, keeps the trainers that have moved.

ORPO is in `trl.experimental`; so was KTO, until 1.x made it a stable one with rows of another form.
"""

from __future__ import annotations

import warnings
from importlib import import_module, metadata

from newllm_lib.errors import NewLLMError


def trainer_classes(name: str) -> tuple[type, type]:
    """TRL's configuration and trainer of a method: "KTO", "ORPO", "Reward" or "GRPO".

    Raises:
        NewLLMError: the installed version has none.
    """
    moved = name == "ORPO" or (name == "KTO" and not kto_is_stable())
    place = f"trl.experimental.{name.lower()}" if moved else "trl"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that what is experimental may change
            module = import_module(place)
            return getattr(module, f"{name}Config"), getattr(module, f"{name}Trainer")
    except (ImportError, AttributeError) as error:
        cause = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise NewLLMError(
            f"TRL {metadata.version('trl')} has no {name}Trainer in {place} ({cause}): install 0.29.1 or "
            "1.16.0 (`pip install trl==1.16.0`)."
        ) from error


def kto_is_stable() -> bool:
    """Whether TRL's KTO takes rows of `prompt_ids` and `completion_ids`, as all its stable trainers do."""
    from trl.trainer import kto_trainer

    return hasattr(kto_trainer, "DataCollatorForUnpairedPreference")
