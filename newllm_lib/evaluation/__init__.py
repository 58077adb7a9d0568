"""What a run is worth: figures on held-out text, baselines, comparison, speed.

Names are loaded when first used, so that importing the package costs nothing. A finished run is measured by
`evaluate_run.evaluate_run`.
"""

import importlib

_HOME = {
    "evaluate": "metrics",
    "describe": "metrics",
    "unigram": "baselines",
    "bigram": "baselines",
    "context_health": "health",
    "measure_speed": "speed",
    "compare": "compare.compare",
}
__all__ = list(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
