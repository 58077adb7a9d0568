"""Models in folders and on the hub: one way to find and load them, one way to save them.

A model is named by a run (its name or folder), one of a run's checkpoints, an exported or any other
transformers folder, a folder of adapters, or a hub id (`owner/name`). Names are loaded when first used, so
that finding a model needs no torch.
"""

from newllm_lib.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
