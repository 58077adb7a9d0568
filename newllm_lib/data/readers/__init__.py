"""Where records come from: a class for each kind of source, with a common base in `base`."""

from newllm_lib.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
