"""Training: one call takes a recipe to a finished run folder.

What only some runs need, or need at their end, is a name of this package that is loaded when it is used.
"""

from newllm_lib.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
