"""From a recipe to packed tokens: sources → records → tokenizer → packed splits.

Only this room knows sources, tokenizers and packing. Everyone else asks `prepare` (training) or `load_split`
(evaluating a finished run with the run's own tokenizer), and cuts blocks with `newllm_lib.data.blocks`. These names are loaded
when first used, so that importing the package costs nothing.
"""

import importlib

__all__ = ["PreparedData", "load_split", "prepare"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.prepared"), name)
