"""From a recipe to packed tokens: sources → records → tokenizer → packed splits.

Only this room knows sources, tokenizers and packing. Everyone else asks `prepare` (training) or `load_split`
(evaluating a finished run with the run's own tokenizer), and cuts blocks with `training_blocks`. These names
are loaded when first used, so that importing the package costs nothing.
"""

import importlib

_HOME = {
    "PreparedData": "prepared",
    "load_split": "prepared",
    "prepare": "prepared",
    "training_blocks": "blocks",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
