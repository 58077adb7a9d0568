"""Models in folders and on the hub: one way to find and load them, one way to save them.

A model is named by a run (its name or folder), one of a run's checkpoints, an exported or any other
transformers folder, a folder of adapters, or a hub id (`owner/name`). Names are loaded when first used, so
that finding a model needs no torch.
"""

from __future__ import annotations

import importlib

_HOME = {
    "LoadedModel": "load",
    "load_model": "load",
    "ModelLocation": "location",
    "locate": "location",
    "whole_model_folder": "load",
    "save_model": "save",
}
__all__ = list(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
